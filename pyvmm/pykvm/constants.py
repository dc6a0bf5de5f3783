"""Constants of KVM's interface, named as in ``<linux/kvm.h>`` less the prefix of each enum."""

from __future__ import annotations

from enum import IntEnum, IntFlag

API_VERSION = 12
PIO_PAGE_OFFSET = 1
COALESCED_MMIO_PAGE_OFFSET = 2
MSR_FILTER_MAX_RANGES = 16
MSR_FILTER_MAX_BITMAP_BYTES = 0x600
IO_IN, IO_OUT = 0, 1


class ExitReason(IntEnum):
    """Why KVM_RUN returned: ``kvm_run.exit_reason`` (KVM_EXIT_*)."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    WATCHDOG = 21
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    HYPERV = 27
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    AP_RESET_HOLD = 32
    X86_BUS_LOCK = 33
    XEN = 34
    NOTIFY = 37
    MEMORY_FAULT = 39


class Cap(IntEnum):
    """Capabilities to ask KVM_CHECK_EXTENSION for (KVM_CAP_*); those of other architectures are left out."""

    IRQCHIP = 0
    HLT = 1
    MMU_SHADOW_CACHE_CONTROL = 2
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    VAPIC = 6
    EXT_CPUID = 7
    CLOCKSOURCE = 8
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    PIT = 11
    NOP_IO_DELAY = 12
    MP_STATE = 14
    COALESCED_MMIO = 15
    SYNC_MMU = 16
    DESTROY_MEMORY_REGION_WORKS = 21
    USER_NMI = 22
    SET_GUEST_DEBUG = 23
    REINJECT_CONTROL = 24
    IRQ_ROUTING = 25
    IRQ_INJECT_STATUS = 26
    JOIN_MEMORY_REGIONS_WORKS = 30
    MCE = 31
    IRQFD = 32
    PIT2 = 33
    SET_BOOT_CPU_ID = 34
    PIT_STATE2 = 35
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    XEN_HVM = 38
    ADJUST_CLOCK = 39
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    PCI_SEGMENT = 47
    INTR_SHADOW = 49
    DEBUGREGS = 50
    X86_ROBUST_SINGLESTEP = 51
    ENABLE_CAP = 54
    XSAVE = 55
    XCRS = 56
    ASYNC_PF = 59
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    ONE_REG = 70
    TSC_DEADLINE_TIMER = 72
    SYNC_REGS = 74
    KVMCLOCK_CTRL = 76
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    IRQFD_RESAMPLE = 82
    DEVICE_CTRL = 89
    EXT_EMUL_CPUID = 95
    IOAPIC_POLARITY_IGNORED = 97
    ENABLE_CAP_VM = 98
    IOEVENTFD_NO_LENGTH = 100
    VM_ATTRIBUTES = 101
    CHECK_EXTENSION_VM = 105
    DISABLE_QUIRKS = 116
    X86_SMM = 117
    MULTI_ADDRESS_SPACE = 118
    GUEST_DEBUG_HW_BPS = 119
    GUEST_DEBUG_HW_WPS = 120
    SPLIT_IRQCHIP = 121
    IOEVENTFD_ANY_LENGTH = 122
    VCPU_ATTRIBUTES = 127
    MAX_VCPU_ID = 128
    X2APIC_API = 129
    IMMEDIATE_EXIT = 136
    X86_DISABLE_EXITS = 143
    GET_MSR_FEATURES = 153
    NESTED_STATE = 157
    MSR_PLATFORM_INFO = 159
    COALESCED_PIO = 162
    EXCEPTION_PAYLOAD = 164
    MANUAL_DIRTY_LOG_PROTECT = 166
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    PMU_EVENT_FILTER = 173
    HALT_POLL = 182
    ASYNC_PF_INT = 183
    LAST_CPU = 184
    SMALLER_MAXPHYADDR = 185
    STEAL_TIME = 187
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189
    ENFORCE_PV_FEATURE_CPUID = 190
    DIRTY_LOG_RING = 192
    X86_BUS_LOCK_EXIT = 193
    SET_GUEST_DEBUG2 = 195
    VM_COPY_ENC_CONTEXT_FROM = 197
    SREGS2 = 200
    EXIT_HYPERCALL = 201
    BINARY_STATS_FD = 203
    EXIT_ON_EMULATION_FAILURE = 204
    VM_MOVE_ENC_CONTEXT_FROM = 206
    VM_GPA_BITS = 207
    XSAVE2 = 208
    SYS_ATTRIBUTES = 209
    PMU_CAPABILITY = 212
    DISABLE_QUIRKS2 = 213
    VM_TSC_CONTROL = 214
    SYSTEM_EVENT_DATA = 215
    X86_TRIPLE_FAULT_EVENT = 218
    X86_NOTIFY_VMEXIT = 219
    VM_DISABLE_NX_HUGE_PAGES = 220
    DIRTY_LOG_RING_ACQ_REL = 223
    USER_MEMORY2 = 231
    MEMORY_FAULT_INFO = 232
    MEMORY_ATTRIBUTES = 233
    GUEST_MEMFD = 234
    VM_TYPES = 235
    PRE_FAULT_MEMORY = 236
    X86_APIC_BUS_CYCLES_NS = 237


class InternalError(IntEnum):
    """``kvm_run.internal.suberror`` of Exit.INTERNAL_ERROR (KVM_INTERNAL_ERROR_*)."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


