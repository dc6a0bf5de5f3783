"""What this host's KVM can do, the EPT/NPT switch, and the lab: `with switched(npt=False): ...`, `with Lab("intel") as lab: ...`."""

from __future__ import annotations

from pyvmm.host.switch import switched

__all__ = ["switched"]
