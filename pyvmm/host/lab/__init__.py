"""A KVM host in pure software: the real `kvm_amd` under QEMU, the real `kvm_intel` under Bochs, on any machine.

from pyvmm.host.lab import Lab

with Lab(cpu="intel", ept=False) as lab:
    result = lab.run(["python3", "-m", "pyvmm", "host"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvmm.host.lab.lab import Lab, LabError, LabResult

__all__ = ["Lab", "LabError", "LabResult"]


def __getattr__(name: str) -> Any:
    """Import the lab where it is used: the agent in the lab needs this package's channel only, and start-up counts."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyvmm.host.lab import lab

    return getattr(lab, name)
