"""The failure report: everything about a vCPU that failed, as text for a person and as data for a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pyvmm.debug import words
from pyvmm.debug.checks import state_problems
from pyvmm.debug.disasm import Line, decode, disassemble, disassemble_before
from pyvmm.debug.exits import (
    InternalErrorInfo,
    decode_internal_error,
    entry_failure_words,
    unknown_exit_words,
)
from pyvmm.debug.hints import Facts, hints
from pyvmm.debug.linear import LinearMemory, PhysicalRead
from pyvmm.debug.symbols import SymbolTable
from pyvmm.engine.state import CONTROL, GENERAL, SEGMENTS, CpuState
from pyvmm.paging.entry import PagingMode
from pyvmm.paging.result import Walk
from pyvmm.paging.state import WRITE, Access, AccessKind

_RFLAGS_AC = 1 << 18
_LAST_EXITS = 32
_CODE_BYTES = 16
_RESET_VECTOR = (0xFFFF_0000, 0xFFF0)
_GONE = "gone: KVM has reset the vCPU, so its registers are not those of the crash"

T = TypeVar("T")


@dataclass(slots=True)
class FailureInputs:
    """What a report is made of; what the caller does not know stays at its default.

    Attributes:
        reason: what ended the run, in a few words: "triple fault".
        detail: one sentence more, or "".
        state: registers of the vCPU; None when they could not be read.
        vcpu: its number.
        read: reads guest-physical memory; raises GuestMemoryError outside RAM.
        last_exits: the last exits of this vCPU, oldest first, a line each.
        symbols: symbols of the image.
        exit_info: the exit's `kind` and fields, as in `pyvmm.engine.exits`: `suberror` and `data` of an internal error,
            `reason` of a refused entry, `reason` and `hardware` of an unknown exit; `instruction` (bytes) overrides the
            instruction bytes that KVM told.
        host: `module` and `paging` of this host's KVM.
        maxphyaddr: physical address bits of the guest's CPU.
    """

    reason: str
    detail: str = ""
    state: CpuState | None = None
    vcpu: int = 0
    read: PhysicalRead | None = None
    last_exits: Sequence[str] = ()
    symbols: SymbolTable | None = None
    exit_info: Mapping[str, Any] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    maxphyaddr: int = 52


class FailureReport:
    """A failure, analysed once at construction; `text` and `to_dict` render it.

    Nothing is raised whatever the guest left in its registers, tables and memory: a part that cannot be told says so in
    a line.

    Attributes:
        happened: what happened, a line each, the reason first.
        code: disassembly around RIP, in the order of addresses.
        walks: page walks by name: "RIP", "RSP", "CR2".
        hints: what to do about it.
    """

    def __init__(self, inputs: FailureInputs) -> None:
        """Analyse a failure; guest memory is read here and not later."""
        self.inputs = inputs
        self.code: list[Line] = []
        self.walks: dict[str, Walk] = {}
        self.hints: list[str] = []
        self._troubles: dict[str, str] = {}
        self._error = self._try("exit", lambda: _internal_error(inputs.exit_info), None)
        self._instruction = self._try("exit", self._decode_instruction, "")
        self.happened: list[str] = self._try("exit", self._happened, [_one_line(inputs.reason)])
        self._problems: list[str] = []
        self._memory: LinearMemory | None = None
        self._outside: set[str] = set()
        if inputs.state is not None:
            state = inputs.state
            self._problems = self._try("state", lambda: state_problems(state), [])
            if inputs.read is not None:
                self._memory = LinearMemory(state, inputs.read, inputs.maxphyaddr)
                self.code = self._try("code", self._disassemble, [])
                self.walks = self._try("walks", self._walk_all, {})
                self._outside = self._try("walks", self._walks_outside_ram, set())
        self.hints = self._try("hints", lambda: hints(self._facts()), [])

    def text(self) -> str:
        """Return the report as lines of text, without a newline at the end."""
        missing = [f"not told: {part}: {why}" for part, why in self._troubles.items()]
        exits = [_one_line(line) for line in list(self.inputs.last_exits)[-_LAST_EXITS:]]
        parts = (
            ("what happened", self.happened + missing),
            ("registers", self._register_lines()),
            ("control and segments", self._control_lines()),
            ("code", self._code_lines()),
            ("page walks", self._walk_lines()),
            ("last exits", exits or ["none recorded"]),
            ("hint", self.hints or ["none for this kind of failure"]),
        )
        lines: list[str] = []
        for title, body in parts:
            lines += [f"{title}:", *(f"  {line}" for line in body)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able data; addresses and registers as hexadecimal strings."""
        state = self.inputs.state
        return {
            "reason": self.inputs.reason,
            "detail": self.inputs.detail,
            "vcpu": self.inputs.vcpu,
            "happened": self.happened,
            "exit": _jsonable(self.inputs.exit_info),
            "instruction": self._instruction,
            "registers": None if state is None else {n: hex(getattr(state, n)) for n in (*GENERAL, *CONTROL)},
            "mode": None if state is None else state.mode,
            "state": None if state is None else self._control_lines(),
            "problems": self._problems,
            "code": [
                {
                    "address": hex(line.address),
                    "bytes": line.code.hex(),
                    "text": line.text,
                    "current": line.current,
                    "symbol": self._symbol(line.address),
                }
                for line in self.code
            ],
            "walks": {name.lower(): walk.to_dict() for name, walk in self.walks.items()},
            "last_exits": [str(line) for line in self.inputs.last_exits],
            "hints": self.hints,
            "not_told": self._troubles,
            "host": _jsonable(self.inputs.host),
        }

    def _try(self, part: str, make: Callable[[], T], otherwise: T) -> T:
        # The report must come out even if an input breaks a promise (a reader that raises something of its own, a
        # state with values that no CPU has): the part is given up, the rest still tells what it can.
        try:
            return make()
        except Exception as error:
            self._troubles[part] = _one_line(f"{type(error).__name__}: {error}")
            return otherwise

    def _decode_instruction(self) -> str:
        raw = self.inputs.exit_info.get("instruction") or (self._error.instruction if self._error else b"")
        if not raw:
            return ""
        state = self.inputs.state
        line = decode(bytes(raw), state.bits if state is not None else 64)
        return f"{line.text} ({line.code.hex(' ')})" if line is not None else f"(bad) ({bytes(raw).hex(' ')})"

    def _happened(self) -> list[str]:
        info = self.inputs.exit_info
        lines = [_one_line(f"vCPU {self.inputs.vcpu}: {self.inputs.reason}")]
        if self.inputs.detail:
            lines.append(_one_line(self.inputs.detail))
        kind = info.get("kind")
        if self._error is not None:
            lines.append(f"KVM internal error, suberror {self._error.suberror}: {self._error.name}")
            lines += self._error.details
        elif kind == "fail-entry" and "reason" in info:
            lines.append(entry_failure_words(int(info["reason"])))
        elif kind == "unknown-exit" and "reason" in info:
            lines.append(unknown_exit_words(int(info["reason"]), int(info.get("hardware", 0))))
        if self._after_reset:
            lines.append(_GONE)
        if self._instruction:
            lines.append(f"instruction that KVM could not emulate: {self._instruction}")
        if self.inputs.host:
            lines.append("host: " + ", ".join(_one_line(f"{k} {v}") for k, v in self.inputs.host.items()))
        return lines

    def _disassemble(self) -> list[Line]:
        state, memory = self.inputs.state, self._memory
        assert state is not None and memory is not None
        found = self.inputs.symbols.nearest(state.linear_rip) if self.inputs.symbols else None
        start = found[0].value if found is not None else None
        after = disassemble(memory, state.linear_rip, state.bits)
        return [*disassemble_before(memory, state.linear_rip, state.bits, start=start), *after]

    def _walk_all(self) -> dict[str, Walk]:
        state, memory = self.inputs.state, self._memory
        assert state is not None and memory is not None
        user = state.cpl == 3
        ac = bool(state.rflags & _RFLAGS_AC)
        walks = {
            "RIP": memory.walk(state.linear_rip, Access(AccessKind.EXECUTE, user)),
            "RSP": memory.walk(self._stack(state), Access(AccessKind.WRITE, user, ac)),
        }
        if state.cr2:
            walks["CR2"] = memory.walk(state.cr2, Access(AccessKind.READ, user, ac))
        return walks

    def _walks_outside_ram(self) -> set[str]:
        memory = self._memory
        assert memory is not None
        return {name for name, walk in self.walks.items() if walk.gpa is not None and not memory.in_ram(walk.gpa)}

    @property
    def _after_reset(self) -> bool:
        """Whether the registers are those of a vCPU that KVM has reset: they tell nothing of the crash."""
        state = self.inputs.state
        return state is not None and (state.cs.base, state.rip) == _RESET_VECTOR

    def _stack(self, state: CpuState) -> int:
        if state.mode == "long":
            return state.rsp
        # Outside 64-bit mode SS.B tells whether ESP or SP is the stack pointer (SDM vol. 1 section 6.2.3).
        return (state.ss.base + (state.rsp & (0xFFFF_FFFF if state.ss.db else 0xFFFF))) & 0xFFFF_FFFF

    def _facts(self) -> Facts:
        state, memory, info = self.inputs.state, self._memory, self.inputs.exit_info
        suberror = info.get("suberror")
        facts: dict[str, Any] = {
            "kind": str(info.get("kind", "")),
            "suberror": int(suberror) if suberror is not None else None,
            "module": str(self.inputs.host.get("module", "")),
            "instruction": self._instruction or next((line.text for line in self.code if line.current), ""),
            "problems": tuple(self._problems),
        }
        if state is not None:
            facts |= {"mode": state.mode, "cpl": state.cpl, "idt_limit": state.idt.limit}
            facts["after_reset"] = self._after_reset
        if state is not None and memory is not None and self.walks:
            rip = self.walks["RIP"]
            facts |= {
                "code": memory.read(state.linear_rip, _CODE_BYTES),
                "rip_fault": _fault(rip),
                "rip_outside": rip.gpa is not None and not memory.in_ram(rip.gpa),
                "stack_fault": self._stack_fault(state, memory),
                "idt_fault": self._unreachable(memory.walk(state.idt.base, Access(implicit=True))),
            }
            if "CR2" in self.walks and self.walks["CR2"].mode is not PagingMode.NONE:
                facts["cr2_fault"] = self._unreachable(self.walks["CR2"])
        return Facts(**facts)

    def _stack_fault(self, state: CpuState, memory: LinearMemory) -> str:
        # A push writes below RSP, which itself may lie just past the stack; ring 3 leaves for the stack in the TSS.
        if state.cpl == 3:
            return ""
        return self._unreachable(memory.walk((self._stack(state) - 2) & memory.mask, WRITE))

    def _unreachable(self, walk: Walk) -> str:
        if walk.gpa is not None and self._memory is not None and not self._memory.in_ram(walk.gpa):
            return f"GPA {walk.gpa:#x} is outside guest RAM"
        return _fault(walk)

    def _register_lines(self) -> list[str]:
        state = self.inputs.state
        if state is None:
            return ["the vCPU's registers could not be read"]
        cells = [f"{name:<7}{getattr(state, name):016x}" for name in GENERAL]
        lines = ["  ".join(cells[i : i + 4]) for i in range(0, len(cells), 4)]
        symbol = self._symbol(state.linear_rip)
        return [words.mode_words(state), *lines] + ([f"RIP is in {symbol}"] if symbol else [])

    def _control_lines(self) -> list[str]:
        state = self.inputs.state
        if state is None:
            return ["the vCPU's registers could not be read"]
        lines = words.control_words(state)
        lines += [words.segment_words(name, getattr(state, name)) for name in SEGMENTS]
        lines += [words.table_words("gdt", state.gdt), words.table_words("idt", state.idt)]
        return lines + [f"inconsistent: {problem}" for problem in self._problems]

    def _code_lines(self) -> list[str]:
        if self.inputs.state is None or self._memory is None:
            return ["not available without registers and memory"]
        if self._after_reset:
            return [_GONE]
        lines: list[str] = []
        for line in self.code:
            symbol = self._symbol(line.address)
            if symbol and (line is self.code[0] or line.current or "+" not in symbol):
                lines.append(f"{symbol}:")
            lines.append(str(line))
        if not any(line.current for line in self.code):
            lines.append(f"no code can be read at RIP {self.inputs.state.linear_rip:#x}")
        return lines

    def _walk_lines(self) -> list[str]:
        if not self.walks or self._memory is None:
            return ["not available without registers and memory"]
        if self._after_reset:
            return [_GONE]
        lines: list[str] = []
        for name, walk in self.walks.items():
            first, *rest = walk.describe()
            lines += [f"{name}: {first}", *rest]
            if name in self._outside:
                lines.append("     no RAM at that GPA")
        return lines

    def _symbol(self, address: int) -> str | None:
        return self.inputs.symbols.name(address) if self.inputs.symbols is not None else None


def _internal_error(info: Mapping[str, Any]) -> InternalErrorInfo | None:
    if info.get("suberror") is None:
        return None
    return decode_internal_error(int(info["suberror"]), tuple(info.get("data") or ()))


def _fault(walk: Walk) -> str:
    return walk.fault.reason if walk.fault is not None else ""


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in str(text))


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_jsonable(item) for item in value]
    return str(value)
