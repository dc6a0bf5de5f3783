"""Device models and the buses that carry them; names load their module when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvmm.devices.acpipm import AcpiPm
    from pyvmm.devices.bus import Bus, Mapping, StraddleError
    from pyvmm.devices.cmos import Cmos
    from pyvmm.devices.console import Console, ConsoleTimeout, FileConsole, MemoryConsole, parse_console
    from pyvmm.devices.console_socket import SocketConsole
    from pyvmm.devices.console_tty import PtyConsole, StdioConsole
    from pyvmm.devices.debugcon import DebugCon
    from pyvmm.devices.debugexit import DebugExitPort
    from pyvmm.devices.device import (
        Action,
        ByteDevice,
        DebugExit,
        Device,
        IrqLine,
        NoIrq,
        Panic,
        PowerOff,
        Reset,
        StateError,
    )
    from pyvmm.devices.fwcfg import FwCfg
    from pyvmm.devices.i8042 import I8042
    from pyvmm.devices.pci import PciConfigPorts
    from pyvmm.devices.postcode import PostCode
    from pyvmm.devices.pvpanic import PvPanic
    from pyvmm.devices.registers import Field, Register, RegisterMap
    from pyvmm.devices.resetport import ResetControl, SystemControlA
    from pyvmm.devices.testdev import TestDevice
    from pyvmm.devices.uart import Uart

__all__ = [
    "I8042",
    "AcpiPm",
    "Action",
    "Bus",
    "ByteDevice",
    "Cmos",
    "Console",
    "ConsoleTimeout",
    "DebugCon",
    "DebugExit",
    "DebugExitPort",
    "Device",
    "Field",
    "FileConsole",
    "FwCfg",
    "IrqLine",
    "Mapping",
    "MemoryConsole",
    "NoIrq",
    "Panic",
    "PciConfigPorts",
    "PostCode",
    "PowerOff",
    "PtyConsole",
    "PvPanic",
    "Register",
    "RegisterMap",
    "Reset",
    "ResetControl",
    "SocketConsole",
    "StateError",
    "StdioConsole",
    "StraddleError",
    "SystemControlA",
    "TestDevice",
    "Uart",
    "parse_console",
]

_MODULES = {
    "acpipm": ("AcpiPm",),
    "bus": ("Bus", "Mapping", "StraddleError"),
    "cmos": ("Cmos",),
    "console": ("Console", "ConsoleTimeout", "FileConsole", "MemoryConsole", "parse_console"),
    "console_socket": ("SocketConsole",),
    "console_tty": ("PtyConsole", "StdioConsole"),
    "debugcon": ("DebugCon",),
    "debugexit": ("DebugExitPort",),
    "device": (
        "Action",
        "ByteDevice",
        "DebugExit",
        "Device",
        "IrqLine",
        "NoIrq",
        "Panic",
        "PowerOff",
        "Reset",
        "StateError",
    ),
    "fwcfg": ("FwCfg",),
    "i8042": ("I8042",),
    "pci": ("PciConfigPorts",),
    "postcode": ("PostCode",),
    "pvpanic": ("PvPanic",),
    "registers": ("Field", "Register", "RegisterMap"),
    "resetport": ("ResetControl", "SystemControlA"),
    "testdev": ("TestDevice",),
    "uart": ("Uart",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
