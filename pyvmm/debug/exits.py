"""KVM's fatal exits decoded: internal errors, refused entries, exits without a meaning here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EMULATION = 1
SIMULTANEOUS_EXCEPTIONS = 2
EVENT_DELIVERY = 3
UNEXPECTED_EXIT = 4

_SUBERRORS = {
    EMULATION: "emulation failure",
    SIMULTANEOUS_EXCEPTIONS: "simultaneous exceptions",
    EVENT_DELIVERY: "exit while an event was being delivered",
    UNEXPECTED_EXIT: "unexpected hardware exit",
}
_HAS_INSTRUCTION = 1 << 0
_LONGEST = 15
_VMX_ENTRY_FAILED = 1 << 31
# Basic exit reasons of a failed VM entry (SDM vol. 3, appendix C).
_VMX_ENTRY = {33: "invalid guest state", 34: "MSR loading", 41: "machine check during entry"}
# Numbers of VM-instruction errors that VMLAUNCH and VMRESUME give (SDM vol. 3, section "VM Instruction Error Numbers").
_VMX_INSTRUCTION = {
    4: "VMLAUNCH with a VMCS that is not clear",
    5: "VMRESUME with a VMCS that is not launched",
    7: "invalid control fields",
    8: "invalid host state",
    26: "events blocked by MOV SS",
}
# Event types in VMX interruption information and SVM EXITINTINFO (SDM vol. 3 section 24.9.2; APM vol. 2 section 15.20).
_EVENT_TYPES = {0: "interrupt", 2: "NMI", 3: "exception", 4: "software interrupt", 5: "INT1", 6: "software exception"}
_EVENT_VALID = 1 << 31
_VECTORS = (
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#9", "#TS", "#NP", "#SS", "#GP", "#PF", "#15",
    "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
)  # fmt: skip
_KVM_EXITS = {
    0: "KVM_EXIT_UNKNOWN", 1: "KVM_EXIT_EXCEPTION", 2: "KVM_EXIT_IO", 3: "KVM_EXIT_HYPERCALL", 4: "KVM_EXIT_DEBUG",
    5: "KVM_EXIT_HLT", 6: "KVM_EXIT_MMIO", 7: "KVM_EXIT_IRQ_WINDOW_OPEN", 8: "KVM_EXIT_SHUTDOWN",
    9: "KVM_EXIT_FAIL_ENTRY", 10: "KVM_EXIT_INTR", 11: "KVM_EXIT_SET_TPR", 12: "KVM_EXIT_TPR_ACCESS",
    16: "KVM_EXIT_NMI", 17: "KVM_EXIT_INTERNAL_ERROR", 24: "KVM_EXIT_SYSTEM_EVENT", 26: "KVM_EXIT_IOAPIC_EOI",
    27: "KVM_EXIT_HYPERV", 29: "KVM_EXIT_X86_RDMSR", 30: "KVM_EXIT_X86_WRMSR", 31: "KVM_EXIT_DIRTY_RING_FULL",
    33: "KVM_EXIT_X86_BUS_LOCK", 34: "KVM_EXIT_XEN", 37: "KVM_EXIT_NOTIFY", 39: "KVM_EXIT_MEMORY_FAULT",
}  # fmt: skip
# The vendor's exit code for "the state or control block is not valid" on SVM (APM vol. 2, appendix C), in both widths
# that KVM has reported it in.
_SVM_INVALID = (0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)


@dataclass(frozen=True, slots=True)
class InternalErrorInfo:
    """A decoded KVM_EXIT_INTERNAL_ERROR.

    Attributes:
        suberror: KVM's number.
        name: its name in words.
        details: what the data words say, a line each.
        instruction: for an emulation failure, the bytes that KVM fetched, beginning with the instruction; empty where
            it told none.
    """

    suberror: int
    name: str
    details: tuple[str, ...] = ()
    instruction: bytes = b""


def decode_internal_error(suberror: int, data: Sequence[int]) -> InternalErrorInfo:
    """Decode a KVM_EXIT_INTERNAL_ERROR (KVM api.rst, `struct kvm_run`, "KVM_EXIT_INTERNAL_ERROR").

    Args:
        suberror: `internal.suberror`.
        data: the `internal.ndata` words of `internal.data`; fewer than the kind promises are borne.
    """
    name = _SUBERRORS.get(suberror, "unknown suberror")
    words = [int(word) & 0xFFFF_FFFF_FFFF_FFFF for word in data]
    if suberror == EMULATION:
        return _emulation(name, words)
    details: list[str] = []
    if suberror == SIMULTANEOUS_EXCEPTIONS and len(words) >= 2:
        details.append(f"while {event_words(words[0])} was delivered, {event_words(words[1])} came")
    elif suberror == EVENT_DELIVERY and words:
        details.append(f"{event_words(words[0])} was being delivered")
        if len(words) > 1:
            details.append(f"hardware exit reason {words[1]:#x}")
    elif suberror == UNEXPECTED_EXIT and words:
        details.append(f"hardware exit reason {words[0]:#x}")
    elif words:
        details.append("data " + " ".join(f"{word:#x}" for word in words))
    return InternalErrorInfo(suberror, name, tuple(details))


def event_words(info: int) -> str:
    """Name an event from VMX vectoring information or SVM EXITINTINFO: `exception 14 (#PF)`."""
    if not info & _EVENT_VALID:
        return "no event"
    vector, kind = info & 0xFF, info >> 8 & 7
    words = f"{_EVENT_TYPES.get(kind, f'event of type {kind}')} {vector}"
    return f"{words} ({_VECTORS[vector]})" if kind in (3, 6) and vector < len(_VECTORS) else words


def entry_failure_words(reason: int) -> str:
    """Put the `hardware_entry_failure_reason` of KVM_EXIT_FAIL_ENTRY in words (KVM api.rst, "KVM_EXIT_FAIL_ENTRY")."""
    reason &= 0xFFFF_FFFF_FFFF_FFFF
    if reason in _SVM_INVALID:
        return f"SVM refused the entry: VMEXIT_INVALID ({reason:#x}), invalid guest state or control block"
    if reason & _VMX_ENTRY_FAILED and reason >> 32 == 0:
        basic = reason & 0xFFFF
        cause = _VMX_ENTRY.get(basic, "unknown cause")
        return f"VMX refused the entry: {cause} (exit reason {reason:#x}, basic {basic})"
    if reason in _VMX_INSTRUCTION:
        return f"VMX refused the entry: {_VMX_INSTRUCTION[reason]} (VM-instruction error {reason})"
    return f"the hardware refused the entry for reason {reason:#x}"


def unknown_exit_words(reason: int, hardware: int) -> str:
    """Put an exit that the engine has no meaning for in words: KVM's number and, where KVM passes it on, the CPU's."""
    name = _KVM_EXITS.get(reason, "an exit that has no name here")
    told = f"; hardware exit reason {hardware:#x}" if reason == 0 else ""
    return f"KVM exit {reason} ({name}) is not one that a guest of this engine may cause{told}"


def _emulation(name: str, words: list[int]) -> InternalErrorInfo:
    if not words:
        return InternalErrorInfo(EMULATION, name, ("KVM did not tell the instruction",))
    rest = words[1:]
    instruction = b""
    if words[0] & _HAS_INSTRUCTION and len(words) >= 3:
        raw = words[1].to_bytes(8, "little") + words[2].to_bytes(8, "little")
        instruction = raw[1 : 1 + min(raw[0], _LONGEST)]
        rest = words[3:]
    details: tuple[str, ...] = () if instruction else ("KVM did not tell the instruction bytes",)
    # Linux adds the vendor's exit reason and information: a debugging aid without a promise, so told as it is.
    if rest:
        details += ("exit information " + " ".join(f"{word:#x}" for word in rest),)
    return InternalErrorInfo(EMULATION, name, details, instruction)
