"""pyvmm: a virtual machine monitor in Python on /dev/kvm, and a laboratory for memory virtualization.

from pyvmm import Machine

with Machine("64M") as vm:
    vm.load("kernel.bin")
    result = vm.run(timeout=10)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvmm._version import __version__

if TYPE_CHECKING:
    from pyvmm.devices.console import MemoryConsole
    from pyvmm.devices.device import Action, DebugExit, Device, PowerOff, Reset
    from pyvmm.engine.state import CpuState
    from pyvmm.errors import (
        DeviceError,
        GuestMemoryError,
        HostError,
        ImageError,
        PyvmmError,
        Terminated,
        UsageError,
    )
    from pyvmm.machine import EndReason, Machine, Result

_PLACES = {
    "MemoryConsole": "pyvmm.devices.console",
    **dict.fromkeys(("Action", "DebugExit", "Device", "PowerOff", "Reset"), "pyvmm.devices.device"),
    "CpuState": "pyvmm.engine.state",
    **dict.fromkeys(
        ("DeviceError", "GuestMemoryError", "HostError", "ImageError", "PyvmmError", "Terminated", "UsageError"),
        "pyvmm.errors",
    ),
    **dict.fromkeys(("EndReason", "Machine", "Result"), "pyvmm.machine"),
}

__all__ = [
    "Action",
    "CpuState",
    "DebugExit",
    "Device",
    "DeviceError",
    "EndReason",
    "GuestMemoryError",
    "HostError",
    "ImageError",
    "Machine",
    "MemoryConsole",
    "PowerOff",
    "PyvmmError",
    "Reset",
    "Result",
    "Terminated",
    "UsageError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import the public names where they are used: `import pyvmm.paging` must not pay for KVM."""
    if name not in _PLACES:
        raise AttributeError(f"module 'pyvmm' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value