class SystemEvent(IntEnum):
    """``kvm_run.system_event.type`` of Exit.SYSTEM_EVENT (KVM_SYSTEM_EVENT_*)."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5
    SEV_TERM = 6


class MpState(IntEnum):
    """What a vCPU is doing (KVM_MP_STATE_*)."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4
    STOPPED = 5
    AP_RESET_HOLD = 9


class MemFlag(IntFlag):
    """Flags of a memory slot (KVM_MEM_*)."""

    LOG_DIRTY_PAGES = 1
    READONLY = 2


class GuestDebug(IntFlag):
    """Control bits of KVM_SET_GUEST_DEBUG (KVM_GUESTDBG_*)."""

    ENABLE = 0x1
    SINGLESTEP = 0x2
    USE_SW_BP = 0x10000
    USE_HW_BP = 0x20000
    INJECT_DB = 0x40000
    INJECT_BP = 0x80000
    BLOCKIRQ = 0x100000


class Sync(IntFlag):
    """Register classes that live in kvm_run (KVM_SYNC_X86_*)."""

    REGS = 1
    SREGS = 2
    EVENTS = 4


class EventsValid(IntFlag):
    """Which parts of kvm_vcpu_events a set is to take (KVM_VCPUEVENT_VALID_*)."""

    NMI_PENDING = 0x1
    SIPI_VECTOR = 0x2
    SHADOW = 0x4
    SMM = 0x8
    PAYLOAD = 0x10
    TRIPLE_FAULT = 0x20


class CpuidFlag(IntFlag):
    """Flags of a CPUID entry (KVM_CPUID_FLAG_*)."""

    SIGNIFCANT_INDEX = 1
    STATEFUL_FUNC = 2
    STATE_READ_NEXT = 4


class Irqchip(IntEnum):
    """Chips of the in-kernel interrupt controller (KVM_IRQCHIP_*)."""

    PIC_MASTER = 0
    PIC_SLAVE = 1
    IOAPIC = 2


class RouteType(IntEnum):
    """Kinds of GSI routes (KVM_IRQ_ROUTING_*)."""

    IRQCHIP = 1
    MSI = 2


class IrqfdFlag(IntFlag):
    """Flags of KVM_IRQFD (KVM_IRQFD_FLAG_*)."""

    DEASSIGN = 1
    RESAMPLE = 2


class IoeventfdFlag(IntFlag):
    """Flags of KVM_IOEVENTFD (KVM_IOEVENTFD_FLAG_*)."""

    DATAMATCH = 1
    PIO = 2
    DEASSIGN = 4


class ClockFlag(IntFlag):
    """Flags of kvm_clock_data (KVM_CLOCK_*)."""

    TSC_STABLE = 2
    REALTIME = 4
    HOST_TSC = 8


class PitFlag(IntFlag):
    """Flags of KVM_CREATE_PIT2 (KVM_PIT_*)."""

    SPEAKER_DUMMY = 1


class MsrExit(IntFlag):
    """Why an MSR access exits, and the argument of KVM_CAP_X86_USER_SPACE_MSR (KVM_MSR_EXIT_REASON_*)."""

    INVAL = 1
    UNKNOWN = 2
    FILTER = 4


class MsrFilterFlag(IntFlag):
    """Which accesses a range of an MSR filter is about (KVM_MSR_FILTER_*)."""

    READ = 1
    WRITE = 2


class DirtyLogFlag(IntFlag):
    """Argument of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (KVM_DIRTY_LOG_*)."""

    MANUAL_PROTECT_ENABLE = 1
    INITIALLY_SET = 2


class DisableExits(IntFlag):
    """Argument of KVM_CAP_X86_DISABLE_EXITS (KVM_X86_DISABLE_EXITS_*)."""

    MWAIT = 1
    HLT = 2
    PAUSE = 4
    CSTATE = 8


def name_of(enum: type[IntEnum], value: int) -> str:
    """Return the name of a constant, or the number as text when this table does not know it."""
    try:
        return enum(value).name
    except ValueError:
        return str(value)


# How each enum's members are called in <linux/kvm.h>.
PREFIXES: dict[type[IntEnum] | type[IntFlag], str] = {
    ExitReason: "KVM_EXIT_",
    Cap: "KVM_CAP_",
    InternalError: "KVM_INTERNAL_ERROR_",
    SystemEvent: "KVM_SYSTEM_EVENT_",
    MpState: "KVM_MP_STATE_",
    MemFlag: "KVM_MEM_",
    GuestDebug: "KVM_GUESTDBG_",
    Sync: "KVM_SYNC_X86_",
    EventsValid: "KVM_VCPUEVENT_VALID_",
    CpuidFlag: "KVM_CPUID_FLAG_",
    Irqchip: "KVM_IRQCHIP_",
    RouteType: "KVM_IRQ_ROUTING_",
    IrqfdFlag: "KVM_IRQFD_FLAG_",
    IoeventfdFlag: "KVM_IOEVENTFD_FLAG_",
    ClockFlag: "KVM_CLOCK_",
    PitFlag: "KVM_PIT_",
    MsrExit: "KVM_MSR_EXIT_REASON_",
    MsrFilterFlag: "KVM_MSR_FILTER_",
    DirtyLogFlag: "KVM_DIRTY_LOG_",
    DisableExits: "KVM_X86_DISABLE_EXITS_",
}
