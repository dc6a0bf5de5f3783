"""Consoles on terminals: the one that pyvmm was started from, and a new pseudo-terminal."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pyvmm.devices.console import Console, Deliver, write_all
from pyvmm.devices.console_pump import Pump
from pyvmm.errors import HostError

HELP = (
    "\r\npyvmm console keys\r\n"
    "  Ctrl-A x       quit pyvmm\r\n"
    "  Ctrl-A h       show this help\r\n"
    "  Ctrl-A a       send Ctrl-A to the guest (so does Ctrl-A Ctrl-A)\r\n"
)
KEEP = 64 << 10  # bytes of output that wait for a reader of a pseudo-terminal
_ESCAPE = 0x01
_CHUNK = 4096


def _interrupt() -> None:
    import signal

    os.kill(os.getpid(), signal.SIGINT)


def _in_background(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:
        return False  # not our controlling terminal: no job control on it


class StdioConsole(Console):
    """Standard input and output.

    A terminal is put into raw mode, so that the guest gets every key; Ctrl-A is the way out of it. Output processing
    stays on, as many guests end lines with a bare newline. Input that is no terminal is passed on as it is, to its end.

    Attributes:
        on_quit: called on the reader's thread for Ctrl-A x; by default it interrupts the process as Ctrl-C would.
        raw: whether a terminal is in raw mode now.
        error: set once the output has gone away (closed pipe, closed terminal); later output is dropped.
    """

    def __init__(self, on_quit: Callable[[], object] = _interrupt, input_fd: int = 0, output_fd: int = 1) -> None:
        self.on_quit = on_quit
        self._in = input_fd
        self._out = output_fd
        self._deliver: Deliver = len
        self._pump: Pump | None = None
        self._saved: list[Any] | None = None
        self._escaped = False
        self._ended = False

    @property
    def raw(self) -> bool:
        """Whether a terminal is in raw mode now."""
        return self._saved is not None

    def write(self, data: bytes) -> None:
        """Write to standard output at once, whole."""
        if self.error is None:
            try:
                write_all(self._out, data, self.stopping)
            except OSError as error:
                self.error = error

    def start(self, deliver: Deliver) -> None:
        """Put a terminal into raw mode and begin to read.

        A closed input is none, and neither is the terminal of a job in the background: to touch it would stop the job.
        """
        self._deliver = deliver
        try:
            if os.isatty(self._in):
                if _in_background(self._in):
                    return
                self._make_raw()
            else:
                os.fstat(self._in)
        except OSError:
            return
        self._pump = Pump("console-stdio", self._interest, self._readable)

    def _make_raw(self) -> None:
        import atexit
        import termios as t

        saved = t.tcgetattr(self._in)
        iflag, oflag, cflag, lflag, ispeed, ospeed, chars = t.tcgetattr(self._in)
        iflag &= ~(t.BRKINT | t.ICRNL | t.IGNCR | t.INLCR | t.INPCK | t.ISTRIP | t.IXON)
        lflag &= ~(t.ECHO | t.ECHONL | t.ICANON | t.IEXTEN | t.ISIG)
        chars[t.VMIN], chars[t.VTIME] = 1, 0
        t.tcsetattr(self._in, t.TCSANOW, [iflag, oflag, cflag, lflag, ispeed, ospeed, chars])
        self._saved = saved
        atexit.register(self.close)

    def _interest(self) -> dict[int, int]:
        return {} if self._ended else {self._in: select.POLLIN}

    def _readable(self, fd: int, events: int) -> None:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended = True
            return
        if self._saved is not None:
            data = self._keys(data)
        if data:
            self._deliver(data)

    def _keys(self, data: bytes) -> bytes:
        """Act on escapes in typed `data` and return the rest."""
        rest = bytearray()
        for key in data:
            if not self._escaped:
                if key == _ESCAPE:
                    self._escaped = True
                else:
                    rest.append(key)
                continue
            self._escaped = False
            if key in b"xX":
                self.on_quit()
            elif key in b"hH?":
                self.write(HELP.encode())
            elif key in (_ESCAPE, *b"aA"):
                rest.append(_ESCAPE)
        return bytes(rest)

    def close(self) -> None:
        """End the reader and give the terminal back as it was found."""
        if self._pump is not None:
            self._pump.close()
        saved, self._saved = self._saved, None
        if saved is not None:
            import atexit
            import termios

            # A terminal that is gone has taken its mode with it.
            with suppress(OSError, termios.error):
                termios.tcsetattr(self._in, termios.TCSANOW, saved)
            atexit.unregister(self.close)


class PtyConsole(Console):
    """A new pseudo-terminal, for `screen`, `minicom` and the like to open at `path`.

    Nobody can tell whether somebody reads there, so the guest never waits: the latest 64 KiB wait for a reader, besides
    what the kernel holds, and older output is dropped.

    Attributes:
        path: of the slave side.
        lost: bytes of output dropped.
    """

    def __init__(self) -> None:
        import tty

        try:
            self._master, self._slave = os.openpty()
        except OSError as error:
            raise HostError(f"this host gives no pseudo-terminal: {error.strerror}; use another console") from None
        # Holding the slave open keeps the terminal alive between clients; raw, or it would echo output back as input.
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)
        self.lost = 0
        self._lock = threading.Lock()
        self._unread = bytearray()
        self._deliver: Deliver = len
        self._pump: Pump | None = None

    def write(self, data: bytes) -> None:
        """Write to the terminal, or keep what it does not take."""
        with self._lock:
            if self._master < 0:
                return
            idle = not self._unread
            self._unread += data
            if idle:
                self._drain()
                if self._unread and self._pump is not None:
                    self._pump.wake()
            excess = len(self._unread) - KEEP
            if excess > 0:
                del self._unread[:excess]
                self.lost += excess

    def _drain(self) -> None:
        try:
            while self._unread:
                del self._unread[: os.write(self._master, self._unread)]
        except BlockingIOError:
            pass
        except OSError as error:
            self.error = error
            self._unread.clear()

    def start(self, deliver: Deliver) -> None:
        """Begin to read what clients of the terminal type."""
        self._deliver = deliver
        self._pump = Pump("console-pty", self._interest, self._ready)

    def _interest(self) -> dict[int, int]:
        with self._lock:
            if self._master < 0:
                return {}
            return {self._master: select.POLLIN | (select.POLLOUT if self._unread else 0)}

    def _ready(self, fd: int, events: int) -> None:
        if events & select.POLLOUT:
            with self._lock:
                if self._master >= 0:
                    self._drain()
        if events & select.POLLIN:
            try:
                data = os.read(fd, _CHUNK)
            except BlockingIOError:
                return
            if data:
                self._deliver(data)

    def close(self) -> None:
        """End the reader and remove the terminal."""
        with self._lock:
            master, self._master = self._master, -1
        if self._pump is not None:
            self._pump.close()
        if master >= 0:
            os.close(master)
            os.close(self._slave)
