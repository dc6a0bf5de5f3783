"""QEMU's isa-debug-exit: a write ends the run and hands a number to the host."""

from __future__ import annotations

from pyvmm.devices.device import Action, DebugExit, Device

PORT = 0xF4
SIZE = 4


class DebugExitPort(Device):
    """Four ports; a write of any size to any of them asks for `DebugExit` with the value written. Reads give 0.

    The exit status `(value << 1) | 1` is made by whoever ends the process.
    """

    name = "debug-exit"

    def read(self, offset: int, size: int) -> int:
        """Return 0."""
        return 0

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """End the run."""
        return DebugExit(value)
