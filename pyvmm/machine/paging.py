"""Check that KVM pages in the way that a run asks for."""

from __future__ import annotations

import os

from pyvmm.errors import HostError, UsageError
from pyvmm.pykvm.module import kvm_module

PAGINGS = {"ept": "kvm_intel", "npt": "kvm_amd", "kvm-shadow": None}
"""Ways of paging that the direct engine has, and the one vendor module that has them."""

_SWITCHES = {"kvm_intel": ("ept", "intel"), "kvm_amd": ("npt", "amd")}


def require_paging(paging: str, sysfs: str = "/sys/module") -> None:
    """Check that KVM pages with `paging`: `ept`, `npt` or `kvm-shadow`.

    Raises:
        UsageError: there is no such way of paging.
        HostError: KVM pages otherwise; the message says how to get there.
    """
    if paging not in PAGINGS:
        raise UsageError(f"no paging {paging!r}: KVM can page with {', '.join(PAGINGS)}")
    kvm = kvm_module(sysfs)
    if kvm.paging == paging:
        return
    now = "no KVM module is loaded" if kvm.name == "unknown" else f"{kvm.name} pages with {kvm.paging}"
    raise HostError(f"paging {paging} is not in force, {now}: {_way(paging, kvm.name, sysfs)}")


def _way(paging: str, module: str, sysfs: str) -> str:
    parameter, cpu = _SWITCHES.get(module, ("", "amd"))
    # Only a module that is not built in has `initstate`; and only the right vendor's has the parameter.
    if PAGINGS[paging] in (None, module) and parameter and os.path.exists(f"{sysfs}/{module}/initstate"):
        sudo = "" if os.geteuid() == 0 else "sudo "
        return f"`{sudo}pyvmm host set {parameter}={'off' if paging == 'kvm-shadow' else 'on'}` switches"
    if paging != "kvm-shadow":
        parameter, cpu = paging, "intel" if paging == "ept" else "amd"
    setting = f"{parameter or 'npt'}={'off' if paging == 'kvm-shadow' else 'on'}"
    return f"`pyvmm lab run --cpu {cpu} --set {setting} -- pyvmm boot ...` runs it in the lab"
