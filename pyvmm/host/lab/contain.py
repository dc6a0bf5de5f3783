"""Keep an emulator so that it dies with us, whatever happens to us, and its temporary folder with it.

A tiny shell, the *keeper*, runs in a session of its own. Its standard input is a pipe, the lifeline, whose other end this process alone
holds: when the pipe ends, because we closed it or because we were killed, the keeper kills the emulator's whole process group and removes
the folder. The emulator runs in a second session, under the keeper, which therefore knows its process id until the end. Folder and
emulator are made by the keeper only, so there is no moment at which we could leave either behind.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

from pyvmm.errors import HostError

_KEEPER = r"""
trap '' HUP INT QUIT TERM
umask 077
mkdir -- "$1" || exit 1
echo ready
if read -r _; then
    setsid /bin/sh "$1/.start" </dev/null &
    child=$!
    # The log ends when the last of the emulator's processes has ended: hold no end of it here.
    exec >/dev/null 2>&1
    read -r _
    # A child that has not made its session yet is no group yet.
    kill -s KILL -- "-$child" || kill -s KILL "$child"
    wait
fi
rm -rf -- "$1"
"""
_LOG_SIZE = 1 << 16
_KILLED = 137


class Keeper:
    """A temporary folder and one command, gone together with this process at the latest.

    Attributes:
        folder: the temporary folder: absolute, mode 0700, with a name that needs no quoting and is short enough for sockets.
    """

    def __init__(self, parent: str | None = None) -> None:
        """Start the keeper and have it make the folder.

        Args:
            parent: folder to make it in; by default the one for temporary files.

        Raises:
            HostError: the folder cannot be made, or there is no /bin/sh.
        """
        import subprocess

        self.folder = os.path.join(_temporary() if parent is None else parent, f"pyvmm-lab-{os.urandom(6).hex()}")
        theirs, ours = os.pipe()
        # Not the Popen's own pipes: a Popen that is forgotten lives on until its process ends, and would hold the lifeline.
        self._lifeline = os.fdopen(ours, "wb")
        log, output = os.pipe()
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _KEEPER, "pyvmm-lab", self.folder],
                stdin=theirs,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            self._lifeline.close()
            os.close(log)
            raise HostError(f"/bin/sh cannot be started: {error.strerror}") from None
        finally:
            os.close(theirs)
            os.close(output)
        self._log = _Log(log)
        line = self._log.first_line()
        if line != b"ready\n":
            self.close()
            raise HostError(f"no temporary folder can be made: {line.decode(errors='replace').strip()}")

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str = "/") -> None:
        """Start the command, once; its standard input is empty, its output and errors go to the log.

        Args:
            argv: program and arguments.
            env: its whole environment; by default ours.
            cwd: its working directory.
        """
        import shlex

        words = list(argv)
        if env is not None:
            words = ["env", "-i", *(f"{name}={value}" for name, value in env.items()), *words]
        path = os.path.join(self.folder, ".start")
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(
                f"cd {shlex.quote(cwd)} || exit\n{shlex.join(words)}\necho $? >{shlex.quote(self._status_file)}\n"
            )
        self._lifeline.write(b"start\n")
        self._lifeline.flush()

    @property
    def alive(self) -> bool:
        """Whether any process of the command still runs, or it has not been started yet."""
        return not self._log.ended.is_set()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until every process of the command has ended; return its exit status, or None when `timeout` seconds did not suffice.

        The folder stays until `close`.
        """
        if not self._log.ended.wait(timeout):
            return None
        try:
            with open(self._status_file, encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError):
            return _KILLED

    def log(self) -> str:
        """Return the end of what the command has written: its last 64 KiB."""
        return self._log.text()

    def close(self) -> None:
        """Kill the command if it runs, and remove the folder; return when that is done. May be called again."""
        import subprocess

        with contextlib.suppress(BrokenPipeError):  # the keeper may be gone already
            self._lifeline.close()
        try:
            # Only a process that the kernel cannot kill (a dead disk) takes long; the keeper goes on without us then.
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            raise HostError(f"the processes of {self.folder} do not die") from None
        self._log.close()

    @property
    def _status_file(self) -> str:
        return os.path.join(self.folder, ".status")


class _Log:
    """Reads the command's output, for ever and on a thread: a full pipe would stop an emulator. Knows no keeper: one that is
    forgotten must be collected, for that closes its lifeline."""

    def __init__(self, fd: int) -> None:
        self.ended = threading.Event()
        self._fd = fd
        self._tail = bytearray()
        self._thread: threading.Thread | None = None

    def first_line(self) -> bytes:
        """Read one line, then leave the rest to the thread."""
        line = bytearray()
        while not line.endswith(b"\n") and (data := os.read(self._fd, 1)):
            line += data
        self._thread = threading.Thread(target=self._read, name="lab-log", daemon=True)
        self._thread.start()
        return bytes(line)

    def text(self) -> str:
        """Return what is kept, as text."""
        return bytes(self._tail).decode(errors="replace")

    def close(self) -> None:
        """Wait for the thread, which ends with the last process that can write."""
        if self._thread is not None:
            self._thread.join(5)

    def _read(self) -> None:
        while data := os.read(self._fd, 1 << 16):
            self._tail += data
            del self._tail[:-_LOG_SIZE]
        os.close(self._fd)
        self.ended.set()


def _temporary() -> str:
    """Return the folder for temporary files, or /tmp where that has a name that would need quoting or is too long for sockets."""
    import re
    import tempfile

    folder = os.path.abspath(tempfile.gettempdir())
    return folder if re.fullmatch(r"[A-Za-z0-9/_.+-]{1,60}", folder) else "/tmp"
