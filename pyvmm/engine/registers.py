"""Between `CpuState` and KVM's register structures."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pyvmm.engine.state import CONTROL, GENERAL, SEGMENTS, CpuState, DescriptorTable, Segment
from pyvmm.pykvm import Vcpu

_SEGMENT_FIELDS = tuple(field.name for field in fields(Segment))
_TABLES = ("gdt", "idt")


def read_state(vcpu: Vcpu) -> CpuState:
    """Read the general, segment and control registers of a vCPU that is not running."""
    regs, sregs = vcpu.regs(), vcpu.sregs()
    values: dict[str, Any] = {name: int(regs[name]) for name in GENERAL}
    values |= {name: int(sregs[name]) for name in CONTROL}
    for name in SEGMENTS:
        record = sregs[name]
        values[name] = Segment(**{field: int(record[field]) for field in _SEGMENT_FIELDS})
    for name in _TABLES:
        values[name] = DescriptorTable(int(sregs[name]["base"]), int(sregs[name]["limit"]))
    return CpuState(**values)


def write_state(vcpu: Vcpu, state: CpuState) -> None:
    """Replace the registers of a vCPU that is not running; a pending external interrupt stays pending.

    Raises:
        KvmError: KVM refuses the combination (as EFER.LMA without CR0.PG).
    """
    sregs = vcpu.sregs()
    for name in CONTROL:
        sregs[name] = getattr(state, name)
    for name in SEGMENTS:
        segment, record = getattr(state, name), sregs[name]
        for field in _SEGMENT_FIELDS:
            record[field] = getattr(segment, field)
    for name in _TABLES:
        table, record = getattr(state, name), sregs[name]
        record["base"], record["limit"] = table.base, table.limit
    vcpu.set_sregs(sregs)
    # Without in-kernel LAPIC, KVM_RUN takes CR8 from the run area (KVM API, section 5).
    vcpu.run_record["cr8"] = state.cr8
    regs = vcpu.regs()
    for name in GENERAL:
        regs[name] = getattr(state, name)
    vcpu.set_regs(regs)
