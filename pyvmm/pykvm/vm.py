"""A virtual machine: memory slots, capabilities, clock and vCPUs."""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

from pyvmm.pykvm.constants import Cap
from pyvmm.pykvm.handle import Record, record_of
from pyvmm.pykvm.ioctls import Ioctl
from pyvmm.pykvm.stats import StatsFd
from pyvmm.pykvm.vcpu import Vcpu
from pyvmm.pykvm.vm_dirty import PAGE_SIZE, DirtyLog
from pyvmm.pykvm.vm_events import EventFds
from pyvmm.pykvm.vm_irq import Interrupts
from pyvmm.pykvm.vm_msr import MsrFilters

if TYPE_CHECKING:
    import numpy as np

    from pyvmm.pykvm import layout
else:
    from pyvmm.pykvm.lazy import layout, np


class Vm(DirtyLog, Interrupts, EventFds, MsrFilters):
    """A VM's descriptor (VM ioctls). Made by System.create_vm().

    KVM ties a VM to the process that created it: a child after fork must not use it.
    """

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(fd, "VM")
        self._vcpu_mmap_size = vcpu_mmap_size

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int, flags: int = 0) -> None:
        """Back a guest-physical range with this process's memory (KVM_SET_USER_MEMORY_REGION).

        gpa, size and hva are bytes and page aligned; size 0 deletes the slot. flags are MemFlag bits: a read-only
        slot (needs KVM_CAP_READONLY_MEM) turns guest writes into MMIO exits. The memory must stay mapped while the
        slot lives. Raises KvmError: EEXIST when the range overlaps another slot.
        """
        region = pack("<IIQQQ", slot, flags, gpa, size, hva)
        self.exchange(Ioctl.SET_USER_MEMORY_REGION, bytearray(region))
        self._slot_pages[slot] = size // PAGE_SIZE

    def set_tss_addr(self, gpa: int) -> None:
        """Give KVM three guest-physical pages below 4 GiB that hold no RAM (KVM_SET_TSS_ADDR).

        Intel's KVM wants them for real mode.
        """
        self.require(Cap.SET_TSS_ADDR)
        self.call(Ioctl.SET_TSS_ADDR, gpa)

    def set_identity_map_addr(self, gpa: int) -> None:
        """Give KVM one guest-physical page below 4 GiB that holds no RAM (KVM_SET_IDENTITY_MAP_ADDR).

        Only before the first vCPU exists.
        """
        self.require(Cap.SET_IDENTITY_MAP_ADDR)
        self.exchange(Ioctl.SET_IDENTITY_MAP_ADDR, bytearray(pack("<Q", gpa)))

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """Choose which vCPU boots (KVM_SET_BOOT_CPU_ID), before the first vCPU exists; without this it is vCPU 0."""
        self.require(Cap.SET_BOOT_CPU_ID)
        self.call(Ioctl.SET_BOOT_CPU_ID, vcpu_id)

    def get_clock(self) -> Record:
        """Return the guest's kvmclock: dtype CLOCK_DATA, `clock` in ns.

        `flags` tell which other fields are valid (KVM_GET_CLOCK).
        """
        self.require(Cap.ADJUST_CLOCK)
        return self.fetch(Ioctl.GET_CLOCK, layout.CLOCK_DATA)

    def set_clock(self, clock: int | Record | np.void) -> None:
        """Set the guest's kvmclock, in ns, or from a whole CLOCK_DATA record (KVM_SET_CLOCK)."""
        self.require(Cap.ADJUST_CLOCK)
        if isinstance(clock, int):
            record = np.zeros((), layout.CLOCK_DATA)
            record["clock"] = clock
        else:
            record = record_of(clock, layout.CLOCK_DATA)
        self.exchange(Ioctl.SET_CLOCK, record)

    def stats_fd(self) -> StatsFd:
        """Open KVM's own counters for this VM (KVM_GET_STATS_FD)."""
        self.require(Cap.BINARY_STATS_FD)
        return self.adopt(StatsFd(self.call(Ioctl.GET_STATS_FD), "VM statistics"))

    def create_vcpu(self, vcpu_id: int = 0) -> Vcpu:
        """Create a vCPU and map its run area. `vcpu_id` is its APIC id too. Raises KvmError."""
        vcpu = Vcpu(self, self.call(Ioctl.CREATE_VCPU, vcpu_id), vcpu_id, self._vcpu_mmap_size)
        return self.adopt(vcpu)
