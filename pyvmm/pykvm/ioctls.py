"""Numbers of KVM's ioctls, built from direction, number and argument size as ``<asm-generic/ioctl.h>`` does.

The sizes, in bytes, are those of the structures in `pyvmm.pykvm.layout`, which is not imported for them.
"""

from __future__ import annotations

from enum import IntEnum

_KVMIO = 0xAE
_NONE, _WRITE, _READ, _BOTH = 0, 1, 2, 3
_QUAD = 8


def _number(direction: int, nr: int, size: int = 0) -> int:
    return direction << 30 | size << 16 | _KVMIO << 8 | nr


def _w(nr: int, size: int) -> int:
    return _number(_WRITE, nr, size)


def _r(nr: int, size: int) -> int:
    return _number(_READ, nr, size)


def _rw(nr: int, size: int) -> int:
    return _number(_BOTH, nr, size)


class Ioctl(IntEnum):
    """KVM's ioctls, by name without the ``KVM_`` prefix. On /dev/kvm first, then on a VM, then on a vCPU."""

    GET_API_VERSION = _number(_NONE, 0x00)
    CREATE_VM = _number(_NONE, 0x01)
    GET_MSR_INDEX_LIST = _rw(0x02, 4)
    CHECK_EXTENSION = _number(_NONE, 0x03)
    GET_VCPU_MMAP_SIZE = _number(_NONE, 0x04)
    GET_SUPPORTED_CPUID = _rw(0x05, 8)
    GET_EMULATED_CPUID = _rw(0x09, 8)
    GET_MSR_FEATURE_INDEX_LIST = _rw(0x0A, 4)

    CREATE_VCPU = _number(_NONE, 0x41)
    GET_DIRTY_LOG = _w(0x42, 16)
    SET_USER_MEMORY_REGION = _w(0x46, 32)
    SET_TSS_ADDR = _number(_NONE, 0x47)
    SET_IDENTITY_MAP_ADDR = _number(_WRITE, 0x48, _QUAD)
    CREATE_IRQCHIP = _number(_NONE, 0x60)
    IRQ_LINE = _w(0x61, 8)
    GET_IRQCHIP = _rw(0x62, 520)
    SET_IRQCHIP = _r(0x63, 520)
    IRQ_LINE_STATUS = _rw(0x67, 8)
    REGISTER_COALESCED_MMIO = _w(0x67, 16)
    UNREGISTER_COALESCED_MMIO = _w(0x68, 16)
    SET_GSI_ROUTING = _w(0x6A, 8)
    IRQFD = _w(0x76, 32)
    CREATE_PIT2 = _w(0x77, 64)
    SET_BOOT_CPU_ID = _number(_NONE, 0x78)
    IOEVENTFD = _w(0x79, 64)
    SET_CLOCK = _w(0x7B, 48)
    GET_CLOCK = _r(0x7C, 48)
    GET_PIT2 = _r(0x9F, 112)
    SET_PIT2 = _w(0xA0, 112)
    SIGNAL_MSI = _w(0xA5, 32)
    CLEAR_DIRTY_LOG = _rw(0xC0, 24)
    X86_SET_MSR_FILTER = _w(0xC6, 392)
    ENABLE_CAP = _w(0xA3, 104)
    GET_STATS_FD = _number(_NONE, 0xCE)

    RUN = _number(_NONE, 0x80)
    GET_REGS = _r(0x81, 144)
    SET_REGS = _w(0x82, 144)
    GET_SREGS = _r(0x83, 312)
    SET_SREGS = _w(0x84, 312)
    TRANSLATE = _rw(0x85, 24)
    INTERRUPT = _w(0x86, 4)
    GET_MSRS = _rw(0x88, 8)
    SET_MSRS = _w(0x89, 8)
    SET_SIGNAL_MASK = _w(0x8B, 4)
    GET_FPU = _r(0x8C, 416)
    SET_FPU = _w(0x8D, 416)
    GET_LAPIC = _r(0x8E, 1024)
    SET_LAPIC = _w(0x8F, 1024)
    SET_CPUID2 = _w(0x90, 8)
    GET_CPUID2 = _rw(0x91, 8)
    GET_MP_STATE = _r(0x98, 4)
    SET_MP_STATE = _w(0x99, 4)
    NMI = _number(_NONE, 0x9A)
    SET_GUEST_DEBUG = _w(0x9B, 72)
    GET_VCPU_EVENTS = _r(0x9F, 64)
    SET_VCPU_EVENTS = _w(0xA0, 64)
    GET_DEBUGREGS = _r(0xA1, 128)
    SET_DEBUGREGS = _w(0xA2, 128)
    SET_TSC_KHZ = _number(_NONE, 0xA2)
    GET_TSC_KHZ = _number(_NONE, 0xA3)
    GET_XSAVE = _r(0xA4, 4096)
    SET_XSAVE = _w(0xA5, 4096)
    GET_XCRS = _r(0xA6, 392)
    SET_XCRS = _w(0xA7, 392)
    KVMCLOCK_CTRL = _number(_NONE, 0xAD)
    GET_SREGS2 = _r(0xCC, 320)
    SET_SREGS2 = _w(0xCD, 320)
    GET_XSAVE2 = _r(0xCF, 4096)


# Plain numbers of the two that are made often: an enum member costs Python's ioctl a little more.
KVM_RUN = int(Ioctl.RUN)
KVM_IRQ_LINE = int(Ioctl.IRQ_LINE)
