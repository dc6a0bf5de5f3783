"""Back ends of a console: where a guest's serial output goes and its input comes from.

A back end is told to `start` with a `deliver` function, which it may call from any thread with bytes typed or sent by
the host's side. Terminals and sockets live in modules of their own; this one has the base, the back end for programs
and tests, and files.

Output arrives in lines, or in what a guest wrote within a hundredth of a second (`pyvmm.devices.console_output`), and is
passed on as it arrives.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pyvmm.errors import PyvmmError, UsageError

Deliver = Callable[[bytes], object]

_PATIENCE_MS = 50  # between two looks at whether the run shall stop, while a reader does not read


class Console:
    """Base of all back ends, and by itself the one that drops output and has no input.

    Attributes:
        error: what made the back end stop taking output, or None.
        on_quit: called, on any thread, when the user asks to end the run; the machine sets it.
        stopping: tells a `write` that waits for a slow reader to give up; the machine sets it.
    """

    error: OSError | None = None
    on_quit: Callable[[], object]

    @staticmethod
    def stopping() -> bool:
        """Say that nobody wants to stop."""
        return False

    @staticmethod
    def pull() -> None:
        """Have the output that is on its way here written now; the machine sets it."""

    def write(self, data: bytes) -> None:
        """Take output from the guest; never raises for an output that has gone away."""

    def start(self, deliver: Deliver) -> None:
        """Begin to pass input to `deliver`."""

    def close(self) -> None:
        """Stop, leaving no thread and no descriptor, and undo what `start` did; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ConsoleTimeout(PyvmmError):
    """`MemoryConsole.expect` did not see its pattern in time.

    Attributes:
        pattern: what was looked for.
        seen: the output that was searched.
    """

    def __init__(self, pattern: str, seen: str, why: str) -> None:
        tail = seen[-60:]
        super().__init__(f"console: {pattern!r} did not appear {why}; the last output is {tail!r}")
        self.pattern = pattern
        self.seen = seen


class MemoryConsole(Console):
    """Keeps output in memory, for tests and programs; any thread may use it while the machine runs.

    Attributes:
        limit: bytes kept, from the start; a guest that writes without end must not take the host's memory.
        lost: bytes that came after those.
    """

    def __init__(self, limit: int = 64 << 20) -> None:
        self.limit = limit
        self.lost = 0
        self._output = bytearray()
        self._at = 0  # where the next `expect` starts to look
        self._waiting = 0
        self._closed = False
        self._news = threading.Condition()
        self._deliver: Deliver | None = None
        self._unsent = b""

    @property
    def output(self) -> bytes:
        """All output so far."""
        self.pull()
        return bytes(self._output)

    @property
    def text(self) -> str:
        """All output so far, read as UTF-8; bytes that are not are replaced."""
        return self.output.decode(errors="replace")

    def write(self, data: bytes) -> None:
        """Append to the output."""
        if len(self._output) >= self.limit:
            self.lost += len(data)
            return
        self._output += data
        # A waiter counts itself before it looks once more, so it either sees these bytes or is seen here.
        if self._waiting:
            with self._news:
                self._news.notify_all()

    def start(self, deliver: Deliver) -> None:
        """Pass on what was sent before, and from now on at once."""
        with self._news:
            self._deliver = deliver
            unsent, self._unsent = self._unsent, b""
        if unsent:
            deliver(unsent)

    def send(self, data: bytes | str) -> None:
        """Type `data` into the guest; before `start` it is kept."""
        if isinstance(data, str):
            data = data.encode()
        with self._news:
            deliver = self._deliver
            if deliver is None:
                self._unsent += data
        if deliver is not None:
            deliver(data)

    def expect(self, pattern: str | re.Pattern[str], timeout: float = 10.0) -> re.Match[str]:
        """Wait until `pattern` (a regular expression) appears in output that no earlier `expect` has matched.

        Returns the match; the next call looks behind it. Raises `ConsoleTimeout` after `timeout` seconds, or as soon as
        the console is closed without it.
        """
        regex = re.compile(pattern)
        deadline = time.monotonic() + timeout
        while True:
            closed = self._closed
            self.pull()
            searched = self._output[self._at :]
            # Bytes that are no UTF-8 survive as surrogates, so the way back from characters to bytes is exact.
            text = searched.decode(errors="surrogateescape")
            match = regex.search(text)
            if match is not None:
                self._at += len(text[: match.end()].encode(errors="surrogateescape"))
                return match
            if closed:
                raise ConsoleTimeout(regex.pattern, text, "before the console was closed")
            left = deadline - time.monotonic()
            if left <= 0:
                raise ConsoleTimeout(regex.pattern, text, f"within {timeout:g} s")
            self._wait_for_more(self._at + len(searched), left)

    def _wait_for_more(self, seen: int, timeout: float) -> None:
        with self._news:
            self._waiting += 1
            try:
                self._news.wait_for(lambda: self._closed or len(self._output) > seen, timeout)
            finally:
                self._waiting -= 1

    def close(self) -> None:
        """Wake waiters; the output stays readable."""
        with self._news:
            self._closed = True
            self._deliver = None
            self._news.notify_all()


class FileConsole(Console):
    """Writes output to a file; there is no input."""

    def __init__(self, path: str, append: bool = False) -> None:
        """Create or empty the file (or go on at its end); raises `UsageError` if it cannot be written."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_APPEND if append else os.O_TRUNC)
        try:
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise UsageError(f"console file {path}: {error.strerror}; choose a path that can be written") from None
        self.path = path

    def write(self, data: bytes) -> None:
        """Append to the file; after a first failure (a full disk, say) nothing more is written, see `error`."""
        if self._fd < 0 or self.error is not None:
            return
        try:
            write_all(self._fd, data, self.stopping)
        except OSError as error:
            self.error = error

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def write_all(fd: int, data: bytes, stopping: Callable[[], bool] = Console.stopping) -> None:
    """Write all of `data` to a descriptor that may block; give up, dropping the rest, once `stopping` says so.

    The descriptor is shared with other processes, so it is not made non-blocking: no more than a pipe takes at once
    (PIPE_BUF) is written when poll says that it will.
    """
    import select

    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while data:
        if poll.poll(_PATIENCE_MS):
            data = data[os.write(fd, data[: select.PIPE_BUF]) :]
        elif stopping():
            return


def parse_console(spec: str) -> Console:
    """Return the back end that `spec` names: stdio, pty, none, file:PATH or unix:PATH; else raise `UsageError`."""
    kind, colon, path = spec.partition(":")
    if kind == "file" and path:
        return FileConsole(path)
    if kind == "unix" and path:
        from pyvmm.devices.console_socket import SocketConsole

        return SocketConsole(path)
    if not colon and kind in ("stdio", "pty"):
        from pyvmm.devices import console_tty

        return console_tty.StdioConsole() if kind == "stdio" else console_tty.PtyConsole()
    if spec == "none":
        return Console()
    raise UsageError(f"console {spec!r}: use stdio, pty, none, file:PATH or unix:PATH")
