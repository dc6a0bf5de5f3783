"""Errors of the KVM binding: what failed, with which errno, and what that errno means for that ioctl.

The meanings condense the "Errors" tables of the kernel's Documentation/virt/kvm/api.rst; an errno that is not in the
table falls back to the C library's text.
"""

from __future__ import annotations

import os
from errno import (
    E2BIG,
    EAGAIN,
    EBADF,
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    EIO,
    EMFILE,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOTTY,
    ENXIO,
    EPERM,
    errorcode,
)

from pyvmm.errors import HostError, PyvmmError

_GENERIC: dict[int, str] = {
    ENOTTY: "this KVM does not know the call, or the descriptor is not of the kind that takes it",
    EFAULT: "the kernel cannot reach the memory that an argument points to",
    ENOMEM: "the kernel is out of memory for this VM",
    EPERM: "this process may not do that; is the VM owned by another process (KVM wants the one that created it)?",
    EIO: "KVM has marked the VM as dead, or the VM belongs to another process; close it and create a new one",
    EMFILE: "too many open files: raise the limit (ulimit -n) or close some",
}

_MEANINGS: dict[tuple[str, int], str] = {
    ("CREATE_VM", EINVAL): "this KVM does not offer that machine type",
    ("CREATE_VM", EBUSY): "another hypervisor uses the virtualization hardware; unload it first",
    ("CREATE_VM", ENODEV): "the CPU's virtualization is disabled by firmware",
    ("CREATE_VCPU", EEXIST): "a vCPU with this id exists already",
    ("CREATE_VCPU", EINVAL): "the id is past KVM_CAP_MAX_VCPU_ID, or the VM has all the vCPUs it may have",
    ("GET_SUPPORTED_CPUID", E2BIG): "the buffer has room for too few entries",
    ("GET_EMULATED_CPUID", E2BIG): "the buffer has room for too few entries",
    ("GET_MSR_INDEX_LIST", E2BIG): "the buffer has room for too few indices",
    ("SET_USER_MEMORY_REGION", EINVAL): (
        "address or size is not page aligned, the slot number is too large, a flag is unknown, "
        "or a live slot would change its size or memory"
    ),
    ("SET_USER_MEMORY_REGION", EEXIST): "the slot overlaps another slot's guest-physical range",
    ("SET_USER_MEMORY_REGION", ENOENT): "the slot to delete does not exist",
    ("SET_TSS_ADDR", EINVAL): "the three pages must lie below 4 GiB",
    ("SET_IDENTITY_MAP_ADDR", EINVAL): "the address must be set before the first vCPU is created",
    ("CREATE_IRQCHIP", EEXIST): "the VM has an interrupt controller already",
    ("CREATE_IRQCHIP", EINVAL): "the interrupt controller must be created before the first vCPU",
    ("CREATE_PIT2", EEXIST): "the VM has a PIT already",
    ("CREATE_PIT2", ENOENT): "the PIT needs the in-kernel interrupt controller: create it first",
    ("IRQ_LINE", ENXIO): "the VM has no in-kernel interrupt controller",
    ("IRQ_LINE_STATUS", ENXIO): "the VM has no in-kernel interrupt controller",
    ("GET_IRQCHIP", ENXIO): "the VM has no in-kernel PIC and I/O APIC",
    ("SET_IRQCHIP", ENXIO): "the VM has no in-kernel PIC and I/O APIC",
    ("GET_PIT2", ENXIO): "the VM has no in-kernel PIT",
    ("SET_PIT2", ENXIO): "the VM has no in-kernel PIT",
    ("SIGNAL_MSI", EINVAL): "the VM has no in-kernel local APIC, or a flag is unknown",
    ("SET_GSI_ROUTING", EINVAL): "a route names an unknown type, chip, pin or GSI, or there are too many routes",
    ("IRQFD", EINVAL): "the GSI is too large, a flag is unknown, or the VM has no interrupt controller to route to",
    ("IRQFD", EBUSY): "the eventfd is bound to a GSI already",
    ("IRQFD", EBADF): "not an open eventfd",
    ("IOEVENTFD", EEXIST): "this address, length and match value have an eventfd already",
    ("IOEVENTFD", ENOENT): "no such registration: address, length, match value and eventfd must be the same",
    ("IOEVENTFD", EINVAL): "the length must be 0, 1, 2, 4 or 8, and the descriptor an eventfd",
    ("IOEVENTFD", ENOSPC): "the VM has no room for more devices on that bus",
    ("REGISTER_COALESCED_MMIO", ENOSPC): "the VM has no room for more coalesced zones",
    ("GET_DIRTY_LOG", ENOENT): "the slot does not exist or is not dirty-logged (KVM_MEM_LOG_DIRTY_PAGES)",
    ("CLEAR_DIRTY_LOG", ENOENT): "the slot does not exist or is not dirty-logged (KVM_MEM_LOG_DIRTY_PAGES)",
    ("CLEAR_DIRTY_LOG", EINVAL): "the first page must be a multiple of 64, and the count too, unless it ends the slot",
    ("ENABLE_CAP", EINVAL): "an argument is out of range, or it came too late (vCPUs exist)",
    ("ENABLE_CAP", EEXIST): "it came too late: the VM has vCPUs or an interrupt controller already",
    ("X86_SET_MSR_FILTER", EINVAL): "a flag is unknown, a range is too long, or all is denied by default with no range",
    ("RUN", EFAULT): "the memory behind a slot is gone (unmapped, or its file was truncated)",
    ("RUN", ENOMEM): "the kernel is out of memory for this VM",
    ("RUN", EINVAL): "the vCPU's state cannot be entered: check the dirty sync registers",
    ("RUN", EIO): "the VM is dead, or it was created by another process",
    ("SET_SREGS", EINVAL): "CR0, CR4, EFER or APIC base hold a combination that this CPU does not allow",
    ("SET_SREGS2", EINVAL): "CR0, CR4, EFER or APIC base hold a combination that this CPU does not allow",
    ("SET_XSAVE", EINVAL): "the area enables features or MXCSR bits that the host does not have",
    ("SET_XCRS", EINVAL): "XCR0 enables features that this vCPU's CPUID does not offer",
    ("SET_CPUID2", EINVAL): "the entries do not fit together, or they change after the vCPU has run",
    ("SET_CPUID2", E2BIG): "too many CPUID entries",
    ("GET_CPUID2", E2BIG): "the buffer has room for too few entries",
    ("GET_LAPIC", EINVAL): "the VM has no in-kernel local APIC",
    ("SET_LAPIC", EINVAL): "the VM has no in-kernel local APIC, or the APIC id is not the vCPU's",
    ("GET_MP_STATE", EINVAL): "the VM has no in-kernel local APIC",
    ("SET_MP_STATE", EINVAL): "this state needs an in-kernel local APIC, or x86 does not have it",
    ("SET_VCPU_EVENTS", EINVAL): "a flag is unknown or an exception number is past 31",
    ("SET_DEBUGREGS", EINVAL): "DR6 or DR7 has bits above 31, or a flag is set",
    ("SET_GUEST_DEBUG", EBUSY): "an exception is pending, so another cannot be injected",
    ("INTERRUPT", ENXIO): "the VM has an in-kernel interrupt controller, so interrupts are raised there",
    ("INTERRUPT", EINVAL): "the vector is past 255",
    ("INTERRUPT", EEXIST): "an interrupt that the split controller has not taken yet is queued already",
    ("NMI", EINVAL): "the VM has an in-kernel local APIC in a state that takes no NMI",
    ("SET_TSC_KHZ", EINVAL): "this CPU cannot scale its time stamp counter to that frequency",
    ("GET_TSC_KHZ", EIO): "the host's time stamp counter is unstable",
    ("KVMCLOCK_CTRL", EINVAL): "the guest has not set up its kvmclock",
    ("SET_SIGNAL_MASK", EINVAL): "the signal set must be 8 bytes",
    ("RUN", EAGAIN): "the vCPU was started by another one and is ready now: run it again",
}


