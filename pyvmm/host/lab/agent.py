"""The agent: runs commands inside the lab for the host's side of the channel.

`python -I -S agent.py --channel DEVICE`, or without the option on standard input and output. It runs as root when the KVM modules are
loaded, and ends when the host says QUIT or the channel ends. In Bochs every import costs a good part of a second, so it makes do with
modules that the interpreter has built in, and has commands started by posix_spawn rather than by `subprocess`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import sys
import termios

if __name__ == "__main__":
    # The packages on the way to the channel, without what their __init__ would import.
    for _package in ("pyvmm", "pyvmm.host", "pyvmm.host.lab"):
        sys.modules[_package] = type(sys)(_package)
        _root = os.path.abspath(__file__).rpartition("/pyvmm/")[0]
        sys.modules[_package].__path__ = [os.path.join(_root, *_package.split("."))]

from pyvmm.host.lab.channel import (
    CHUNK,
    END_OF_INPUT,
    ERROR,
    EXIT,
    HELLO,
    INPUT,
    MAGIC,
    OUTPUT,
    QUIT,
    RESIZE,
    RUN,
    SAVE,
    SAVED,
    SIGNAL,
    TAKEN,
    Decoder,
    decode_size,
    encode,
    encode_count,
    pack_strings,
    unpack_strings,
)

# Numbers, for `import signal` costs as much as all the rest.
_SIGKILL, _SIGPIPE, _SIGXFSZ = 9, 13, 25
_MOST_IN_A_PIPE = 1 << 20  # pipe(7): what an unprivileged F_SETPIPE_SZ can make of it
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


class Agent:
    """Serves one channel until it ends."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._command: Command | None = None
        self._poll = select.poll()
        self._watched: set[int] = set()
        self._open = True

    def serve(self) -> None:
        """Say hello and do what the host asks, until it has no more to ask."""
        _write(self._writer, MAGIC)
        self.send(HELLO, pack_strings([os.uname().release, *_module_parameters()]))
        self._poll.register(self._reader, _READABLE)
        while self._open:
            for fd, events in self._poll.poll():
                if fd == self._reader:
                    self._listen()
                elif self._command is not None and fd in self._watched and self._command.serve(fd, events):
                    self._command = None
        if self._command is not None:
            self._command.close()

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send one message."""
        _write(self._writer, encode(kind, payload))

    def watch(self, fd: int, events: int) -> None:
        """Have the running command served when `fd` is ready for one of `events` (select.poll), or not any more if there are none."""
        if events:
            self._poll.register(fd, events)
            self._watched.add(fd)
        elif fd in self._watched:
            self._poll.unregister(fd)
            self._watched.discard(fd)

    def _listen(self) -> None:
        data = _read(self._reader)
        if data == b"":
            self._open = False
        for kind, payload in self._decoder.feed(data or b""):
            self._do(kind, payload)

    def _do(self, kind: int, payload: bytes) -> None:
        command = self._command
        if kind == QUIT:
            self._open = False
        elif kind == RUN and command is None:
            self._run(payload)
        elif kind == SAVE and command is None:
            self._save(payload)
        elif command is not None:
            if kind == INPUT:
                command.feed(payload)
            elif kind == END_OF_INPUT:
                command.end_of_input()
            elif kind == SIGNAL:
                command.signal(payload[0])
            elif kind == RESIZE:
                command.resize(*decode_size(payload))

    def _run(self, payload: bytes) -> None:
        cwd, size, count, *strings = unpack_strings(payload)
        argv, environment = strings[: int(count)], strings[int(count) :]
        env = dict(entry.partition("=")[::2] for entry in environment)
        try:
            os.chdir(cwd)
            self._command = Command(self, argv, env, size)
        except OSError as error:
            self.send(EXIT, pack_strings(["error", str(error.errno), cwd if error.filename == cwd else argv[0]]))

    def _save(self, payload: bytes) -> None:
        argv = unpack_strings(payload)
        readable, writable = os.pipe()
        pid = os.posix_spawn(
            argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writable, 1)], setsigdef=[_SIGPIPE]
        )
        os.close(writable)
        while data := os.read(readable, CHUNK):
            self.send(SAVED, data)
        os.close(readable)
        os.waitpid(pid, 0)
        self.send(SAVED)


class Command:
    """One running command, with its streams."""

    def __init__(self, agent: Agent, argv: list[str], env: dict[str, str], size: str) -> None:
        """Start it; OSError if that fails. `size` is "ROWSxCOLUMNS" for a terminal, or "" for pipes."""
        self._agent = agent
        self._pending = bytearray()
        self._closing = False
        self._events: dict[int, int] = {}
        program = _find(argv[0], env.get("PATH", os.defpath))
        self._terminal = bool(size)
        if size:
            rows, _, columns = size.partition("x")
            self._input, slave = os.openpty()
            self.resize(int(rows), int(columns))
            theirs = [slave]
            # A terminal that the leader of a new session opens becomes its controlling terminal.
            actions: list[tuple[int, ...] | tuple[int, int, str, int, int]]
            actions = [(os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0)]
            actions += [(os.POSIX_SPAWN_DUP2, 0, fd) for fd in (1, 2)]
            self._outputs = {self._input: OUTPUT}
        else:
            stdin, self._input = os.pipe()
            stdout, stderr = os.pipe(), os.pipe()
            theirs = [stdin, stdout[1], stderr[1]]
            actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(theirs)]
            self._outputs = {stdout[0]: OUTPUT, stderr[0]: ERROR}
        try:
            self._pid = os.posix_spawn(
                program, argv, env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=[_SIGPIPE, _SIGXFSZ]
            )
        except OSError:
            for fd in {self._input, *self._outputs}:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._exit = os.pidfd_open(self._pid)
        for fd in {self._input, *self._outputs}:
            os.set_blocking(fd, False)
        for fd in (self._exit, *self._outputs):
            self._watch(fd, _READABLE)

    def serve(self, fd: int, events: int) -> bool:
        """Do what a ready descriptor asks for; True when the command has ended and all has been said."""
        if fd == self._exit:
            self._finish()
            return True
        if fd in self._outputs and events & _READABLE:
            self._forward(fd)
        if fd == self._input and events & ~select.POLLIN:
            self._push()
        return False

    def feed(self, data: bytes) -> None:
        """Take input for the command."""
        self._pending += data
        self._push()

    def end_of_input(self) -> None:
        """Close the command's input once it has taken what is there; a terminal gets its end-of-file character."""
        if self._terminal:
            self.feed(b"\x04")
        else:
            self._closing = True
            self._push()

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        try:  # noqa: SIM105  # contextlib is an import more
            os.killpg(self._pid, number)
        except ProcessLookupError:
            pass  # it has just ended

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's window size (ioctl_tty(2), TIOCSWINSZ)."""
        if self._terminal:
            fcntl.ioctl(self._input, termios.TIOCSWINSZ, struct.pack("<4H", rows, columns, 0, 0))

    def close(self) -> None:
        """Kill the command if it runs, and let go of everything."""
        self.signal(_SIGKILL)
        os.waitpid(self._pid, 0)
        self._release()

    def _finish(self) -> None:
        """Send what is left in the pipes, then how the command ended. Processes that it left behind are not waited for."""
        for fd in list(self._outputs):
            left = _MOST_IN_A_PIPE
            while left > 0 and (count := self._forward(fd)):
                left -= count
        _, status = os.waitpid(self._pid, 0)
        self._release()
        code = os.waitstatus_to_exitcode(status)
        self._agent.send(EXIT, pack_strings(["status", str(code)] if code >= 0 else ["signal", str(-code)]))

    def _release(self) -> None:
        for fd in {*self._outputs, self._input, self._exit} - {-1}:
            self._watch(fd, 0)
            os.close(fd)

    def _forward(self, fd: int) -> int:
        """Send what can be read from an output now and return how much it was."""
        data = _read(fd)
        if data:
            self._agent.send(self._outputs[fd], data)
            return len(data)
        if data == b"":
            self._watch(fd, 0)
            if fd != self._input:
                del self._outputs[fd]
                os.close(fd)
        return 0

    def _push(self) -> None:
        """Write to the command what it takes now."""
        taken = 0
        try:
            while self._pending and self._input >= 0:
                count = os.write(self._input, self._pending[:CHUNK])
                del self._pending[:count]
                taken += count
        except BlockingIOError:
            pass
        except OSError:
            self._close_input()  # it reads no more
        if self._input < 0:
            taken += len(self._pending)
            self._pending.clear()
        if taken:
            self._agent.send(TAKEN, encode_count(taken))
        if self._pending:
            self._watch(self._input, self._events.get(self._input, 0) | select.POLLOUT)
        elif self._input >= 0:
            self._watch(self._input, self._events.get(self._input, 0) & ~select.POLLOUT)
            if self._closing:
                self._close_input()

    def _close_input(self) -> None:
        if not self._terminal and self._input >= 0:
            self._watch(self._input, 0)
            os.close(self._input)
            self._input = -1
        elif self._terminal:
            self._pending.clear()

    def _watch(self, fd: int, events: int) -> None:
        if events != self._events.get(fd, 0):
            self._agent.watch(fd, events)
            self._events[fd] = events


