"""The two reset registers that PC chipsets have besides the keyboard controller's: ports 0xcf9 and 0x92."""

from __future__ import annotations

from typing import Any

from pyvmm.devices.device import Action, ByteDevice, Device, Reset, take_int
from pyvmm.devices.registers import Field, Register, RegisterMap

RESET_CONTROL = 0xCF9
SYSTEM_CONTROL_A = 0x92

RST_CNT = Register("RST_CNT", 0, 1, "rw", Field("SYS_RST", 1), Field("RST_CPU", 2), Field("FULL_RST", 3))
RESET_VALUE = RST_CNT["SYS_RST"] | RST_CNT["RST_CPU"]  # what a FADT has to say
PORT_A = Register("PORT_A", 0, 1, "rw", Field("FAST_RESET", 0), Field("A20", 1))


class ResetControl(ByteDevice):
    """The reset control register of Intel's chipsets (PIIX3, 4.1.1.1; ICH9, 13.7.5).

    A change of RST_CPU from 0 to 1 resets; SYS_RST and FULL_RST say how thoroughly, which makes no difference here.
    """

    name = "reset-control"
    registers = RegisterMap(RST_CNT)

    def __init__(self) -> None:
        self.value = 0

    def reset(self) -> None:
        """Clear the register."""
        self.value = 0

    def read_byte(self, offset: int) -> int:
        """Return the register."""
        return self.value

    def write_byte(self, offset: int, value: int) -> Action | None:
        """Set the register; return `Reset` on a rising RST_CPU."""
        rising = value & ~self.value & RST_CNT["RST_CPU"]
        self.value = RST_CNT.written(self.value, value)
        return Reset() if rising else None

    def state(self) -> dict[str, Any]:
        """Return the register."""
        return {"value": self.value}

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.value = take_int(state, "value", 8)


class SystemControlA(Device):
    """The PS/2 system control port A (port 0x92): "fast" A20 gate and reset.

    A20 is always open here, as KVM does not model the gate; the bit keeps what the guest writes and reads back.

    Attributes:
        value: the register.
    """

    name = "system-control-a"
    registers = RegisterMap(PORT_A)

    def __init__(self) -> None:
        self.value = PORT_A["A20"]

    def reset(self) -> None:
        """Open A20."""
        self.value = PORT_A["A20"]

    def read(self, offset: int, size: int) -> int:
        """Return the register."""
        return self.value

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Set the register; return `Reset` on a rising FAST_RESET."""
        rising = value & ~self.value & PORT_A["FAST_RESET"]
        self.value = PORT_A.written(self.value, value)
        return Reset() if rising else None

    def state(self) -> dict[str, Any]:
        """Return the register."""
        return {"value": self.value}

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.value = take_int(state, "value", 8)
