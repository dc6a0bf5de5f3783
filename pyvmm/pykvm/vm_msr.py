"""Model-specific registers under this process's control: exits for them, and the filter that chooses which."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.pykvm.capable import Capable
from pyvmm.pykvm.constants import MSR_FILTER_MAX_BITMAP_BYTES, MSR_FILTER_MAX_RANGES, Cap, MsrExit, MsrFilterFlag
from pyvmm.pykvm.errors import KvmError
from pyvmm.pykvm.handle import address_of
from pyvmm.pykvm.ioctls import Ioctl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyvmm.pykvm import layout
else:
    from pyvmm.pykvm.lazy import layout, np


class MsrRange(NamedTuple):
    """Consecutive MSRs of a filter.

    Attributes:
        base: number of the first.
        allowed: bool, one an MSR: True lets KVM handle the access as usual, False denies it.
        flags: the accesses that `allowed` is about.
    """

    base: int
    allowed: NDArray[np.bool_]
    flags: MsrFilterFlag = MsrFilterFlag.READ | MsrFilterFlag.WRITE


class MsrFilters(Capable):
    """The MSR side of a VM."""

    def enable_msr_exits(self, reasons: MsrExit) -> None:
        """Make the named kinds of failing MSR accesses exit (X86_RDMSR, X86_WRMSR) instead of raising #GP."""
        self.enable_cap(Cap.X86_USER_SPACE_MSR, [reasons])

    def set_msr_filter(self, ranges: Sequence[MsrRange], default_deny: bool = False) -> None:
        """Replace the filter that decides which MSR accesses KVM handles itself; no ranges and no deny removes it.

        A denied access raises #GP, or exits when enable_msr_exits(MsrExit.FILTER) is on. Raises KvmError EINVAL for
        more than 16 ranges or more than 12288 MSRs in one.
        """
        self.require(Cap.X86_MSR_FILTER)
        if len(ranges) > MSR_FILTER_MAX_RANGES:
            meaning = f"{len(ranges)} ranges, but KVM takes at most {MSR_FILTER_MAX_RANGES}"
            raise KvmError("X86_SET_MSR_FILTER", EINVAL, meaning)
        request = np.zeros((), layout.MSR_FILTER)
        request["flags"] = int(default_deny)
        bitmaps = [np.packbits(part.allowed, bitorder="little") for part in ranges]
        for entry, part, bitmap in zip(request["ranges"], ranges, bitmaps, strict=False):
            if len(bitmap) > MSR_FILTER_MAX_BITMAP_BYTES:
                limit = MSR_FILTER_MAX_BITMAP_BYTES * 8
                raise KvmError("X86_SET_MSR_FILTER", EINVAL, f"range at {part.base:#x} has over {limit} MSRs: split it")
            entry["flags"], entry["nmsrs"], entry["base"] = part.flags, len(part.allowed), part.base
            entry["bitmap"] = address_of(bitmap)
        self.exchange(Ioctl.X86_SET_MSR_FILTER, request)
