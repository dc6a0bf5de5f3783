"""The failure report: what it says about known failures, and that no guest state can stop it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.debug.disasm import decode, disassemble, disassemble_before
from pyvmm.debug.linear import LinearMemory
from pyvmm.debug.report import FailureInputs, FailureReport
from pyvmm.debug.symbols import Symbol, SymbolTable
from pyvmm.engine.state import CONTROL, GENERAL, SEGMENTS, CpuState, DescriptorTable, Segment
from pyvmm.errors import GuestMemoryError
from pyvmm.paging.build import identity_tables

SECTIONS = ("what happened", "registers", "control and segments", "code", "page walks", "last exits", "hint")
CODE = 0x8000
PROGRAM = bytes.fromhex("b80a000000 89c3 ffc8 75fc 9b f4 ebfd")
FWAIT = CODE + 11


def reader(ram: bytes | bytearray) -> Callable[[int, int], bytes]:
    """Read physical memory that is one range from 0 on."""

    def read(gpa: int, size: int) -> bytes:
        if gpa < 0 or gpa + size > len(ram):
            raise GuestMemoryError(gpa, size, "read")
        return bytes(ram[gpa : gpa + size])

    return read


def machine(program: bytes = PROGRAM, at: int = CODE) -> tuple[CpuState, bytearray]:
    """A long-mode vCPU on an identity map in 1 MiB of RAM, with a program at 0x8000."""
    ram = bytearray(1 << 20)
    tables = identity_tables(0x1000, 4 << 20).tobytes()
    ram[0x1000 : 0x1000 + len(tables)] = tables
    ram[at : at + len(program)] = program
    state = CpuState.long(at, 0x1000)
    state.rsp = 0x7FF0
    state.idt = DescriptorTable(0x6000, 0xFFF)
    return state, ram


def emulation_failure(instruction: bytes | bytearray) -> dict[str, Any]:
    raw = bytes([len(instruction)]) + bytes(instruction).ljust(15, b"\x90")
    words = (1, int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little"))
    return {"kind": "internal-error", "suberror": 1, "data": words}


def sections(text: str) -> dict[str, list[str]]:
    """Split a report into its sections; every line below a title is indented."""
    result: dict[str, list[str]] = {}
    for line in text.split("\n"):
        if line.startswith("  "):
            result[next(reversed(result))].append(line[2:])
        else:
            assert line.endswith(":"), line
            result[line[:-1]] = []
    return result


def test_an_emulation_failure_is_explained() -> None:
    state, ram = machine()
    state.rip = FWAIT
    state.cr2 = 0xFFFF_8000_0000_0000
    report = FailureReport(
        FailureInputs(
            "internal error",
            "KVM gave up",
            state,
            1,
            reader(ram),
            deque(["pio-out 0x3f8"]),
            SymbolTable([Symbol(CODE, 0, "start")]),
            emulation_failure(ram[FWAIT : FWAIT + 15]),
            {"module": "kvm_pvm", "paging": "kvm-shadow"},
        )
    )
    told = sections(report.text())
    assert tuple(told) == SECTIONS
    assert told["what happened"] == [
        "vCPU 1: internal error",
        "KVM gave up",
        "KVM internal error, suberror 1: emulation failure",
        "instruction that KVM could not emulate: fwait (9b)",
        "host: module kvm_pvm, paging kvm-shadow",
    ]
    assert "RIP is in start+0xb" in told["registers"]
    assert "CR0=0x80000031 PG NE ET PE" in told["control and segments"]
    code = [line.split() for line in told["code"]]
    assert [line[-1] for line in code if line[0] == "=>"] == ["fwait"]
    assert told["code"][0] == "start:"
    assert ["0x8009", "75", "fc", "jne", "0x8007"] in code
    assert "RIP: GVA 0x800b, 4-level paging, supervisor execute" in told["page walks"]
    assert "  -> page fault, error code 0x0 (none set): the PML4E is not present" in told["page walks"]
    assert told["last exits"] == ["pio-out 0x3f8"]
    assert len(told["hint"]) == 1 and "`fwait` is not emulated" in told["hint"][0]
    data = json.loads(json.dumps(report.to_dict()))
    assert data["registers"]["rip"] == "0x800b"
    assert [line["text"] for line in data["code"] if line["current"]] == ["fwait"]
    assert data["walks"]["cr2"]["error_code"] == 0
    assert data["exit"]["suberror"] == 1
    assert data["not_told"] == {}


def shutdown(state: CpuState, ram: bytearray, **host: str) -> list[str]:
    return FailureReport(
        FailureInputs("triple fault", state=state, read=reader(ram), exit_info={"kind": "shutdown"}, host=host)
    ).hints


def test_triple_faults_get_the_hint_that_fits() -> None:
    state, ram = machine()
    assert shutdown(state, ram) == []
    state.rsp = 0xFFFF_9000_0000_0000
    assert "stack cannot be written (the PML4E is not present)" in shutdown(state, ram)[0]
    state.rsp = 0x20_0000
    assert "stack cannot be written (GPA 0x1ffffe is outside guest RAM)" in shutdown(state, ram)[0]
    state.ss.dpl = 3
    assert not any("stack" in hint for hint in shutdown(state, ram))
    state, ram = machine()
    state.rsp = 1 << 20
    assert shutdown(state, ram) == [], "RSP just past the last byte of the stack is a good stack pointer"
    state.idt.limit = 0
    assert "the IDT is empty" in shutdown(state, ram)[0]
    state.idt = DescriptorTable(0x30_0000, 0xFFF)
    assert "IDT cannot be read (GPA 0x300000 is outside guest RAM)" in shutdown(state, ram)[0]
    state.rip = 0x30_0000
    assert "RIP points at a physical address with no RAM" in shutdown(state, ram)[0]
    state.rip = 0x40_0000
    assert "RIP cannot be fetched (the PDE is not present)" in shutdown(state, ram)[0]
    state.rip = 0x9000
    assert "empty memory" in shutdown(state, ram)[0]


def test_registers_after_a_reset_are_not_taken_for_the_crash() -> None:
    state = CpuState.real(0xF000, 0xFFF0)
    state.cs.base = 0xFFFF_0000
    (hint,) = shutdown(state, bytearray(1 << 20))
    assert "already reset" in hint


def test_exits_without_registers_are_told() -> None:
    for info, line in (
        (
            {"kind": "fail-entry", "reason": 0x80000021, "cpu": 0},
            "invalid guest state (exit reason 0x80000021, basic 33)",
        ),
        ({"kind": "unknown-exit", "reason": 0, "hardware": 0x99}, "hardware exit reason 0x99"),
    ):
        report = FailureReport(FailureInputs("failed", exit_info=info))
        told = sections(report.text())
        assert any(line in found for found in told["what happened"])
        assert told["registers"] == ["the vCPU's registers could not be read"]
        assert told["code"] == told["page walks"] == ["not available without registers and memory"]
        assert told["last exits"] == ["none recorded"]
        json.dumps(report.to_dict())


def test_a_failed_entry_names_what_is_wrong_with_the_state() -> None:
    state, ram = machine()
    state.rflags = 0
    report = FailureReport(
        FailureInputs(
            "failed entry", state=state, read=reader(ram), exit_info={"kind": "fail-entry", "reason": 2**64 - 1}
        )
    )
    assert report.hints == ["the CPU refuses this state: RFLAGS bit 1 is clear."]
    assert "inconsistent: RFLAGS bit 1 is clear" in sections(report.text())["control and segments"]


def test_a_part_that_breaks_is_named_and_the_rest_told() -> None:
    state, _ = machine()

    def broken(gpa: int, size: int) -> bytes:
        raise RuntimeError("no such\nluck")

    report = FailureReport(FailureInputs("triple fault", state=state, read=broken, exit_info={"suberror": "x"}))
    told = sections(report.text())
    assert "not told: code: RuntimeError: no such luck" in told["what happened"]
    assert any(line.startswith("not told: exit: ValueError") for line in told["what happened"])
    assert any("rip" in line for line in told["registers"])
    assert set(report.to_dict()["not_told"]) >= {"code", "walks", "exit"}


def test_guest_text_cannot_break_lines_or_reach_the_terminal() -> None:
    report = FailureReport(FailureInputs("a\nb\x1b[2J", "c\rd", last_exits=["x\ny"], host={"module": "k\nq"}))
    told = sections(report.text())
    assert told["what happened"][0] == "vCPU 0: a b [2J"
    assert told["last exits"] == ["x y"]
    assert all(line.isprintable() for line in report.text().split("\n"))


u64 = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**64 - 1, 2**63, 2**47, 2**32 - 1, 0x1000])
segments = st.builds(
    Segment, u64, st.integers(0, 2**32 - 1), st.integers(0, 0xFFFF), st.integers(0, 255), *[st.integers(0, 255)] * 8
)
plausible = {
    "cr0": st.sampled_from([0, 0x11, 0x8000_0011, 0x8001_0033, 0x8000_0000]),
    "cr3": st.sampled_from([0, 0x1000, 0x1FFF, 0x7000, 1 << 40]),
    "cr4": st.sampled_from([0, 0x10, 0x20, 0x1020, 0x30_00A0]),
    "efer": st.sampled_from([0, 0x100, 0x500, 0xD01, 0x400]),
    "rip": st.integers(0, 0x9000),
    "rsp": st.integers(0, 0x9000),
    "cr2": st.integers(0, 0x9000),
}


@st.composite
def cpu_states(draw: st.DrawFn) -> CpuState:
    """Any state that KVM's structs can hold, half of the time near to one that works."""
    state = CpuState()
    near = draw(st.booleans())
    for name in (*GENERAL, *CONTROL):
        setattr(state, name, draw(plausible[name] if near and name in plausible else u64))
    for name in SEGMENTS:
        setattr(state, name, draw(st.builds(Segment) if near else segments))
    state.gdt = draw(st.builds(DescriptorTable, u64, st.integers(0, 0xFFFF)))
    state.idt = draw(st.builds(DescriptorTable, u64, st.integers(0, 0xFFFF)))
    return state


