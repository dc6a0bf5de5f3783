"""What lies between a serial port and a console's back end: output gathers here to a line, or for an instant.

A guest writes a byte an exit. Handing each to the back end by itself costs a system call or more, and wakes its reader:
in a guest's boot log that was the largest part of all work outside the guest. So bytes are passed on when their line
ends, when there are many, and otherwise a hundredth of a second after the first: a prompt and the echo of a key come
with a delay that nobody sees.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_PATIENCE = 0.01
_MANY = 4096
_NEWLINE = b"\n"


class ConsoleOutput:
    """Gathers output; `put` is called by devices, on one thread at a time, everything else by any thread.

    Attributes:
        seen: called with each piece before it is passed on.
    """

    def __init__(self, write: Callable[[bytes], object], fail: Callable[[BaseException], object]) -> None:
        """Pass output to `write`; what that raises on the timer's thread goes to `fail`."""
        self.seen: Callable[[bytes], object] | None = None
        self._write = write
        self._fail = fail
        self._bytes = bytearray()
        self._lock = threading.RLock()
        self._due = False  # the timer has been set
        self._set = threading.Event()
        self._gone = threading.Event()
        self._timer: threading.Thread | None = None

    def put(self, data: bytes) -> None:
        """Take output of the guest's."""
        gathered = self._bytes
        gathered += data  # in place and in one step: `flush` may be taking bytes from the front
        if data == _NEWLINE or len(gathered) >= _MANY:
            self.flush()
        elif not self._due:
            self._due = True
            if self._timer is None:
                self._timer = threading.Thread(target=self._serve, name="console-output", daemon=True)
                self._timer.start()
            self._set.set()

    def flush(self) -> None:
        """Pass on what is there."""
        if not self._bytes:
            return
        with self._lock:
            data = bytes(self._bytes)
            del self._bytes[: len(data)]
            if data:
                if self.seen is not None:
                    self.seen(data)
                self._write(data)

    def _serve(self) -> None:
        try:
            while True:
                self._set.wait()
                self._set.clear()  # `close` sets the other event before this one, so it is seen here or wakes the next wait
                if self._gone.wait(_PATIENCE):
                    return
                self._due = False  # before the bytes are taken, so that a later one sets the timer anew
                self.flush()
        except BaseException as error:
            self._fail(error)

    def close(self) -> None:
        """Pass on what is left and end the timer."""
        self._gone.set()
        self._set.set()
        if self._timer is not None and self._timer is not threading.current_thread():
            self._timer.join()
        self.flush()
