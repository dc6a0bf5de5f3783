"""Between `CpuState` and KVM's register structures, as bytes: a start must not pay for NumPy."""

from __future__ import annotations

from operator import attrgetter
from struct import Struct

from pyvmm.engine.state import CONTROL, GENERAL, SEGMENTS, CpuState, DescriptorTable, Segment
from pyvmm.pykvm import Vcpu
from pyvmm.pykvm.ioctls import Ioctl
from pyvmm.pykvm.run_area import QUAD_CR8

_REGS = Struct("<18Q")
_SEGMENT = Struct("<QIH9Bx")
_TABLE = Struct("<QH6x")
_CONTROL = Struct("<7Q")
_TABLES_AT = len(SEGMENTS) * _SEGMENT.size
_CONTROL_AT = _TABLES_AT + 2 * _TABLE.size
_SREGS_SIZE = _CONTROL_AT + _CONTROL.size + 32  # behind them lies the bitmap of pending interrupts
_TABLES = ("gdt", "idt")
_SEGMENT_FIELDS = attrgetter(*Segment.__slots__)


def read_state(vcpu: Vcpu) -> CpuState:
    """Read the general, segment and control registers of a vCPU that is not running."""
    state = CpuState()
    for name, value in zip(GENERAL, _REGS.unpack(vcpu.fetch_bytes(Ioctl.GET_REGS, _REGS.size)), strict=True):
        setattr(state, name, value)
    sregs = vcpu.fetch_bytes(Ioctl.GET_SREGS, _SREGS_SIZE)
    for name, fields in zip(SEGMENTS, _SEGMENT.iter_unpack(sregs[:_TABLES_AT]), strict=True):
        setattr(state, name, Segment(*fields))
    for name, fields in zip(_TABLES, _TABLE.iter_unpack(sregs[_TABLES_AT:_CONTROL_AT]), strict=True):
        setattr(state, name, DescriptorTable(*fields))
    for name, value in zip(CONTROL, _CONTROL.unpack_from(sregs, _CONTROL_AT), strict=True):
        setattr(state, name, value)
    return state


def read_rflags(vcpu: Vcpu) -> int:
    """Read RFLAGS of a vCPU that is not running."""
    values: tuple[int, ...] = _REGS.unpack(vcpu.fetch_bytes(Ioctl.GET_REGS, _REGS.size))
    return values[GENERAL.index("rflags")]


def write_state(vcpu: Vcpu, state: CpuState) -> None:
    """Replace the registers of a vCPU that is not running; a pending external interrupt stays pending.

    Raises:
        KvmError: KVM refuses the combination (as EFER.LMA without CR0.PG).
    """
    sregs = vcpu.fetch_bytes(Ioctl.GET_SREGS, _SREGS_SIZE)
    for number, name in enumerate(SEGMENTS):
        _SEGMENT.pack_into(sregs, number * _SEGMENT.size, *_SEGMENT_FIELDS(getattr(state, name)))
    for number, name in enumerate(_TABLES):
        table = getattr(state, name)
        _TABLE.pack_into(sregs, _TABLES_AT + number * _TABLE.size, table.base, table.limit)
    _CONTROL.pack_into(sregs, _CONTROL_AT, *(getattr(state, name) for name in CONTROL))
    vcpu.exchange(Ioctl.SET_SREGS, sregs)
    # Without in-kernel LAPIC, KVM_RUN takes CR8 from the run area (KVM API, section 5).
    vcpu.quads[QUAD_CR8] = state.cr8
    vcpu.exchange(Ioctl.SET_REGS, bytearray(_REGS.pack(*(getattr(state, name) for name in GENERAL))))
