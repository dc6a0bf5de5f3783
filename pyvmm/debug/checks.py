"""Consistency of a vCPU state: combinations that no CPU can be in, and that make an entry fail."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.engine.state import CpuState

_CR0_PE, _CR0_NW, _CR0_CD, _CR0_PG = 1 << 0, 1 << 29, 1 << 30, 1 << 31
_CR4_PAE, _CR4_PCIDE, _CR4_LA57 = 1 << 5, 1 << 17, 1 << 12
_LME, _LMA = 1 << 8, 1 << 10
_RFLAGS_FIXED, _RFLAGS_VM = 1 << 1, 1 << 17
_RFLAGS_RESERVED = ~((1 << 22) - 1) | 1 << 15 | 1 << 5 | 1 << 3
_BUSY_TSS = (3, 11)

Rule = tuple[Callable[[CpuState], bool], str]

# SDM vol. 3, "Checks on the Guest State Area"; APM vol. 2 section 15.5.1, "Canonicalization and Consistency Checks".
_RULES: tuple[Rule, ...] = (
    (lambda s: bool(s.cr0 & _CR0_PG and not s.cr0 & _CR0_PE), "CR0.PG is set without CR0.PE"),
    (lambda s: bool(s.cr0 & _CR0_NW and not s.cr0 & _CR0_CD), "CR0.NW is set without CR0.CD"),
    (lambda s: bool(s.cr0 >> 32), "CR0 has bits above 31"),
    (
        lambda s: bool(s.efer & _LME and s.cr0 & _CR0_PG) != bool(s.efer & _LMA),
        "EFER.LMA is not what EFER.LME and CR0.PG make it",
    ),
    (
        lambda s: bool(s.efer & _LME and s.cr0 & _CR0_PG and not s.cr4 & _CR4_PAE),
        "paging in long mode without CR4.PAE",
    ),
    (lambda s: bool(s.cr4 & _CR4_PCIDE and not s.efer & _LMA), "CR4.PCIDE is set outside long mode"),
    (lambda s: bool(s.efer & _LMA and s.cs.l and s.cs.db), "CS has both L and D set in long mode"),
    (lambda s: bool(s.efer & _LMA and s.rflags & _RFLAGS_VM), "RFLAGS.VM is set in long mode"),
    (lambda s: not s.rflags & _RFLAGS_FIXED, "RFLAGS bit 1 is clear"),
    (lambda s: bool(s.rflags & _RFLAGS_RESERVED), "RFLAGS has reserved bits set"),
    (
        lambda s: bool(s.cr0 & _CR0_PE) and (bool(s.tr.unusable) or s.tr.type not in _BUSY_TSS),
        "TR holds no busy TSS, which an entry in protected or long mode needs",
    ),
    (lambda s: bool(s.cr0 & _CR0_PE and not s.cs.type & 8 and not s.rflags & _RFLAGS_VM), "CS is no code segment"),
    (lambda s: not _canonical(s.rip, s) and s.mode == "long", "RIP is not canonical"),
    (lambda s: s.mode != "long" and bool(s.rip >> 32), "RIP has bits above 31 outside 64-bit mode"),
)


def state_problems(state: CpuState) -> list[str]:
    """Name the combinations in a state that no CPU can be in, a sentence part each; empty when there are none."""
    return [words for broken, words in _RULES if broken(state)]


def _canonical(address: int, state: CpuState) -> bool:
    width = 57 if state.cr4 & _CR4_LA57 else 48
    top = address >> (width - 1)
    return top in (0, (1 << (65 - width)) - 1)
