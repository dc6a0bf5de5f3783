"""Disassembly of the code around an address, also backwards, where x86 gives no hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyvmm.debug.linear import LinearMemory

_LONGEST = 15
_WINDOW = 64
_FROM_SYMBOL = 1024
_NAMES = {"wait": "fwait"}
"""Where the disassembler's mnemonic is not the one that people know."""


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction.

    Attributes:
        address: its linear address.
        code: its bytes.
        text: mnemonic and operands in Intel syntax, "(bad)" where the bytes are no instruction.
        current: whether this is the instruction that was asked for.
    """

    address: int
    code: bytes
    text: str
    current: bool = False

    def __str__(self) -> str:
        return f"{'=>' if self.current else '  '} {self.address:#x}  {self.code.hex(' '):<30}  {self.text}"


def decode(code: bytes, bits: int, address: int = 0) -> Line | None:
    """Decode the instruction that `code` begins with.

    Args:
        code: at least one byte; 15 are always enough.
        bits: 16, 32 or 64, as `CpuState.bits`.
        address: linear address of the first byte, for the targets of branches.

    Returns:
        The instruction, or None when the bytes begin none that is whole and known.
    """
    return _decode(_engine(bits), code, address)


def disassemble(memory: LinearMemory, address: int, bits: int, count: int = 8) -> list[Line]:
    """Disassemble forward from a linear address.

    Returns:
        Up to `count` instructions; the first is marked current. The list ends at the first bytes that are no
        instruction, given as "(bad)", or where mapped memory ends; it is empty when `address` is not mapped.
    """
    code = memory.read(address, count * _LONGEST)
    engine = _engine(bits)
    lines: list[Line] = []
    offset = 0
    while offset < len(code) and len(lines) < count:
        here = (address + offset) & memory.mask
        line = _decode(engine, code[offset : offset + _LONGEST], here)
        if line is None:
            lines.append(Line(here, code[offset : offset + 8], "(bad)", not lines))
            break
        lines.append(Line(here, line.code, line.text, not lines))
        offset += len(line.code)
    return lines


def disassemble_before(
    memory: LinearMemory, address: int, bits: int, count: int = 6, start: int | None = None
) -> list[Line]:
    """Disassemble the instructions that end just before a linear address.

    Decoding from a wrong byte soon falls in step with the true instructions, so every start in a window before
    `address` votes for the boundaries that it reaches, and the boundaries with the most votes win. The result is a
    guess, but where a `start` that is a known boundary (a symbol) leads to `address`, it is exact.

    Returns:
        Up to `count` instructions in the order of their addresses; empty when nothing before `address` is mapped or
        none of it leads there.
    """
    engine = _engine(bits)
    if start is not None and 0 < address - start <= _FROM_SYMBOL:
        exact = _from_boundary(memory, engine, start, address)
        if exact is not None:
            return exact[-count:]
    code = memory.read_before(address, _WINDOW)
    first = address - len(code)
    decoded = [_decode(engine, code[i : i + _LONGEST], first + i) for i in range(len(code))]
    votes = [1] * len(code)
    leads_to: dict[int, list[int]] = {}
    for i, line in enumerate(decoded):
        if line is not None:
            end = i + len(line.code)
            leads_to.setdefault(end, []).append(i)
            if end < len(code):
                votes[end] += votes[i]
    lines: list[Line] = []
    at = len(code)
    while len(lines) < count and at in leads_to:
        at = max(leads_to[at], key=votes.__getitem__)
        line = decoded[at]
        assert line is not None
        lines.append(line)
    return lines[::-1]


def _from_boundary(memory: LinearMemory, engine: Any, start: int, address: int) -> list[Line] | None:
    code = memory.read(start, address - start)
    lines: list[Line] = []
    offset = 0
    while offset < len(code):
        line = _decode(engine, code[offset : offset + _LONGEST], start + offset)
        if line is None:
            return None
        lines.append(line)
        offset += len(line.code)
    return lines if offset == address - start else None


def _engine(bits: int) -> Any:
    import capstone

    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    return capstone.Cs(capstone.CS_ARCH_X86, mode)


def _decode(engine: Any, code: bytes, address: int) -> Line | None:
    for _, size, mnemonic, operands in engine.disasm_lite(code, address, 1):
        return Line(address, code[:size], f"{_NAMES.get(mnemonic, mnemonic)} {operands}".rstrip())
    return None
