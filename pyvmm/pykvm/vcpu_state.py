"""The rest of a vCPU's state: FPU, extended state, MSRs, APIC, pending events, debug registers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pyvmm.pykvm.constants import Cap
from pyvmm.pykvm.handle import Handle, Record, record_of
from pyvmm.pykvm.ioctls import Ioctl
from pyvmm.pykvm.tables import read_msrs, write_msrs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyvmm.pykvm import layout
else:
    from pyvmm.pykvm.lazy import layout, np


class ColdState(Handle):
    """State that is read and written seldom: at start, for a snapshot, for a report."""

    def fpu(self) -> Record:
        """Return x87 and SSE state: dtype FPU (KVM_GET_FPU)."""
        return self.fetch(Ioctl.GET_FPU, layout.FPU)

    def set_fpu(self, fpu: Record | np.void) -> None:
        """Set x87 and SSE state from a record of dtype FPU (KVM_SET_FPU)."""
        self.exchange(Ioctl.SET_FPU, record_of(fpu, layout.FPU))

    def xsave_size(self) -> int:
        """Return the size in bytes of xsave()'s area: what KVM_CAP_XSAVE2 says, at least 4096."""
        return max(self.check_extension(Cap.XSAVE2), layout.XSAVE.itemsize)

    def xsave(self) -> NDArray[np.uint8]:
        """Return the XSAVE area in the CPU's standard format: uint8, shape (xsave_size(),).

        See KVM_GET_XSAVE2 and KVM_GET_XSAVE; SDM vol. 1, 13.4 gives the format.
        """
        self.require(Cap.XSAVE)
        area = np.zeros(self.xsave_size(), np.uint8)
        self.exchange(Ioctl.GET_XSAVE2 if self.check_extension(Cap.XSAVE2) else Ioctl.GET_XSAVE, area)
        return area

    def set_xsave(self, area: NDArray[np.uint8]) -> None:
        """Set the XSAVE area, which must have xsave_size() bytes (KVM reads that many); raises ValueError otherwise."""
        self.require(Cap.XSAVE)
        data = np.array(area, np.uint8)
        if data.nbytes != (size := self.xsave_size()):
            raise ValueError(f"the XSAVE area must have {size} bytes, not {data.nbytes}")
        self.exchange(Ioctl.SET_XSAVE, data)

    def xcrs(self) -> dict[int, int]:
        """Return the extended control registers by number (0 is XCR0) (KVM_GET_XCRS)."""
        self.require(Cap.XCRS)
        record = self.fetch(Ioctl.GET_XCRS, layout.XCRS)
        return {int(one["xcr"]): int(one["value"]) for one in record["xcrs"][: int(record["nr_xcrs"])]}

    def set_xcrs(self, xcrs: Mapping[int, int]) -> None:
        """Set extended control registers by number (KVM_SET_XCRS)."""
        self.require(Cap.XCRS)
        record = np.zeros((), layout.XCRS)
        record["nr_xcrs"] = len(xcrs)
        for at, (number, value) in enumerate(xcrs.items()):
            record["xcrs"][at] = (number, 0, value)
        self.exchange(Ioctl.SET_XCRS, record)

    def msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Return MSRs by number (KVM_GET_MSRS). Raises MsrError naming the first that KVM refuses."""
        return read_msrs(self, indices)

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Set MSRs in the mapping's order (KVM_SET_MSRS).

        Raises MsrError naming the first that KVM refuses; earlier ones are set.
        """
        write_msrs(self, values)

    def lapic(self) -> NDArray[np.uint8]:
        """Return the local APIC's register page: uint8, shape (1024,), one register each 16 bytes (KVM_GET_LAPIC)."""
        self.require(Cap.IRQCHIP)
        area = np.zeros(layout.LAPIC_STATE.itemsize, np.uint8)
        self.exchange(Ioctl.GET_LAPIC, area)
        return area

    def set_lapic(self, area: NDArray[np.uint8]) -> None:
        """Set the local APIC's registers from 1024 bytes (KVM_SET_LAPIC); raises ValueError for another size."""
        self.require(Cap.IRQCHIP)
        data = np.array(area, np.uint8)
        if data.nbytes != (size := layout.LAPIC_STATE.itemsize):
            raise ValueError(f"the APIC page must have {size} bytes, not {data.nbytes}")
        self.exchange(Ioctl.SET_LAPIC, data)

    def vcpu_events(self) -> Record:
        """Return pending exceptions, interrupts, NMIs and SMM state: dtype VCPU_EVENTS (KVM_GET_VCPU_EVENTS)."""
        self.require(Cap.VCPU_EVENTS)
        return self.fetch(Ioctl.GET_VCPU_EVENTS, layout.VCPU_EVENTS)

    def set_vcpu_events(self, events: Record | np.void) -> None:
        """Set pending events; `flags`, EventsValid bits, chooses the optional parts (KVM_SET_VCPU_EVENTS)."""
        self.require(Cap.VCPU_EVENTS)
        self.exchange(Ioctl.SET_VCPU_EVENTS, record_of(events, layout.VCPU_EVENTS))

    def debugregs(self) -> Record:
        """Return the guest's own DR0 to DR3, DR6, DR7: dtype DEBUGREGS (KVM_GET_DEBUGREGS)."""
        self.require(Cap.DEBUGREGS)
        return self.fetch(Ioctl.GET_DEBUGREGS, layout.DEBUGREGS)

    def set_debugregs(self, debugregs: Record | np.void) -> None:
        """Set the guest's own debug registers from a record of dtype DEBUGREGS (KVM_SET_DEBUGREGS)."""
        self.require(Cap.DEBUGREGS)
        self.exchange(Ioctl.SET_DEBUGREGS, record_of(debugregs, layout.DEBUGREGS))
