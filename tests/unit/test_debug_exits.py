"""Decoded exits, state in words, consistency checks and hints."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.debug.checks import state_problems
from pyvmm.debug.exits import decode_internal_error, entry_failure_words, event_words, unknown_exit_words
from pyvmm.debug.hints import Facts, hints
from pyvmm.debug.words import (
    CR0_BITS,
    CR4_BITS,
    EFER_BITS,
    RFLAGS_BITS,
    bit_names,
    control_words,
    mode_words,
    register_words,
    rflags_words,
    segment_words,
)
from pyvmm.engine.state import CpuState, Segment

WORDS = st.lists(st.integers(0, 2**64 - 1), max_size=16)


def emulation_data(instruction: bytes, *rest: int) -> tuple[int, ...]:
    """Lay out the data words as `struct kvm_run`'s `emulation_failure` does."""
    raw = bytes([len(instruction)]) + instruction.ljust(15, b"\x90")
    return 1, int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little"), *rest


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=15), WORDS)
def test_instruction_bytes_come_out_as_they_went_in(instruction: bytes, rest: list[int]) -> None:
    info = decode_internal_error(1, emulation_data(instruction, *rest))
    assert info.instruction == instruction
    assert info.name == "emulation failure"
    assert bool(info.details) == bool(rest)


@pytest.mark.parametrize(
    ("data", "detail"), [((), "did not tell"), ((0, 7), "instruction bytes"), ((1,), "instruction")]
)
def test_an_emulation_failure_without_bytes_says_so(data: tuple[int, ...], detail: str) -> None:
    info = decode_internal_error(1, data)
    assert info.instruction == b""
    assert detail in info.details[0]


def test_other_suberrors_tell_their_data() -> None:
    page_fault, protection = 0x80000B0E, 0x80000B0D
    info = decode_internal_error(2, (page_fault, protection, 0))
    assert info.details == ("while exception 14 (#PF) was delivered, exception 13 (#GP) came",)
    info = decode_internal_error(3, (0x800000EC, 48, 0x181))
    assert info.details == ("interrupt 236 was being delivered", "hardware exit reason 0x30")
    assert decode_internal_error(4, (0x4D, 1)).details == ("hardware exit reason 0x4d",)
    assert decode_internal_error(77, (1, 2)).details == ("data 0x1 0x2",)
    assert decode_internal_error(77, ()).name == "unknown suberror"
    assert event_words(0x7FFFFFFF) == "no event"
    assert event_words(0x80000202) == "NMI 2"
    assert event_words(0x800003FF) == "exception 255"


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), WORDS)
def test_any_internal_error_is_decoded(suberror: int, data: list[int]) -> None:
    info = decode_internal_error(suberror, data)
    assert info.suberror == suberror and info.name
    assert all(line.isprintable() for line in info.details)
    assert len(info.instruction) <= 15


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (0x80000021, "VMX refused the entry: invalid guest state"),
        (0x80000022, "VMX refused the entry: MSR loading"),
        (0x80000055, "VMX refused the entry: unknown cause (exit reason 0x80000055, basic 85)"),
        (7, "VMX refused the entry: invalid control fields"),
        (0xFFFFFFFF, "SVM refused the entry: VMEXIT_INVALID"),
        (-1, "SVM refused the entry: VMEXIT_INVALID"),
        (2**64 - 1, "SVM refused the entry: VMEXIT_INVALID"),
        (0x1234, "the hardware refused the entry for reason 0x1234"),
    ],
)
def test_entry_failures_in_words(reason: int, words: str) -> None:
    assert entry_failure_words(reason).startswith(words)


def test_unknown_exits_in_words() -> None:
    assert "KVM exit 0 (KVM_EXIT_UNKNOWN)" in unknown_exit_words(0, 0x55)
    assert unknown_exit_words(0, 0x55).endswith("hardware exit reason 0x55")
    assert "KVM exit 37 (KVM_EXIT_NOTIFY)" in unknown_exit_words(37, 0x55)
    assert "0x55" not in unknown_exit_words(37, 0x55)
    assert "KVM exit 999" in unknown_exit_words(999, 0)