infos = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("internal-error"), "suberror": st.integers(0, 6), "data": st.lists(u64, max_size=16)}
    ),
    st.fixed_dictionaries({"kind": st.just("internal-error"), "instruction": st.binary(max_size=20)}),
    st.fixed_dictionaries({"kind": st.just("fail-entry"), "reason": u64, "cpu": st.integers(0, 9)}),
    st.fixed_dictionaries({"kind": st.just("unknown-exit"), "reason": u64, "hardware": u64}),
    st.just({"kind": "shutdown"}),
)


@settings(max_examples=400, deadline=None)
@given(
    cpu_states(),
    st.lists(st.binary(min_size=1, max_size=64), min_size=1, max_size=6),
    st.integers(0, 9),
    infos,
    st.sampled_from(["kvm_pvm", "kvm_intel", ""]),
    st.text(),
)
def test_the_report_survives_any_state_and_any_memory(
    state: CpuState, pieces: list[bytes], pages: int, info: dict[str, Any], module: str, detail: str
) -> None:
    pattern = b"".join(pieces)
    size = pages * 0x1000
    ram = (pattern * (size // len(pattern) + 1))[:size]
    symbols = SymbolTable([Symbol(0x10, 0, "low"), Symbol(2**64 - 64, 0, "high")])
    report = FailureReport(
        FailureInputs("crash", detail, state, 0, reader(ram), [detail], symbols, info, {"module": module})
    )
    told = sections(report.text())
    assert tuple(told) == SECTIONS
    assert all(body for body in told.values())
    data = json.loads(json.dumps(report.to_dict()))
    assert data["not_told"] == {}, "no part may depend on the last resort"
    assert data["registers"]["rip"] == hex(state.rip)
    assert {"rip", "rsp"} <= set(data["walks"])
    assert sum(line.current for line in report.code) <= 1


def linear(ram: bytes) -> LinearMemory:
    """Memory without paging."""
    return LinearMemory(CpuState.protected(0), reader(ram))


def last_page(code: bytes) -> tuple[LinearMemory, bytes, int]:
    """Put code at the end of RAM, which comes in whole pages; return the memory, its bytes, and where the code is."""
    start = -len(code) % 0x1000
    ram = b"\xcc" * start + code
    return linear(ram), ram, start


# Instructions of a compiler's kind, each a whole number of bytes; the oracle for boundaries is how they were put together.
INSTRUCTIONS = [
    bytes.fromhex(text)
    for text in ("55", "4889e5", "4883ec10", "897dfc", "8b45fc", "83c001", "c9", "c3", "e8fbffffff", "b80a000000", "85c0",
                 "7402", "0fb6c0", "488d0500100000", "f30f1efa", "c745f800000000", "90", "ebfe")
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(INSTRUCTIONS), min_size=30, max_size=60), st.binary(min_size=16, max_size=16))
def test_backward_disassembly_finds_the_last_instructions(program: list[bytes], before: bytes) -> None:
    """With a known boundary the result is exact; without one it must be instructions that lead to the address."""
    memory, ram, start = last_page(before + b"".join(program))
    exact = disassemble_before(memory, len(ram), 64, start=start + len(before))
    assert [line.code for line in exact] == program[-6:]
    guess = disassemble_before(memory, len(ram), 64)
    assert 0 < len(guess) <= 6
    assert b"".join(line.code for line in guess) == ram[guess[0].address :]
    for line in guess:
        again = decode(line.code, 64, line.address)
        assert again is not None and again.text == line.text


def test_backward_disassembly_falls_in_step_without_a_symbol() -> None:
    """A compiler's function, seen from its end: the guess is the truth."""
    order = ["55", "4889e5", "4883ec10", "897dfc", "8b45fc", "83c001", "85c0", "7402", "b80a000000", "e8fbffffff", "c9"]
    program = [bytes.fromhex(text) for text in order * 4]
    memory, ram, _ = last_page(b"".join(program))
    guess = disassemble_before(memory, len(ram), 64)
    assert [line.code for line in guess] == program[-6:]


def test_disassembly_knows_code_size_and_stops_at_the_end() -> None:
    memory, _, start = last_page(bytes.fromhex("b80100 b80200 f4"))
    assert [line.text for line in disassemble(memory, start, 16)] == ["mov ax, 1", "mov ax, 2", "hlt"]
    memory, _, start = last_page(bytes.fromhex("b801000000 f4 c5"))
    wide = disassemble(memory, start, 32)
    assert [line.text for line in wide] == ["mov eax, 1", "hlt", "(bad)"]
    assert [line.current for line in wide] == [True, False, False]
    assert wide[-1].code == b"\xc5"
    assert disassemble(linear(b""), 0, 64) == []
    assert decode(b"\x9b", 64) is not None and decode(b"", 64) is None


@settings(deadline=None)
@given(st.integers(0, 0x3800), st.integers(0, 0x3800), st.integers(0, 3))
def test_linear_reads_end_where_memory_does(gva: int, size: int, pages: int) -> None:
    ram = bytes(range(251)) * (0x3000 // 251 + 1)
    ram = ram[: pages * 0x1000]
    memory = linear(ram)
    assert memory.read(gva, size) == ram[gva : gva + size]
    expected = ram[max(0, gva - size) : gva] if gva <= len(ram) else b""
    assert memory.read_before(gva, size) == expected


def test_reads_wrap_at_the_end_of_the_address_space() -> None:
    state, ram = machine()
    memory = LinearMemory(state, reader(ram))
    assert memory.read(2**64 - 8, 16) == b"", "nothing is mapped there, and the wrap to 0 must not hide it"
    assert memory.read(0x0F_FFFC, 8) == ram[-4:]


@pytest.mark.parametrize("bits", [16, 32, 64])
@settings(max_examples=100, deadline=None)
@given(code=st.binary(min_size=1, max_size=80), at=st.integers(0, 79))
def test_any_bytes_are_disassembled(bits: int, code: bytes, at: int) -> None:
    memory, ram, start = last_page(code)
    address = start + at % len(code)
    after = disassemble(memory, address, bits)
    assert after and after[0].current
    assert b"".join(line.code for line in after) == ram[address : address + sum(len(line.code) for line in after)]
    before = disassemble_before(memory, address, bits)
    assert b"".join(line.code for line in before) == (ram[before[0].address : address] if before else b"")
