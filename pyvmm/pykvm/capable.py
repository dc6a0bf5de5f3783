"""Handles whose extra features are switched on with KVM_ENABLE_CAP: VMs and vCPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyvmm.pykvm.constants import Cap
from pyvmm.pykvm.handle import Handle
from pyvmm.pykvm.ioctls import Ioctl

if TYPE_CHECKING:
    import numpy as np

    from pyvmm.pykvm import layout
else:
    from pyvmm.pykvm.lazy import layout, np


class Capable(Handle):
    """A VM or vCPU with capabilities that are off until asked for."""

    def enable_cap(self, capability: Cap, args: Sequence[int] = (), flags: int = 0) -> None:
        """Switch on a capability (KVM_ENABLE_CAP).

        `args` are up to four numbers, as api.rst gives them for the capability: section 6 for vCPUs, section 7 for
        VMs. Raises MissingCapability when this KVM lacks it, KvmError when it refuses the arguments or the moment.
        """
        self.require(capability)
        request = np.zeros((), layout.ENABLE_CAP)
        request["cap"], request["flags"] = capability, flags
        request["args"][: len(args)] = args
        self.exchange(Ioctl.ENABLE_CAP, request)
