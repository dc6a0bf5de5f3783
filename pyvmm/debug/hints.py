"""From the facts of a failure to a sentence on what to do about it: a table of rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyvmm.debug.exits import EMULATION, EVENT_DELIVERY, SIMULTANEOUS_EXCEPTIONS, UNEXPECTED_EXIT

EMULATED_MODULE = "kvm_pvm"
"""The KVM module that runs all but ring 3 of long mode in its instruction emulator."""
_MOST = 3
_NATIVE_MODES = ("long", "compat")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at; what is not known keeps its default.

    Attributes:
        kind: kind of the exit: `internal-error`, `fail-entry`, `shutdown`, `unknown-exit`.
        suberror: KVM's number, for an internal error.
        module: name of the KVM module (`kvm_intel`, `kvm_amd`, `kvm_pvm`).
        mode: `CpuState.mode`.
        cpl: privilege level.
        code: the bytes at RIP.
        instruction: the failing instruction, disassembled.
        rip_fault: why RIP cannot be fetched, in words.
        rip_outside: RIP translates to a GPA with no RAM.
        stack_fault: why the stack cannot be written, in words.
        cr2_fault: why an access to CR2 fails, in words; for a paged guest whose CR2 is not 0.
        idt_limit: limit of the IDT; None when the state is not known.
        idt_fault: why the IDT cannot be read, in words.
        problems: what `state_problems` found.
        after_reset: the registers are those of a CPU that was just reset.
    """

    kind: str = ""
    suberror: int | None = None
    module: str = ""
    mode: str = ""
    cpl: int = 0
    code: bytes = b""
    instruction: str = ""
    rip_fault: str = ""
    rip_outside: bool = False
    stack_fault: str = ""
    cr2_fault: str = ""
    idt_limit: int | None = None
    idt_fault: str = ""
    problems: tuple[str, ...] = ()
    after_reset: bool = False

    @property
    def emulated(self) -> bool:
        """Whether this KVM emulates the code that ran."""
        return self.module == EMULATED_MODULE and (self.cpl < 3 or self.mode not in _NATIVE_MODES)

    @property
    def filler(self) -> bool:
        """Whether the bytes at RIP are what empty memory holds."""
        return len(self.code) >= 4 and self.code[:4] in (b"\x00" * 4, b"\xff" * 4)

    @property
    def mnemonic(self) -> str:
        """The failing instruction's mnemonic, or a word for the unknown one."""
        return self.instruction.split(" ", 1)[0] or "this instruction"

    @property
    def problem_list(self) -> str:
        """The problems as one phrase."""
        return "; ".join(self.problems)


Rule = tuple[Callable[[Facts], bool], str]


def _failed_emulation(facts: Facts) -> bool:
    return facts.kind == "internal-error" and facts.suberror == EMULATION and not _astray(facts)


def _astray(facts: Facts) -> bool:
    return facts.filler or facts.rip_outside or bool(facts.rip_fault)


_RESET = (
    "KVM has already reset this vCPU, as it does on AMD after a triple fault: the registers are not those of the crash."
    " Look at the last exits, run the guest with its output on, or repeat it on another host or paging mode."
)

# In the order of how well they explain: a guest that has gone astray explains all that follows from it.
_RULES: tuple[Rule, ...] = (
    (
        lambda f: f.filler,
        "the bytes at RIP are those of empty memory: the guest left its code. Check the entry point, the load address"
        " and the last jump or return.",
    ),
    (
        lambda f: bool(f.rip_fault),
        "RIP cannot be fetched ({f.rip_fault}): the guest jumped astray, or its page tables do not map the code that"
        " was running when they were loaded.",
    ),
    (
        lambda f: f.rip_outside,
        "RIP points at a physical address with no RAM: check the load address, the entry point and how much memory the"
        " guest has.",
    ),
    (
        lambda f: _failed_emulation(f) and f.emulated,
        "this KVM (kvm_pvm) emulates ring 0, real and protected mode, and `{f.mnemonic}` is not emulated there. Avoid"
        " it in such code, run it in ring 3 of long mode, which runs natively, or use a host with VT-x or SVM.",
    ),
    (
        lambda f: _failed_emulation(f) and not f.emulated,
        "KVM emulates instructions that access memory with no RAM behind it or read-only memory, and some real-mode"
        " code; `{f.mnemonic}` is not emulated. Access devices with plain MOV instructions, and check the address that"
        " it accesses.",
    ),
    (
        lambda f: f.kind == "internal-error" and f.suberror == SIMULTANEOUS_EXCEPTIONS,
        "an exception came up while another was being delivered: check the IDT, the GDT, the TSS and the stack that the"
        " handler would run on.",
    ),
    (
        lambda f: f.kind == "internal-error" and f.suberror == EVENT_DELIVERY,
        "an event could not be delivered because the IDT, the GDT, the TSS or the stack lies at a physical address with"
        " no RAM: check those addresses and how much memory the guest has.",
    ),
    (
        lambda f: f.kind == "internal-error" and f.suberror == UNEXPECTED_EXIT,
        "the hardware left the guest for a reason that this KVM does not handle: look for a message in the host's"
        " kernel log, and try another kernel.",
    ),
    (
        lambda f: f.kind == "fail-entry" and bool(f.problems),
        "the CPU refuses this state: {f.problem_list}.",
    ),
    (
        lambda f: f.kind == "fail-entry" and not f.problems,
        "the CPU refuses this state: compare segments, control registers and RFLAGS with what the mode needs; the"
        " host's kernel log may hold a dump of the control block.",
    ),
    (
        lambda f: f.kind == "shutdown" and f.idt_limit == 0 and f.mode != "real",
        "the IDT is empty (limit 0), so the first exception or interrupt became a triple fault: load an IDT, or find"
        " the exception's cause at RIP.",
    ),
    (
        lambda f: f.kind == "shutdown" and f.idt_limit != 0 and bool(f.idt_fault),
        "the IDT cannot be read ({f.idt_fault}), so no exception could be delivered.",
    ),
    (
        lambda f: f.kind == "shutdown" and bool(f.stack_fault),
        "the stack cannot be written ({f.stack_fault}), so no exception could be delivered: check RSP, and give #DF a"
        " stack of its own in the TSS.",
    ),
    (
        lambda f: f.kind == "shutdown" and f.module == EMULATED_MODULE and f.cpl == 3 and f.mnemonic == "int",
        "under kvm_pvm `int` in ring 3 raises #UD instead of the interrupt: use syscall, or a host with VT-x or SVM.",
    ),
    (
        lambda f: f.kind == "shutdown" and bool(f.cr2_fault),
        "the last page fault was at CR2 and would occur again ({f.cr2_fault}): map that address, or look at who"
        " used it.",
    ),
    (
        lambda f: f.kind == "unknown-exit",
        "this exit has no meaning to pyvmm: the host's KVM is newer than it, or a capability is on that asks for it.",
    ),
)


def hints(facts: Facts) -> list[str]:
    """Return what to do about a failure, most telling first: at most three sentences, none when no rule fits."""
    if facts.kind == "shutdown" and facts.after_reset:
        # SVM leaves the control block undefined after a shutdown, so kvm_amd resets the vCPU (APM vol. 2 section
        # 15.14.3): no other rule may draw conclusions from these registers.
        return [_RESET]
    return [text.format(f=facts) for fits, text in _RULES if fits(facts)][:_MOST]
