"""PCI configuration mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2), ports 0xcf8 to 0xcff, with a bus that is empty.

The reset control register at 0xcf9 lies inside the window of the address register: only 32-bit accesses reach the
latter, a byte at 0xcf9 is the former. One device owns the window and sorts that out.
"""

from __future__ import annotations

from typing import Any

from pyvmm.devices.device import Action, Device, take, take_int
from pyvmm.devices.registers import Field, Register, RegisterMap
from pyvmm.devices.resetport import RST_CNT, ResetControl

PORT = 0xCF8
SIZE = 8

CONFIG_ADDRESS = Register(
    "CONFIG_ADDRESS",
    0,
    4,
    "rw",
    Field("REGISTER", 7, 2),
    Field("FUNCTION", 10, 8),
    Field("DEVICE", 15, 11),
    Field("BUS", 23, 16),
    Field("ENABLE", 31),
)
_RESET = 1  # offset of 0xcf9
_DATA = 4  # offset of 0xcfc


class PciConfigPorts(Device):
    """The configuration ports of a host bridge with nothing behind it; override `config_read` to put something there.

    Attributes:
        address: the address register.
        reset_control: the register at 0xcf9.
    """

    name = "pci-config"
    registers = RegisterMap(
        CONFIG_ADDRESS, Register("RST_CNT", _RESET, 1, "rw", *RST_CNT.fields), Register("CONFIG_DATA", _DATA, 4, "rw")
    )

    def __init__(self) -> None:
        self.address = 0
        self.reset_control = ResetControl()

    def reset(self) -> None:
        """Clear both registers."""
        self.address = 0
        self.reset_control.reset()

    def config_read(self, address: int, offset: int, size: int) -> int:
        """Return configuration bytes `offset`.. of the dword that `address` names; all ones says "no device"."""
        return (1 << (size * 8)) - 1

    def config_write(self, address: int, offset: int, size: int, value: int) -> None:
        """Take configuration bytes; nobody is there to take them."""

    def read(self, offset: int, size: int) -> int:
        """Return the address register (32 bits), the reset register (a byte at 0xcf9) or configuration data."""
        if offset >= _DATA:
            if self.address & CONFIG_ADDRESS["ENABLE"]:
                return self.config_read(self.address, offset - _DATA, size)
        elif offset == 0 and size == 4:
            return self.address
        elif offset == _RESET and size == 1:
            return self.reset_control.read(0, 1)
        return (1 << (size * 8)) - 1

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Take a write to one of the three registers; other sizes at the address register are dropped."""
        if offset >= _DATA:
            if self.address & CONFIG_ADDRESS["ENABLE"]:
                self.config_write(self.address, offset - _DATA, size, value)
        elif offset == 0 and size == 4:
            self.address = CONFIG_ADDRESS.written(self.address, value)
        elif offset == _RESET and size == 1:
            return self.reset_control.write(0, 1, value)
        return None

    def state(self) -> dict[str, Any]:
        """Return both registers."""
        return {"address": self.address, "reset_control": self.reset_control.state()}

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        address = take_int(state, "address", 32)
        self.reset_control.from_state(take(state, "reset_control", dict))
        self.address = address
