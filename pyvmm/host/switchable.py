"""Which settings of KVM this host could switch, and what stands in the way of the others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pyvmm.host.modules import Kernel
from pyvmm.host.parameters import PARAMETERS, is_on, show_value
from pyvmm.host.plan import (
    current,
    reload_obstacle,
    unsupported,
    users_obstacle,
    without_effect,
    write_obstacle,
)


@dataclass(frozen=True, slots=True)
class Switchable:
    """One module parameter that bears on memory virtualization.

    Attributes:
        module: its module.
        parameter: its name.
        value: its present value, as the kernel shows it.
        possible: whether it could be changed now.
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


def switchable(kernel: Kernel | None = None) -> list[Switchable]:
    """List the settings of the loaded modules, with what a switch would take."""
    kernel = kernel or Kernel()
    kvm = kernel.kvm()
    rows = []
    users = users_obstacle(kernel, (kvm.name,))
    obstacles: dict[str, str | None] = {}
    for name, parameter in PARAMETERS.items():
        value = current(kvm, name)
        if parameter.module not in (kvm.name, "kvm") or not value:
            continue
        module = parameter.module
        if module not in obstacles:
            modules = (module,) if module == kvm.name else (module, kvm.name)
            obstacles[module] = reload_obstacle(kernel, modules) or users
        other = "0" if is_on(value) else "1"
        if parameter.number:
            wanted = f"{name}=NUMBER"
        else:
            wanted = f"{name}={show_value(name, other)}"
        writable = kernel.writable(module, name)
        reason = (
            without_effect(kvm, name, "1", {})
            or unsupported(kernel, name, other)
            or (write_obstacle(kernel, [(module, name, other)]) if writable else obstacles[module])
        )
        how = f"pyvmm host set {wanted}" + (", without a reload" if writable else "")
        rows.append(Switchable(module, name, value, reason is None, reason or how))
    if not any(row.parameter in ("ept", "npt") for row in rows):
        reason = (
            "no KVM module is loaded"
            if kvm.name == "unknown"
            else "this KVM has no two-dimensional paging at all; `pyvmm lab` has both"
        )
        rows.insert(0, Switchable(kvm.name, "ept/npt", "-", False, reason))
    return rows
