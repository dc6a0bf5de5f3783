"""PCI configuration mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2), ports 0xcf8 to 0xcff, with a bus that is empty.

Empty but for the host bridge itself: Linux trusts the mechanism once it finds one, and looks through 256 places if it
does not, only to complain in the end that the machine has no PCI.

The reset control register at 0xcf9 lies inside the window of the address register: only 32-bit accesses reach the
latter, a byte at 0xcf9 is the former. One device owns the window and sorts that out.
"""

from __future__ import annotations

import struct
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

_ENABLE = CONFIG_ADDRESS["ENABLE"]
_FIRST_FUNCTION = _ENABLE  # bus 0, device 0, function 0
_REGISTER = CONFIG_ADDRESS["REGISTER"]
# Vendor and device (QEMU's generic host bridge, which no driver claims), no command or status, class 06.00.00.
_HOST_BRIDGE = struct.pack("<HHIBBBB", 0x1B36, 0x0008, 0, 0, 0x00, 0x00, 0x06).ljust(256, b"\0")


class PciConfigPorts(Device):
    """The configuration ports of a host bridge with nothing behind it; override `config_read` to put something there.

    The bridge has an identity and no registers: what is written to it is dropped.

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
        if address & ~_REGISTER == _FIRST_FUNCTION:
            at = (address & _REGISTER) + offset
            return int.from_bytes(_HOST_BRIDGE[at : at + size], "little")
        return (1 << (size * 8)) - 1

    def config_write(self, address: int, offset: int, size: int, value: int) -> None:
        """Take configuration bytes; nobody is there to take them."""

    def read(self, offset: int, size: int) -> int:
        """Return the address register (32 bits), the reset register (a byte at 0xcf9) or configuration data."""
        if offset >= _DATA:
            if self.address & _ENABLE:
                return self.config_read(self.address, offset - _DATA, size)
        elif offset == 0 and size == 4:
            return self.address
        elif offset == _RESET and size == 1:
            return self.reset_control.read(0, 1)
        return (1 << (size * 8)) - 1

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Take a write to one of the three registers; other sizes at the address register are dropped."""
        if offset >= _DATA:
            if self.address & _ENABLE:
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
