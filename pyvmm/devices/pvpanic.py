"""The port by which a guest says that its kernel panicked (QEMU, docs/specs/pvpanic.rst; Linux: `pvpanic-mmio`)."""

from __future__ import annotations

from pyvmm.devices.device import Action, Device, Panic
from pyvmm.devices.registers import Register, RegisterMap, bits

PORT = 0x505

EVENTS = Register("EVENTS", 0, 1, "rw", *bits("PANICKED", "CRASH_LOADED"))


class PvPanic(Device):
    """One byte without state: a read tells which events may be reported, a write reports them."""

    name = "pvpanic"
    registers = RegisterMap(EVENTS)

    def read(self, offset: int, size: int) -> int:
        """Return the events that may be reported."""
        return EVENTS.declared

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Return `Panic` if the guest says that it panicked; one that has a crash kernel loaded goes on by itself."""
        return Panic() if value & EVENTS["PANICKED"] else None
