"""Layouts of the structures that KVM's ioctls take, as NumPy dtypes, each written once.

A dtype made with ``align=True`` is laid out as a C compiler for x86-64 lays out the struct of that name in
``<linux/kvm.h>``. Unions are dtypes whose fields overlap. Structures that end in a flexible array are written as
their header alone. `STRUCTS` maps the C names to the dtypes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

U8, U16, U32, U64 = "u1", "<u2", "<u4", "<u8"
DType = np.dtype[np.void]


def _struct(*fields: tuple[Any, ...]) -> DType:
    return np.dtype(list(fields), align=True)


def _overlay(itemsize: int, /, **fields: tuple[int, Any]) -> DType:
    """Make a dtype from explicit offsets: the way to write a union, or to leave out what nobody reads."""
    formats = [np.dtype(kind) for _, kind in fields.values()]
    offsets = [offset for offset, _ in fields.values()]
    return np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": itemsize})


def _all(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


REGS = _struct(*_all(U64, "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"))
SEGMENT = _struct(
    ("base", U64), ("limit", U32), ("selector", U16), *_all(U8, "type present dpl db s l g avl unusable padding")
)
DTABLE = _struct(("base", U64), ("limit", U16), ("padding", U16, (3,)))
_SREGS_COMMON = [
    *_all(SEGMENT, "cs ds es fs gs ss tr ldt"),
    *_all(DTABLE, "gdt idt"),
    *_all(U64, "cr0 cr2 cr3 cr4 cr8 efer apic_base"),
]
SREGS = _struct(*_SREGS_COMMON, ("interrupt_bitmap", U64, (4,)))
SREGS2 = _struct(*_SREGS_COMMON, ("flags", U64), ("pdptrs", U64, (4,)))
FPU = _struct(
    ("fpr", U8, (8, 16)),
    *_all(U16, "fcw fsw"),
    *_all(U8, "ftwx pad1"),
    ("last_opcode", U16),
    *_all(U64, "last_ip last_dp"),
    ("xmm", U8, (16, 16)),
    *_all(U32, "mxcsr pad2"),
)
XSAVE = _struct(("region", U32, (1024,)))
XCR = _struct(*_all(U32, "xcr reserved"), ("value", U64))
XCRS = _struct(*_all(U32, "nr_xcrs flags"), ("xcrs", XCR, (16,)), ("padding", U64, (16,)))
DEBUGREGS = _struct(("db", U64, (4,)), *_all(U64, "dr6 dr7 flags"), ("reserved", U64, (9,)))
LAPIC_STATE = _struct(("regs", U8, (1024,)))
MP_STATE = _struct(("mp_state", U32))
VCPU_EVENTS = _struct(
    ("exception", _struct(*_all(U8, "injected nr has_error_code pending"), ("error_code", U32))),
    ("interrupt", _struct(*_all(U8, "injected nr soft shadow"))),
    ("nmi", _struct(*_all(U8, "injected pending masked pad"))),
    *_all(U32, "sipi_vector flags"),
    ("smi", _struct(*_all(U8, "smm pending smm_inside_nmi latched_init"))),
    ("triple_fault", _struct(("pending", U8))),
    ("reserved", U8, (26,)),
    ("exception_has_payload", U8),
    ("exception_payload", U64),
)
GUEST_DEBUG_ARCH = _struct(("debugreg", U64, (8,)))
GUEST_DEBUG = _struct(*_all(U32, "control pad"), ("arch", GUEST_DEBUG_ARCH))
DEBUG_EXIT_ARCH = _struct(*_all(U32, "exception pad"), *_all(U64, "pc dr6 dr7"))
TRANSLATION = _struct(
    *_all(U64, "linear_address physical_address"), *_all(U8, "valid writeable usermode"), ("pad", U8, (5,))
)
INTERRUPT = _struct(("irq", U32))
SIGNAL_MASK = _struct(("len", U32))
CPUID_ENTRY2 = _struct(*_all(U32, "function index flags eax ebx ecx edx"), ("padding", U32, (3,)))
CPUID2 = _struct(*_all(U32, "nent padding"))
MSR_ENTRY = _struct(*_all(U32, "index reserved"), ("data", U64))
MSRS = _struct(*_all(U32, "nmsrs pad"))
MSR_LIST = _struct(("nmsrs", U32))

USERSPACE_MEMORY_REGION = _struct(*_all(U32, "slot flags"), *_all(U64, "guest_phys_addr memory_size userspace_addr"))
DIRTY_LOG = _struct(*_all(U32, "slot padding1"), ("dirty_bitmap", U64))
CLEAR_DIRTY_LOG = _struct(*_all(U32, "slot num_pages"), *_all(U64, "first_page dirty_bitmap"))
IRQ_LEVEL = _overlay(8, irq=(0, U32), status=(0, "<i4"), level=(4, U32))
PIC_STATE = _struct(
    *_all(U8, "last_irr irr imr isr priority_add irq_base read_reg_select poll special_mask init_state"),
    *_all(U8, "auto_eoi rotate_on_auto_eoi special_fully_nested_mode init4 elcr elcr_mask"),
)
IOAPIC_STATE = _struct(("base_address", U64), *_all(U32, "ioregsel id irr pad"), ("redirtbl", U64, (24,)))
_CHIP = _overlay(512, dummy=(0, (U8, (512,))), pic=(0, PIC_STATE), ioapic=(0, IOAPIC_STATE))
IRQCHIP = _struct(*_all(U32, "chip_id pad"), ("chip", _CHIP))
PIT_CONFIG = _struct(("flags", U32), ("pad", U32, (15,)))
PIT_CHANNEL_STATE = _struct(
    ("count", U32),
    ("latched_count", U16),
    *_all(U8, "count_latched status_latched status read_state write_state write_latch rw_mode mode bcd gate"),
    ("count_load_time", "<i8"),
)
PIT_STATE2 = _struct(("channels", PIT_CHANNEL_STATE, (3,)), ("flags", U32), ("reserved", U32, (9,)))
IRQ_ROUTING_IRQCHIP = _struct(*_all(U32, "irqchip pin"))
IRQ_ROUTING_MSI = _overlay(16, address_lo=(0, U32), address_hi=(4, U32), data=(8, U32), pad=(12, U32), devid=(12, U32))
IRQ_ROUTING_ENTRY = _struct(
    *_all(U32, "gsi type flags pad"),
    ("u", _overlay(32, pad=(0, (U32, (8,))), irqchip=(0, IRQ_ROUTING_IRQCHIP), msi=(0, IRQ_ROUTING_MSI))),
)
# The union of the C struct is aligned to 8 bytes, which changes nothing but the alignment of the whole.
IRQ_ROUTING = _struct(*_all(U32, "nr flags"))
IRQFD = _struct(*_all(U32, "fd gsi flags resamplefd"), ("pad", U8, (16,)))
MSI = _struct(*_all(U32, "address_lo address_hi data flags devid"), ("pad", U8, (12,)))
IOEVENTFD = _struct(*_all(U64, "datamatch addr"), ("len", U32), ("fd", "<i4"), ("flags", U32), ("pad", U8, (36,)))
COALESCED_MMIO_ZONE = _overlay(16, addr=(0, U64), size=(8, U32), pad=(12, U32), pio=(12, U32))
COALESCED_MMIO = _overlay(24, phys_addr=(0, U64), len=(8, U32), pad=(12, U32), pio=(12, U32), data=(16, (U8, (8,))))
COALESCED_MMIO_RING = _struct(*_all(U32, "first last"))
CLOCK_DATA = _struct(("clock", U64), *_all(U32, "flags pad0"), *_all(U64, "realtime host_tsc"), ("pad", U32, (4,)))
ENABLE_CAP = _struct(*_all(U32, "cap flags"), ("args", U64, (4,)), ("pad", U8, (64,)))
MSR_FILTER_RANGE = _struct(*_all(U32, "flags nmsrs base"), ("bitmap", U64))
MSR_FILTER = _struct(("flags", U32), ("ranges", MSR_FILTER_RANGE, (16,)))

STATS_HEADER = _struct(*_all(U32, "flags name_size num_desc id_offset desc_offset data_offset"))
STATS_DESC = _struct(("flags", U32), ("exponent", "<i2"), ("size", U16), *_all(U32, "offset bucket_size"))

SYNC_REGS = _struct(("regs", REGS), ("sregs", SREGS), ("events", VCPU_EVENTS))
_EXIT = 32
RUN = _overlay(
    2352,
    request_interrupt_window=(0, U8),
    immediate_exit=(1, U8),
    exit_reason=(8, U32),
    ready_for_interrupt_injection=(12, U8),
    if_flag=(13, U8),
    flags=(14, U16),
    cr8=(16, U64),
    apic_base=(24, U64),
    hw=(_EXIT, _struct(("hardware_exit_reason", U64))),
    fail_entry=(_EXIT, _struct(("hardware_entry_failure_reason", U64), ("cpu", U32))),
    ex=(_EXIT, _struct(*_all(U32, "exception error_code"))),
    io=(_EXIT, _struct(*_all(U8, "direction size"), ("port", U16), ("count", U32), ("data_offset", U64))),
    debug=(_EXIT, _struct(("arch", DEBUG_EXIT_ARCH))),
    mmio=(_EXIT, _struct(("phys_addr", U64), ("data", U8, (8,)), ("len", U32), ("is_write", U8))),
    hypercall=(_EXIT, _struct(("nr", U64), ("args", U64, (6,)), ("ret", U64), ("longmode", U32))),
    tpr_access=(_EXIT, _struct(("rip", U64), *_all(U32, "is_write pad"))),
    internal=(_EXIT, _struct(*_all(U32, "suberror ndata"), ("data", U64, (16,)))),
    emulation_failure=(
        _EXIT,
        _struct(*_all(U32, "suberror ndata"), ("flags", U64), ("insn_size", U8), ("insn_bytes", U8, (15,))),
    ),
    system_event=(_EXIT, _struct(*_all(U32, "type ndata"), ("data", U64, (16,)))),
    eoi=(_EXIT, _struct(("vector", U8))),
    msr=(_EXIT, _struct(("error", U8), ("pad", U8, (7,)), *_all(U32, "reason index"), ("data", U64))),
    notify=(_EXIT, _struct(("flags", U32))),
    kvm_valid_regs=(288, U64),
    kvm_dirty_regs=(296, U64),
    s=(304, _overlay(2048, regs=(0, SYNC_REGS))),
)

STRUCTS: dict[str, DType] = {
    f"kvm_{name.lower()}": value
    for name, value in globals().items()
    if isinstance(value, np.dtype) and not name.startswith("_")
}


def offset_of(struct: DType, path: str) -> int:
    """Return the offset in bytes of a field, given its dotted path: ``offset_of(RUN, "io.port")``."""
    offset = 0
    for name in path.split("."):
        fields = struct.fields
        if fields is None:
            raise KeyError(path)
        struct, at = fields[name][:2]
        offset += at
    return offset