def test_registers_in_words() -> None:
    assert register_words("CR0", 0x80000011, CR0_BITS) == "CR0=0x80000011 PG ET PE"
    assert register_words("CR4", 0, CR4_BITS) == "CR4=0x0"
    assert register_words("EFER", 0xD01, EFER_BITS) == "EFER=0xd01 NXE LMA LME SCE"
    assert bit_names(1 << 60 | 1, CR0_BITS) == "PE unknown 0x1000000000000000"
    assert rflags_words(0x3246) == "RFLAGS=0x3246 IF ZF PF IOPL=3"
    assert rflags_words(0x40).endswith("ZF (bit 1 is clear, which no CPU allows)")


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.sampled_from([CR0_BITS, CR4_BITS, EFER_BITS, RFLAGS_BITS]))
def test_no_bit_is_lost_in_words(value: int, names: tuple[tuple[int, str], ...]) -> None:
    bit_of = {name: 1 << bit for bit, name in names}
    assert len(bit_of) == len(names) == len({bit for bit, _ in names})
    told = 0
    tokens = iter(bit_names(value, names).split())
    for token in tokens:
        told |= int(next(tokens), 16) if token == "unknown" else bit_of[token]
    assert told == value


def test_segments_in_words() -> None:
    assert segment_words("cs", Segment.flat_code(64, 0x10)) == (
        "CS  0010 base=0x0 limit=0xffffffff DPL 0 64-bit code, execute/read"
    )
    assert segment_words("ldt", Segment(unusable=1)).endswith("unusable")
    assert segment_words("tr", Segment(type=11, s=0)).endswith("busy TSS")
    assert segment_words("ds", Segment(type=7, present=0)).endswith("not present DPL 0 read/write expand-down data")
    assert segment_words("cs", Segment(type=15, l=1, db=1)).endswith("L=1 D=1 (reserved) code, execute/read conforming")
    assert segment_words("tr", Segment(type=12, s=0)).endswith("system descriptor type 0xc")


def test_modes_in_words() -> None:
    assert mode_words(CpuState.long(0, 0)) == "long mode, 64-bit code, CPL 0"
    assert mode_words(CpuState.real(0, 0)) == "real mode, 16-bit code, CPL 0"
    assert control_words(CpuState.long(0, 0x5000))[1] == "CR2=0x0 CR3=0x5000 CR8=0x0"


@pytest.mark.parametrize("state", [CpuState.real(0xF000, 0xFFF0), CpuState.protected(0), CpuState.long(0x1000, 0x2000)])
def test_states_that_loaders_make_have_no_problems(state: CpuState) -> None:
    assert state_problems(state) == []


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("cr0", 0x80000000, "CR0.PG is set without CR0.PE"),
        ("cr0", 0xA0000011, "CR0.NW is set without CR0.CD"),
        ("cr0", 1 << 32 | 0x80000011, "CR0 has bits above 31"),
        ("efer", 0x400, "EFER.LMA is not what EFER.LME and CR0.PG make it"),
        ("efer", 0x100, "EFER.LMA is not what EFER.LME and CR0.PG make it"),
        ("cr4", 0, "paging in long mode without CR4.PAE"),
        ("rflags", 0, "RFLAGS bit 1 is clear"),
        ("rflags", 0x8002, "RFLAGS has reserved bits set"),
        ("rflags", 0x20002, "RFLAGS.VM is set in long mode"),
        ("tr", Segment(type=9, s=0), "TR holds no busy TSS"),
        ("cs", Segment(type=3), "CS is no code segment"),
        ("cs", Segment(type=11, l=1, db=1), "CS has both L and D set"),
        ("rip", 1 << 47, "RIP is not canonical"),
    ],
)
def test_an_impossible_long_mode_state_is_named(field: str, value: object, problem: str) -> None:
    state = CpuState.long(0x1000, 0x2000)
    setattr(state, field, value)
    assert any(found.startswith(problem) for found in state_problems(state))


