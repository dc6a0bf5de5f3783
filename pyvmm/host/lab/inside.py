"""Start the agent in the Intel lab: the same agent, on serial lines, that stops the emulator whenever it waits for the host.

`python -I -S inside.py`, with the line from the host on standard input and the one to it on standard output.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys

if __name__ == "__main__":
    # The packages on the way to the agent, without what their __init__ would import.
    for _package in ("pyvmm", "pyvmm.host", "pyvmm.host.lab"):
        sys.modules[_package] = type(sys)(_package)
        _root = os.path.abspath(__file__).rpartition("/pyvmm/")[0]
        sys.modules[_package].__path__ = [os.path.join(_root, *_package.split("."))]

from pyvmm.host.lab.agent import Agent
from pyvmm.host.lab.channel import EXIT, HELLO, SAVED, pack_strings, unpack_strings

FILLER = bytes(3 << 12)
"""Sent whenever the agent is going to wait for the host: more than the FIFO behind the line holds.

The emulator stops in the midst of it, and the lab's time with it, until the host has put its next message onto the other line. So it
does not matter when the host does that.
"""

_RNDADDENTROPY = 0x40085203
_SEED = 64


class SteadyAgent(Agent):
    """An agent whose lab repeats itself to the last exit."""

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send one message, and the filler behind one that the host answers."""
        super().send(kind, payload)
        if kind in (HELLO, EXIT) or (kind == SAVED and not payload):
            view = memoryview(FILLER)
            while view:
                view = view[os.write(1, view) :]

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
    SteadyAgent(0, 1).serve()
