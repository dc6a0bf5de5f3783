"""The Bochs debug console: every byte written to port 0xe9 goes to the host's console, no set-up, no status to poll."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.devices.device import Action, Device

PORT = 0xE9
_READBACK = 0xE9  # what guests read to learn that the port is there


def _discard(data: bytes) -> object:
    return None


class DebugCon(Device):
    """One port; where its window is larger, a wider write is taken as that many bytes, lowest first.

    Attributes:
        output: called with the bytes of each write.
    """

    name = "debugcon"

    def __init__(self, output: Callable[[bytes], object] = _discard) -> None:
        self.output = output

    def read(self, offset: int, size: int) -> int:
        """Return the presence mark 0xe9."""
        return _READBACK

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Pass the bytes on."""
        self.output(value.to_bytes(size, "little"))
        return None