EMULATION = Facts("internal-error", 1, "kvm_pvm", "long", 0, b"\x9b\xf4\xf4\xf4", "fwait", idt_limit=0xFFF)


def test_hint_for_an_instruction_that_an_emulating_kvm_lacks() -> None:
    (hint,) = hints(EMULATION)
    assert "kvm_pvm" in hint and "`fwait` is not emulated" in hint and "ring 3" in hint


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        (
            Facts("internal-error", 1, "kvm_intel", "long", 0, b"\x0f\x28\x00\xc3", "movaps xmm0, [rax]"),
            "`movaps` is not",
        ),
        (
            Facts("internal-error", 1, "kvm_pvm", "long", 3, b"\x0f\x28\x00\xc3", "movaps xmm0, [rax]"),
            "no RAM behind it",
        ),
        (Facts("internal-error", 1, "kvm_pvm", "long", 0, b"\x00" * 16, "add"), "empty memory"),
        (Facts("internal-error", 1, "kvm_pvm", "real", 0, b"\xff" * 16), "empty memory"),
        (
            Facts("internal-error", 1, "kvm_pvm", "long", 0, b"", rip_fault="the PDE is not present"),
            "cannot be fetched",
        ),
        (Facts("internal-error", 1, "kvm_pvm", "long", 0, b"", rip_outside=True), "physical address with no RAM"),
        (Facts("internal-error", 2), "another was being delivered"),
        (Facts("internal-error", 3), "could not be delivered"),
        (Facts("internal-error", 4), "does not handle"),
        (Facts("fail-entry", problems=("RFLAGS bit 1 is clear",)), "refuses this state: RFLAGS bit 1 is clear."),
        (Facts("fail-entry"), "compare segments"),
        (Facts("shutdown", mode="long", idt_limit=0), "the IDT is empty"),
        (Facts("shutdown", mode="long", idt_limit=255, idt_fault="not present"), "IDT cannot be read (not present)"),
        (Facts("shutdown", mode="long", idt_limit=255, stack_fault="gone"), "stack cannot be written (gone)"),
        (Facts("shutdown", module="kvm_pvm", mode="long", cpl=3, instruction="int 0x80", idt_limit=255), "raises #UD"),
        (Facts("shutdown", mode="long", idt_limit=255, cr2_fault="the {f} is gone"), "occur again (the {f} is gone)"),
        (Facts("unknown-exit"), "no meaning to pyvmm"),
    ],
)
def test_each_rule_gives_its_hint_first(facts: Facts, first: str) -> None:
    assert first in hints(facts)[0]


def test_a_vcpu_that_was_reset_gets_that_hint_alone() -> None:
    found = hints(Facts("shutdown", mode="real", idt_limit=0xFFFF, rip_outside=True, after_reset=True))
    assert len(found) == 1 and "already reset" in found[0]


def test_nothing_to_say_says_nothing() -> None:
    assert hints(Facts()) == []
    assert hints(Facts("shutdown", mode="real", idt_limit=0)) == []


@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        Facts,
        st.sampled_from(["internal-error", "fail-entry", "shutdown", "unknown-exit", "", "{"]),
        st.none() | st.integers(0, 6),
        st.sampled_from(["", "kvm_pvm", "kvm_amd"]),
        st.text(),
        st.integers(0, 3),
        st.binary(max_size=8),
        *[st.text()] * 2,
        st.booleans(),
        *[st.text()] * 2,
        st.none() | st.integers(0, 0xFFFF),
        st.text(),
        st.tuples(st.text()),
        st.booleans(),
    )
)
def test_hints_bear_any_facts(facts: Facts) -> None:
    assert len(hints(facts)) <= 3
