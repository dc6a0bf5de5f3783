"""ACPI power management registers (ACPI 6.4, 4.8.3): how a guest switches the machine off, and how it is asked to.

One window of 12 ports: PM1a event block (status, enable), PM1a control, a hole, PM timer.
The timer never raises its overflow event: reading it is all that its users do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pyvmm.devices.device import Action, Device, IrqLine, NoIrq, PowerOff, take_int
from pyvmm.devices.registers import Field, Register, RegisterMap

PORT = 0x600
SIZE = 12
EVENT, CONTROL, TIMER = 0x600, 0x604, 0x608  # what a FADT has to say
SOFT_OFF = 5  # the SLP_TYP that a DSDT has to give for S5
TIMER_HZ = 3_579_545

_EVENTS = (("GBL", 5), ("PWRBTN", 8), ("SLPBTN", 9), ("RTC", 10))
PM1_STS = Register(
    "PM1_STS", 0, 2, "w1c", Field("TMR", 0), *(Field(name, bit) for name, bit in _EVENTS), Field("WAK", 15)
)
PM1_EN = Register("PM1_EN", 2, 2, "rw", Field("TMR", 0), *(Field(name, bit) for name, bit in _EVENTS))
PM1_CNT = Register(
    "PM1_CNT",
    4,
    2,
    "rw",
    Field("SCI_EN", 0, access="r"),
    Field("BM_RLD", 1),
    Field("SLP_TYP", 12, 10),
    Field("SLP_EN", 13, access="w"),
)
PM_TMR = Register("PM_TMR", 8, 4, "r")

# Guests without a table parser have learnt types by heart: 0 from QEMU's tables, 7 from ICH's, 5 from Bochs's.
_SOFT_OFF = (0, SOFT_OFF, 7)


class AcpiPm(Device):
    """The PM1a blocks and the PM timer; `irq` is the SCI, level-triggered.

    There is no SMI command port to enter ACPI mode by, so the machine is in it always: SCI_EN reads 1 (ACPI 6.4, 4.8.3.2.1).
    """

    name = "acpi-pm"
    registers = RegisterMap(PM1_STS, PM1_EN, PM1_CNT, PM_TMR)

    def __init__(
        self,
        irq: IrqLine | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        timer_bits: int = 24,
    ) -> None:
        """Use `clock` (nanoseconds, never going back) for the timer of `timer_bits` (24 or 32) bits."""
        self.irq = NoIrq() if irq is None else irq
        self._clock = clock
        self._timer_mask = (1 << timer_bits) - 1
        self._line = False
        self.reset()

    def reset(self) -> None:
        """Clear all events, restart the timer."""
        self._sts = self._en = 0
        self._cnt = PM1_CNT["SCI_EN"]
        self._start = self._clock()
        self._update()

    def press(self) -> None:
        """Press the power button: sets its event, and raises the SCI if the guest listens."""
        self._sts |= PM1_STS["PWRBTN"]
        self._update()

    @property
    def timer(self) -> int:
        """The PM timer's count, at 3.579545 MHz."""
        return (self._clock() - self._start) * TIMER_HZ // 1_000_000_000 & self._timer_mask

    def read(self, offset: int, size: int) -> int:
        """Return bytes of the block; SLP_EN and the hole read as 0."""
        if offset == 8:
            return self.timer & (1 << (size * 8)) - 1
        block = self._sts | self._en << 16 | self._cnt << 32
        if offset + size > 8:
            block |= self.timer << 64
        return block >> (offset * 8) & (1 << (size * 8)) - 1

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Write bytes of the block; return `PowerOff` when SLP_EN is written with a type that means S5."""
        # Bytes that are not written: 0 does nothing to w1c bits, the others get back what they hold.
        shift = offset * 8
        mask = ((1 << (size * 8)) - 1) << shift
        value <<= shift
        self._sts = PM1_STS.written(self._sts, value & 0xFFFF)
        self._en = PM1_EN.written(self._en, (value & mask | self._en << 16 & ~mask) >> 16 & 0xFFFF)
        control = PM1_CNT.written(self._cnt, (value & mask | self._cnt << 32 & ~mask) >> 32 & 0xFFFF)
        self._cnt = control & ~PM1_CNT["SLP_EN"]
        self._update()
        if control & PM1_CNT["SLP_EN"] and PM1_CNT.field("SLP_TYP").get(control) in _SOFT_OFF:
            return PowerOff()
        return None

    def _update(self) -> None:
        level = bool(self._sts & self._en)
        if level != self._line:
            self._line = level
            self.irq.set(level)

    def state(self) -> dict[str, Any]:
        """Return the registers and the timer's count."""
        return {"sts": self._sts, "en": self._en, "cnt": self._cnt, "timer": self.timer}

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; the timer goes on from its saved count."""
        self._sts, self._en, self._cnt, timer = (
            take_int(state, key, width) for key, width in (("sts", 16), ("en", 16), ("cnt", 16), ("timer", 32))
        )
        # Round up, so that the count does not start one short of what was saved.
        self._start = self._clock() - -(-timer * 1_000_000_000 // TIMER_HZ)
        self._cnt |= PM1_CNT["SCI_EN"]
        self._line = not self._sts & self._en
        self._update()