def from_handler(error: BaseException) -> bool:
    """Tell whether a Python signal handler raised this during an ioctl, rather than the ioctl itself.

    Handlers run inside an interrupted ioctl, and what they raise may be an OSError too (TimeoutError is one). The
    ioctl is not Python code, so an error of its own has no frame below the caller's.
    """
    trace = error.__traceback__
    return trace is not None and trace.tb_next is not None


class KvmError(PyvmmError, OSError):
    """A KVM ioctl failed.

    Attributes:
        errno: the error number.
        ioctl: the ioctl's name, such as ``KVM_SET_SREGS``.
        meaning: what this errno says about this ioctl.
    """

    def __init__(self, ioctl: str, errno: int, meaning: str | None = None) -> None:
        short = ioctl.removeprefix("KVM_")
        if meaning is None:
            meaning = _MEANINGS.get((short, errno)) or _GENERIC.get(errno) or os.strerror(errno)
        super().__init__(errno, meaning)
        self.ioctl = "KVM_" + short
        self.meaning = meaning

    def __str__(self) -> str:
        return f"{self.ioctl}: {errorcode.get(self.errno or 0, self.errno)}: {self.meaning}"


class MsrError(KvmError):
    """KVM refused one model-specific register of a list; those before it were transferred.

    Attributes:
        index: the register's number.
        done: how many registers of the list were transferred.
    """

    def __init__(self, ioctl: str, index: int, done: int) -> None:
        meaning = (
            f"MSR {index:#x} is unknown to this KVM and CPUID, or its value is refused; {done} before it were done"
        )
        super().__init__(ioctl, EINVAL, meaning)
        self.index = index
        self.done = done


class MissingCapability(HostError):
    """This host's KVM lacks a capability.

    Attributes:
        capability: its name, such as ``KVM_CAP_SYNC_REGS``.
    """

    def __init__(self, capability: str) -> None:
        super().__init__(f"this host's KVM lacks {capability}: a newer kernel or another KVM module may have it")
        self.capability = capability


class KvmUnavailable(HostError):
    """The KVM device cannot be used on this host.

    Attributes:
        path: the device that was tried.
        errno: why opening failed, or None when it opened but is not the KVM that pyvmm speaks to.
    """

    def __init__(self, message: str, path: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.errno = errno


class ClosedError(PyvmmError):
    """A KVM object is used after it was closed.

    Attributes:
        what: the object, such as ``vCPU 0``.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is closed: create a new one")
        self.what = what
