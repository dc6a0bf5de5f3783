"""Numbers of KVM's ioctls, built from direction, number and argument size as ``<asm-generic/ioctl.h>`` does."""

from __future__ import annotations

from enum import IntEnum

from pyvmm.pykvm import layout

_KVMIO = 0xAE
_NONE, _WRITE, _READ, _BOTH = 0, 1, 2, 3
_QUAD = 8


def _number(direction: int, nr: int, size: int = 0) -> int:
    return direction << 30 | size << 16 | _KVMIO << 8 | nr


def _w(nr: int, argument: layout.DType) -> int:
    return _number(_WRITE, nr, argument.itemsize)


def _r(nr: int, argument: layout.DType) -> int:
    return _number(_READ, nr, argument.itemsize)


def _rw(nr: int, argument: layout.DType) -> int:
    return _number(_BOTH, nr, argument.itemsize)


class Ioctl(IntEnum):
    """KVM's ioctls, by name without the ``KVM_`` prefix. On /dev/kvm first, then on a VM, then on a vCPU."""

    GET_API_VERSION = _number(_NONE, 0x00)
    CREATE_VM = _number(_NONE, 0x01)
    GET_MSR_INDEX_LIST = _rw(0x02, layout.MSR_LIST)
    CHECK_EXTENSION = _number(_NONE, 0x03)
    GET_VCPU_MMAP_SIZE = _number(_NONE, 0x04)
    GET_SUPPORTED_CPUID = _rw(0x05, layout.CPUID2)
    GET_EMULATED_CPUID = _rw(0x09, layout.CPUID2)
    GET_MSR_FEATURE_INDEX_LIST = _rw(0x0A, layout.MSR_LIST)

    CREATE_VCPU = _number(_NONE, 0x41)
    GET_DIRTY_LOG = _w(0x42, layout.DIRTY_LOG)
    SET_USER_MEMORY_REGION = _w(0x46, layout.USERSPACE_MEMORY_REGION)
    SET_TSS_ADDR = _number(_NONE, 0x47)
    SET_IDENTITY_MAP_ADDR = _number(_WRITE, 0x48, _QUAD)
    CREATE_IRQCHIP = _number(_NONE, 0x60)
    IRQ_LINE = _w(0x61, layout.IRQ_LEVEL)
    GET_IRQCHIP = _rw(0x62, layout.IRQCHIP)
    SET_IRQCHIP = _r(0x63, layout.IRQCHIP)
    IRQ_LINE_STATUS = _rw(0x67, layout.IRQ_LEVEL)
    REGISTER_COALESCED_MMIO = _w(0x67, layout.COALESCED_MMIO_ZONE)
    UNREGISTER_COALESCED_MMIO = _w(0x68, layout.COALESCED_MMIO_ZONE)
    SET_GSI_ROUTING = _w(0x6A, layout.IRQ_ROUTING)
    IRQFD = _w(0x76, layout.IRQFD)
    CREATE_PIT2 = _w(0x77, layout.PIT_CONFIG)
    SET_BOOT_CPU_ID = _number(_NONE, 0x78)
    IOEVENTFD = _w(0x79, layout.IOEVENTFD)
    SET_CLOCK = _w(0x7B, layout.CLOCK_DATA)
    GET_CLOCK = _r(0x7C, layout.CLOCK_DATA)
    GET_PIT2 = _r(0x9F, layout.PIT_STATE2)
    SET_PIT2 = _w(0xA0, layout.PIT_STATE2)
    SIGNAL_MSI = _w(0xA5, layout.MSI)
    CLEAR_DIRTY_LOG = _rw(0xC0, layout.CLEAR_DIRTY_LOG)
    X86_SET_MSR_FILTER = _w(0xC6, layout.MSR_FILTER)
    ENABLE_CAP = _w(0xA3, layout.ENABLE_CAP)
    GET_STATS_FD = _number(_NONE, 0xCE)

    RUN = _number(_NONE, 0x80)
    GET_REGS = _r(0x81, layout.REGS)
    SET_REGS = _w(0x82, layout.REGS)
    GET_SREGS = _r(0x83, layout.SREGS)
    SET_SREGS = _w(0x84, layout.SREGS)
    TRANSLATE = _rw(0x85, layout.TRANSLATION)
    INTERRUPT = _w(0x86, layout.INTERRUPT)
    GET_MSRS = _rw(0x88, layout.MSRS)
    SET_MSRS = _w(0x89, layout.MSRS)
    SET_SIGNAL_MASK = _w(0x8B, layout.SIGNAL_MASK)
    GET_FPU = _r(0x8C, layout.FPU)
    SET_FPU = _w(0x8D, layout.FPU)
    GET_LAPIC = _r(0x8E, layout.LAPIC_STATE)
    SET_LAPIC = _w(0x8F, layout.LAPIC_STATE)
    SET_CPUID2 = _w(0x90, layout.CPUID2)
    GET_CPUID2 = _rw(0x91, layout.CPUID2)
    GET_MP_STATE = _r(0x98, layout.MP_STATE)
    SET_MP_STATE = _w(0x99, layout.MP_STATE)
    NMI = _number(_NONE, 0x9A)
    SET_GUEST_DEBUG = _w(0x9B, layout.GUEST_DEBUG)
    GET_VCPU_EVENTS = _r(0x9F, layout.VCPU_EVENTS)
    SET_VCPU_EVENTS = _w(0xA0, layout.VCPU_EVENTS)
    GET_DEBUGREGS = _r(0xA1, layout.DEBUGREGS)
    SET_DEBUGREGS = _w(0xA2, layout.DEBUGREGS)
    SET_TSC_KHZ = _number(_NONE, 0xA2)
    GET_TSC_KHZ = _number(_NONE, 0xA3)
    GET_XSAVE = _r(0xA4, layout.XSAVE)
    SET_XSAVE = _w(0xA5, layout.XSAVE)
    GET_XCRS = _r(0xA6, layout.XCRS)
    SET_XCRS = _w(0xA7, layout.XCRS)
    KVMCLOCK_CTRL = _number(_NONE, 0xAD)
    GET_SREGS2 = _r(0xCC, layout.SREGS2)
    SET_SREGS2 = _w(0xCD, layout.SREGS2)
    GET_XSAVE2 = _r(0xCF, layout.XSAVE)


# Plain numbers of the two that are made often: an enum member costs Python's ioctl a little more.
KVM_RUN = int(Ioctl.RUN)
KVM_IRQ_LINE = int(Ioctl.IRQ_LINE)
