"""Between a session and the emulator's serial lines: hold the emulator still while the host thinks.

After a message that the host answers, the lab sends filler and then looks into its mailbox, a disk. The filler is not read here until the
answer is in the mailbox, and it is more than the FIFO holds: the emulator stops in the midst of it, and finds the answer when it goes on.
For the lab no time has passed. What the host says at other times goes over the serial line, and arrives when it arrives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

from pyvmm.host.lab.bochs import CYLINDER
from pyvmm.host.lab.channel import EXIT, HELLO, INPUT, MAGIC, RUN, SAVED
from pyvmm.host.lab.inside import BLOCK, FILLER, LETTER, MAILBOX_SIZE

_CAPACITY = 4096
_SETTLE = 0.3
"""How many seconds the input of a command may come behind the command and still go with it into the mailbox."""
_TICK, _WAIT = 0.02, 0.25
_CHUNK = 1 << 16
_HEADER = struct.Struct("<BI")


class Frames:
    """Follows the frames of a stream, which begin behind a `MAGIC`, without keeping them.

    Attributes:
        last: kind and length of the last frame that has begun, (0, 0) before the first.
    """

    def __init__(self) -> None:
        self.last: tuple[int, int] = (0, 0)
        self._head = bytearray()
        self._ready = False
        self._left = 0

    @property
    def complete(self) -> bool:
        """Whether the stream is at the end of a frame."""
        return self.last[0] > 0 and not self._left and not self._head

    def feed(self, data: bytes | memoryview) -> int:
        """Take bytes up to the end of one frame, or all if it does not end in them; return how many were taken."""
        taken = 0
        while taken < len(data):
            if self._left:
                count = min(self._left, len(data) - taken)
                self._left -= count
                taken += count
            else:
                self._head.append(data[taken])
                taken += 1
                if not self._ready:
                    self._ready = self._head.endswith(MAGIC)
                    self._head = bytearray() if self._ready else self._head[-len(MAGIC) :]
                    continue
                if len(self._head) < _HEADER.size:
                    continue
                self.last = _HEADER.unpack(self._head)
                self._left = self.last[1]
                self._head.clear()
            if not self._left:
                break
        return taken


class SteadyLine:
    """Relays between a session and two FIFOs, on a thread of its own, until either side is gone.

    Attributes:
        fd: the session's end, to read from and to write to; the caller closes it.
    """

    def __init__(self, output: str, input: str, mailbox: str, alive: Callable[[], bool]) -> None:
        """Open the FIFOs and make the mailbox.

        Args:
            output: FIFO from the emulator.
            input: FIFO to it.
            mailbox: path of the disk that is to be the mailbox.
            alive: asked now and then until the emulator has opened its end; false when it never will.
        """
        self._alive = alive
        self._output = os.open(output, os.O_RDONLY | os.O_NONBLOCK)
        self._input = os.open(input, os.O_RDWR | os.O_NONBLOCK)
        self._mailbox = os.open(mailbox, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.truncate(self._mailbox, CYLINDER * -(-(MAILBOX_SIZE + BLOCK) // CYLINDER))
        fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, _CAPACITY)
        self._session, theirs = socket.socketpair()
        self.fd = theirs.detach()
        self._to_host, self._to_lab = Frames(), Frames()
        self._pending = bytearray()
        self._latest = 0.0
        self._filler = 0
        self._holding = False
        threading.Thread(target=self._relay, name="lab-line", daemon=True).start()

    def _relay(self) -> None:
        with contextlib.suppress(OSError):
            while self._step():
                pass
        self._session.close()
        os.close(self._output)
        os.close(self._input)
        os.close(self._mailbox)

    def _step(self) -> bool:
        """Wait for something and pass it on; False when one side is gone."""
        poll = select.poll()
        poll.register(self._session, select.POLLIN)
        poll.register(self._output, 0 if self._holding else select.POLLIN)
        if self._pending and not self._holding:
            poll.register(self._input, select.POLLOUT)
        ready = dict(poll.poll(1000 * (_TICK if self._holding and self._pending else _WAIT)))
        if self._session.fileno() in ready and not self._hear_session():
            return False
        if self._output in ready and not self._hear_lab():
            return False
        if self._holding and self._may_go():
            letter = bytes(self._pending[:MAILBOX_SIZE])
            os.pwrite(self._mailbox, LETTER.pack(len(letter)) + letter, 0)
            del self._pending[: len(letter)]
            self._holding = False
        if self._pending and not self._holding:
            with contextlib.suppress(BlockingIOError):
                del self._pending[: os.write(self._input, self._pending)]
        return bool(ready) or self._alive()

    def _hear_session(self) -> bool:
        data = self._session.recv(_CHUNK)
        self._pending += data
        self._latest = time.monotonic()
        view = memoryview(data)
        while view:
            view = view[self._to_lab.feed(view) :]
        return bool(data)

    def _hear_lab(self) -> bool:
        if self._holding:
            return False  # not asked to read, so it has hung up
        data = memoryview(os.read(self._output, _CHUNK))
        if not data:
            return False
        while data:
            if self._filler:
                count = min(self._filler, len(data))
                self._filler -= count
                # What is left of the filler keeps the emulator still.
                data = data[count:]
                continue
            count = self._to_host.feed(data)
            self._session.sendall(data[:count])
            data = data[count:]
            if self._to_host.complete and _is_answered(*self._to_host.last):
                self._holding, self._filler = True, len(FILLER)
        return True

    def _may_go(self) -> bool:
        """Tell whether what the session has to say is complete."""
        if not self._pending or not self._to_lab.complete:
            return False
        return self._to_lab.last[0] not in (RUN, INPUT) or time.monotonic() - self._latest >= _SETTLE


def _is_answered(kind: int, length: int) -> bool:
    """Tell whether the lab waits for the host after this frame: the same rule as in `inside.SteadyAgent`."""
    return kind in (HELLO, EXIT) or (kind == SAVED and not length)
