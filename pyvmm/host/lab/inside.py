"""Start the agent in the Intel lab: the same agent, which stops the emulator whenever it waits for the host.

`dd <LINE | python -I -S inside.py MAILBOX`, with the serial line to the host on standard output. What the host says meanwhile arrives
on standard input, its answers are in the mailbox, a disk.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import sys
import termios

if __name__ == "__main__":
    # The packages on the way to the agent, without what their __init__ would import.
    for _package in ("pyvmm", "pyvmm.host", "pyvmm.host.lab"):
        sys.modules[_package] = type(sys)(_package)
        _root = os.path.abspath(__file__).rpartition("/pyvmm/")[0]
        sys.modules[_package].__path__ = [os.path.join(_root, *_package.split("."))]

from pyvmm.host.lab.agent import Agent
from pyvmm.host.lab.channel import EXIT, HELLO, SAVED, pack_strings, unpack_strings

FILLER = bytes(2 << 12)
"""Sent whenever the agent is going to wait for the host: more than the FIFO behind the line holds (`steadyline`).

It is not taken from the line until the host's answer is in the mailbox. So when all of it has gone out the answer is there, and for
the lab it makes no difference how long the host took.
"""

MAILBOX_SIZE = 1 << 19
"""The most that the mailbox holds: what goes beyond follows over the line."""

BLOCK = 4096
LETTER = struct.Struct("<Q")
"""What the mailbox begins with: the number of bytes behind it."""

_RNDADDENTROPY = 0x40085203
_SEED = 64


class SteadyAgent(Agent):
    """An agent whose lab repeats itself to the last exit."""

    def __init__(self, mailbox: str) -> None:
        """Talk over standard input, which must be a pipe, and standard output."""
        super().__init__(0, 1)
        self._mailbox = os.open(mailbox, os.O_RDONLY | os.O_DIRECT)
        self._letter = mmap.mmap(-1, BLOCK + MAILBOX_SIZE)
        # Letters go through the same pipe as what the line brings: the agent need not know where its messages come from.
        self._own_input = os.open("/proc/self/fd/0", os.O_WRONLY)
        fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, 2 * MAILBOX_SIZE)

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send one message, and fetch the host's answer if it is one that the host answers."""
        super().send(kind, payload)
        if kind in (HELLO, EXIT) or (kind == SAVED and not payload):
            view = memoryview(FILLER)
            while view:
                view = view[os.write(1, view) :]
            termios.tcdrain(1)
            os.write(self._own_input, self._fetch())

    def _fetch(self) -> bytes:
        with memoryview(self._letter) as view:
            os.preadv(self._mailbox, [view[:BLOCK]], 0)
            (size,) = LETTER.unpack_from(view)
            if not size:
                raise OSError("the mailbox is empty")
            rest = -(-(LETTER.size + size) // BLOCK) * BLOCK - BLOCK
            if rest > 0:
                os.preadv(self._mailbox, [view[BLOCK : BLOCK + rest]], BLOCK)
            return bytes(view[LETTER.size : LETTER.size + size])

    def _run(self, payload: bytes) -> None:
        strings = unpack_strings(payload)
        if not any(text.startswith("PYTHONHASHSEED=") for text in strings):
            strings.append("PYTHONHASHSEED=0")
        super()._run(pack_strings(strings))


def seed() -> None:
    """Fill the kernel's entropy pool with a constant, for it has no source of its own, and nothing here is secret (random(4))."""
    device = os.open("/dev/random", os.O_WRONLY)
    fcntl.ioctl(device, _RNDADDENTROPY, struct.pack("ii", 8 * _SEED, _SEED) + bytes(_SEED))
    os.close(device)


if __name__ == "__main__":
    seed()
    SteadyAgent(sys.argv[1]).serve()
