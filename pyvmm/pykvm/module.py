"""Which kernel module stands behind /dev/kvm, and how it pages."""

from __future__ import annotations

import os
from typing import NamedTuple

_SYS_MODULE = "/sys/module"
_VENDORS = {"kvm_intel": "ept", "kvm_amd": "npt", "kvm_pvm": None}
"""Vendor modules, and their parameter for two-dimensional paging; `kvm_pvm` has none."""


class KvmModule(NamedTuple):
    """The vendor module of the running kernel.

    Attributes:
        name: `kvm_intel`, `kvm_amd`, `kvm_pvm`, or `unknown`.
        paging: `ept`, `npt`, `kvm-shadow`, or `unknown`: who turns a GVA into an HPA.
        parameters: the module's readable parameters as text.
        common: those of the `kvm` module.
    """

    name: str
    paging: str
    parameters: dict[str, str]
    common: dict[str, str]


def kvm_module(root: str = _SYS_MODULE) -> KvmModule:
    """Find the loaded vendor module under `root` (sysfs). Never raises: what cannot be read is `unknown`."""
    common = _parameters(root, "kvm")
    for name, switch in _VENDORS.items():
        if os.path.isdir(f"{root}/{name}"):
            parameters = _parameters(root, name)
            if switch is None:
                paging = "kvm-shadow"
            else:
                paging = {"Y": switch, "1": switch, "N": "kvm-shadow", "0": "kvm-shadow"}.get(
                    parameters.get(switch, ""), "unknown"
                )
            return KvmModule(name, paging, parameters, common)
    return KvmModule("unknown", "unknown", {}, common)


def _parameters(root: str, module: str) -> dict[str, str]:
    folder = f"{root}/{module}/parameters"
    values = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    for name in names:
        try:
            with open(f"{folder}/{name}", encoding="ascii", errors="replace") as file:
                values[name] = file.read().strip()
        except OSError:
            continue  # some parameters are write-only
    return values
