"""Which paging settings of KVM this host could switch, and what stands in the way of the others."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import asdict, dataclass
from typing import Any

from pyvmm.pykvm.module import KvmModule

_MEMORY_PARAMETERS = {
    "kvm_intel": ("ept", "vpid", "unrestricted_guest", "eptad"),
    "kvm_amd": ("npt",),
    "kvm": ("tdp_mmu", "nx_huge_pages"),
}


@dataclass(frozen=True, slots=True)
class Switchable:
    """One module parameter that bears on memory virtualization.

    Attributes:
        module: its module.
        parameter: its name.
        value: its present value.
        possible: whether reloading the module could change it now.
        reason: what stands in the way, or how to do it.
    """

    module: str
    parameter: str
    value: str
    possible: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in JSON's types."""
        return asdict(self)


def switchable(module: KvmModule, modules_file: str = "/proc/modules", sysfs: str = "/sys/module") -> list[Switchable]:
    """List the settings of the loaded vendor module and of `kvm`, with what a switch would take.

    Args:
        modules_file: the kernel's list of loaded modules; one that is in sysfs but not there is built in.
        sysfs: where the modules' parameters are; one that is writable there needs no reload.
    """
    users = _users(modules_file)
    rows = []
    for name, parameters in ((module.name, module.parameters), ("kvm", module.common)):
        obstacle = _obstacle(name, users)
        for parameter in _MEMORY_PARAMETERS.get(name, ()):
            if parameter in parameters:
                path = f"{sysfs}/{name}/parameters/{parameter}"
                if _writable(path):
                    possible, how = os.geteuid() == 0, f"as root, echo VALUE > {path}; no reload is needed"
                else:
                    possible = obstacle is None
                    how = obstacle or f"modprobe -r {name} && modprobe {name} {parameter}=VALUE"
                rows.append(Switchable(name, parameter, parameters[parameter], possible, how))
    if not any(row.parameter in ("ept", "npt") for row in rows):
        reason = (
            "this KVM has no two-dimensional paging: its shadow MMU is all there is"
            if module.name == "kvm_pvm"
            else "no kvm_intel or kvm_amd is loaded"
        )
        rows.insert(0, Switchable(module.name, "ept/npt", "-", False, reason))
    return rows


def _obstacle(name: str, users: dict[str, int]) -> str | None:
    if name not in users:
        return f"{name} is built into the kernel: set it on the kernel command line ({name}.PARAMETER=VALUE) and reboot"
    if os.geteuid() != 0:
        return "only root may reload a module"
    if users[name] > 0:
        return (
            f"{name} is in use: close every VM first"
            if name != "kvm"
            else "kvm is in use by its vendor module: unload that first"
        )
    if shutil.which("modprobe") is None:
        return "modprobe is missing (Debian: kmod)"
    return None


def _writable(path: str) -> bool:
    """Tell whether the kernel takes a new value at run time: the file's own mode says so, whoever asks."""
    try:
        return bool(os.stat(path).st_mode & stat.S_IWUSR)
    except OSError:
        return False


def _users(path: str) -> dict[str, int]:
    """Read module names and use counts (proc(5), /proc/modules)."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            rows = [line.split() for line in file]
    except OSError:
        return {}
    return {row[0]: int(row[2]) for row in rows if len(row) > 2 and row[2].isdigit()}