def _find(name: str, path: str) -> str:
    """Find a program as execvp(3) does."""
    if "/" in name:
        return name
    error = errno.ENOENT
    for folder in path.split(":"):
        candidate = os.path.join(folder or ".", name)
        if os.path.isfile(candidate):
            if os.access(candidate, os.X_OK):
                return candidate
            error = errno.EACCES
    raise OSError(error, os.strerror(error), name)


def _module_parameters() -> list[str]:
    """Return MODULE.PARAMETER=VALUE for each parameter of the KVM modules that can be read."""
    found = []
    for module in ("kvm", "kvm_amd", "kvm_intel"):
        folder = f"/sys/module/{module}/parameters"
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            try:
                with open(f"{folder}/{name}", encoding="utf-8", errors="replace") as file:
                    found.append(f"{module}.{name}={file.read().strip()}")
            except OSError:
                continue
    return found


def _read(fd: int) -> bytes | None:
    """Read what is there: b"" at the end, None if there is nothing now."""
    try:
        return os.read(fd, CHUNK)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno == errno.EIO:  # a terminal that nobody has open any more
            return b""
        raise


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _make_raw(fd: int) -> None:
    """Let a serial line carry every byte as it is (termios(3), cfmakeraw)."""
    _, _, cflag, _, ispeed, ospeed, chars = termios.tcgetattr(fd)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8 | termios.CREAD | termios.CLOCAL
    chars[termios.VMIN], chars[termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSANOW, [0, 0, cflag, 0, ispeed, ospeed, chars])


def main(arguments: list[str]) -> int:
    """Serve one channel."""
    if arguments[:1] == ["--channel"] and len(arguments) == 2:
        reader = writer = os.open(arguments[1], os.O_RDWR | os.O_NOCTTY)
        if os.isatty(reader):
            _make_raw(reader)
    elif not arguments:
        reader, writer = 0, 1
    else:
        sys.stderr.write("usage: agent.py [--channel DEVICE]\n")
        return 2
    try:
        Agent(reader, writer).serve()
    except BrokenPipeError:
        return 1  # the host's side is gone
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
