"""A virtual CPU: running it, and the registers that every user of it needs."""

from __future__ import annotations

from collections.abc import Sequence
from fcntl import ioctl
from typing import TYPE_CHECKING

from pyvmm.pykvm.constants import Cap, MpState
from pyvmm.pykvm.errors import ClosedError, KvmError, from_handler
from pyvmm.pykvm.handle import Handle, Record, record_of
from pyvmm.pykvm.ioctls import KVM_RUN, Ioctl
from pyvmm.pykvm.run_area import RunArea
from pyvmm.pykvm.stats import StatsFd
from pyvmm.pykvm.tables import CpuidEntry, read_cpuid, read_cpuid_entries, write_cpuid
from pyvmm.pykvm.vcpu_control import Control
from pyvmm.pykvm.vcpu_state import ColdState

if TYPE_CHECKING:
    import numpy as np

    from pyvmm.pykvm import layout
else:
    from pyvmm.pykvm.lazy import layout, np


class Vcpu(RunArea, ColdState, Control):
    """A vCPU's descriptor and run area (vCPU ioctls). Made by Vm.create_vcpu().

    One thread runs it; only `immediate_exit`, interrupts and NMIs may come from others.

    Attributes:
        id: the number given at creation, which is its APIC id.
    """

    def __init__(self, vm: Handle, fd: int, vcpu_id: int, mmap_size: int) -> None:
        super().__init__(fd, f"vCPU {vcpu_id}", mmap_size, vm)
        self.id = vcpu_id

    def run(self) -> None:
        """Enter the guest and return at its next exit, which `exit_reason` names (KVM_RUN).

        Raises InterruptedError when a signal or `immediate_exit` ended the run, BlockingIOError when the vCPU was
        waiting for another to start it and has been started (run it again); both plain, as they are no failures.
        Raises KvmError for the rest.
        """
        try:
            # No third argument: Python's ioctl would try it as two kinds of buffers first and take three times as long.
            ioctl(self.fd, KVM_RUN)
        except (InterruptedError, BlockingIOError):
            raise
        except OSError as error:
            if from_handler(error):
                raise
            raise KvmError("RUN", error.errno or 0) from None
        except ValueError:
            if self.fd >= 0:  # a signal handler raised it
                raise
            raise ClosedError(self.name) from None

    def regs(self) -> Record:
        """Return the general registers: dtype REGS, shape ()."""
        return self.fetch(Ioctl.GET_REGS, layout.REGS)

    def set_regs(self, regs: Record | np.void) -> None:
        """Set the general registers, RIP and RFLAGS from a record of dtype REGS."""
        self.exchange(Ioctl.SET_REGS, record_of(regs, layout.REGS))

    def sregs(self) -> Record:
        """Return segment, table and control registers: dtype SREGS, shape ()."""
        return self.fetch(Ioctl.GET_SREGS, layout.SREGS)

    def set_sregs(self, sregs: Record | np.void) -> None:
        """Set segment, table and control registers from a record of dtype SREGS.

        KvmError EINVAL: an impossible state.
        """
        self.exchange(Ioctl.SET_SREGS, record_of(sregs, layout.SREGS))

    def sregs2(self) -> Record:
        """Return what sregs() does, with the PDPTRs instead of the pending interrupt: dtype SREGS2 (KVM_GET_SREGS2)."""
        self.require(Cap.SREGS2)
        return self.fetch(Ioctl.GET_SREGS2, layout.SREGS2)

    def set_sregs2(self, sregs: Record | np.void) -> None:
        """Set registers from a record of dtype SREGS2; bit 0 of its `flags` makes the PDPTRs count (KVM_SET_SREGS2)."""
        self.require(Cap.SREGS2)
        self.exchange(Ioctl.SET_SREGS2, record_of(sregs, layout.SREGS2))

    def cpuid_entries(self) -> list[CpuidEntry]:
        """Return what cpuid2() does as plain tuples."""
        return read_cpuid_entries(self, Ioctl.GET_CPUID2)

    def cpuid2(self) -> Record:
        """Return the CPUID table that the guest sees: shape (n,), dtype CPUID_ENTRY2 (KVM_GET_CPUID2)."""
        return read_cpuid(self, Ioctl.GET_CPUID2)

    def set_cpuid2(self, entries: Record | Sequence[CpuidEntry]) -> None:
        """Set the CPUID table that the guest sees, before its first run.

        System.supported_cpuid() and System.supported_cpuid_entries() are the places to start from.
        """
        write_cpuid(self, entries)

    def mp_state(self) -> MpState:
        """Return whether the vCPU runs, halts or waits to be started (KVM_GET_MP_STATE)."""
        return MpState(int.from_bytes(self.fetch_bytes(Ioctl.GET_MP_STATE, 4), "little"))

    def set_mp_state(self, state: MpState | int) -> None:
        """Set whether the vCPU runs, halts or waits; states other than RUNNABLE need the in-kernel APIC."""
        self.exchange(Ioctl.SET_MP_STATE, bytearray(int(state).to_bytes(4, "little")))

    def stats_fd(self) -> StatsFd:
        """Open KVM's own counters for this vCPU (KVM_GET_STATS_FD)."""
        self.require(Cap.BINARY_STATS_FD)
        return self.adopt(StatsFd(self.call(Ioctl.GET_STATS_FD), f"{self.name} statistics"))
