"""Interrupt lines of the in-kernel interrupt controller."""

from __future__ import annotations

from pyvmm.pykvm import Vm


class IrqLines:
    """Hands out sources for the VM's interrupt lines; a line is high while any of its sources is, as a wired-OR."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._asserted: dict[int, int] = {}

    def source(self, gsi: int) -> KernelIrq:
        """Return a new source for global system interrupt `gsi` (0 to 23: both PICs and the IOAPIC, wired as on a PC)."""
        self._asserted.setdefault(gsi, 0)
        return KernelIrq(self, gsi)

    def change(self, gsi: int, level: bool) -> None:
        """Count one source up or down and tell KVM where that moves the line (KVM API, KVM_IRQ_LINE)."""
        before = self._asserted[gsi]
        after = self._asserted[gsi] = before + (1 if level else -1)
        if bool(before) != bool(after):
            self._vm.irq_line(gsi, int(level))


class KernelIrq:
    """One device's source; satisfies `pyvmm.devices.IrqLine`."""

    __slots__ = ("_gsi", "_level", "_lines")

    def __init__(self, lines: IrqLines, gsi: int) -> None:
        self._lines = lines
        self._gsi = gsi
        self._level = False

    def set(self, level: bool) -> None:
        """Drive the source; only a change reaches KVM."""
        if level != self._level:
            self._level = level
            self._lines.change(self._gsi, level)
