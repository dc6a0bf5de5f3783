"""Layouts, ioctl numbers and constants against this machine's <linux/kvm.h>, told by a compiled program."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pyvmm.pykvm import layout, tables
from pyvmm.pykvm.constants import API_VERSION, COALESCED_MMIO_PAGE_OFFSET, PIO_PAGE_OFFSET, PREFIXES
from pyvmm.pykvm.ioctls import Ioctl

HEADERS = ["stddef.h", "stdio.h", "linux/kvm.h"]


def leaves(struct: layout.DType, path: str = "") -> Iterator[tuple[str, int, int]]:
    """Walk a dtype's fields: C path, offset and size, of each field and of the fields inside it."""
    assert struct.fields is not None
    for name in struct.names or ():
        field = struct.fields[name]
        kind, offset = field[0], field[1]
        yield f"{path}{name}", offset, kind.itemsize
        inner = kind.subdtype[0] if kind.subdtype else kind
        if inner.fields is not None:
            element = f"{path}{name}[0]." if kind.subdtype else f"{path}{name}."
            for deeper, at, size in leaves(inner, element):
                yield deeper, offset + at, size


def expectations() -> dict[str, int]:
    """Map every C expression that this package relies on to the value that it relies on."""
    expected: dict[str, int] = {}
    for name, struct in layout.STRUCTS.items():
        expected[f"sizeof(struct {name})"] = struct.itemsize
        for path, offset, size in leaves(struct):
            expected[f"offsetof(struct {name}, {path})"] = offset
            expected[f"sizeof(((struct {name} *)0)->{path})"] = size
    for request in Ioctl:
        expected[f"KVM_{request.name}"] = request.value
    for enum, prefix in PREFIXES.items():
        for member in enum:
            expected[f"{prefix}{member.name}"] = member.value
    expected["KVM_API_VERSION"] = API_VERSION
    expected["KVM_PIO_PAGE_OFFSET"] = PIO_PAGE_OFFSET
    expected["KVM_COALESCED_MMIO_PAGE_OFFSET"] = COALESCED_MMIO_PAGE_OFFSET
    return expected


def program(expressions: list[str]) -> str:
    """Write a C program that prints number and value of each expression, less the macros that the header lacks."""
    lines = [f"#include <{header}>" for header in HEADERS]
    lines.append("int main(void) {")
    for number, expression in enumerate(expressions):
        output = f'printf("%d %llu\\n", {number}, (unsigned long long)({expression}));'
        lines += [f"#ifdef {expression}", output, "#endif"] if expression.startswith("KVM_") else [output]
    lines += ["return 0;", "}"]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    folder: Path = tmp_path_factory.mktemp("layout")
    expressions = list(expectations())
    source, binary = folder / "layout.c", folder / "layout"
    source.write_text(program(expressions))
    try:
        built = subprocess.run(["gcc", "-w", "-o", binary, source], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.fail("the layouts can only be checked with gcc: install it (apt install gcc libc6-dev)")
    assert built.returncode == 0, built.stderr
    output = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
    pairs = (line.split() for line in output.splitlines())
    return {expressions[int(number)]: int(value) for number, value in pairs}


def test_everything_equals_the_header(header: dict[str, int]) -> None:
    expected = expectations()
    wrong = {name: (expected[name], value) for name, value in header.items() if expected[name] != value}
    assert wrong == {}, "ours, the header's"


def test_enough_was_compared(header: dict[str, int]) -> None:
    # Headers older than our newest constants miss a few macros; a filter gone wrong would miss most.
    missing = [name for name in expectations() if name not in header]
    assert len(missing) <= 24, missing
    assert all(name.startswith(("KVM_CAP_", "KVM_EXIT_")) for name in missing), missing
    assert sum(name.startswith("offsetof") for name in header) >= 900
    assert sum(name.startswith("sizeof(struct") for name in header) >= 50
    assert sum(name.startswith("KVM_") for name in header) >= 240


def test_no_two_constants_share_a_number() -> None:
    for enum in [Ioctl, *PREFIXES]:
        assert len(enum) == len(enum.__members__), enum


def test_offset_of_follows_nested_fields() -> None:
    assert layout.offset_of(layout.RUN, "s.regs.sregs.cs.selector") == 304 + 144 + 12
    with pytest.raises(KeyError):
        layout.offset_of(layout.RUN, "exit_reason.nothing")


def test_flexible_arrays_start_where_the_header_ends() -> None:
    for head, entry in (
        (layout.CPUID2, layout.CPUID_ENTRY2),
        (layout.MSRS, layout.MSR_ENTRY),
        (layout.IRQ_ROUTING, layout.IRQ_ROUTING_ENTRY),
    ):
        buffer, words, entries = tables.table(head, entry, 3)
        words[0] = 3
        entries[0] = np.zeros((), entry)
        entries.view(np.uint8)[:] = 0xFF
        assert buffer[: head.itemsize].tolist() == [3, 0, 0, 0, 0, 0, 0, 0]
        assert buffer[head.itemsize :].min() == 0xFF
        assert buffer.nbytes == head.itemsize + 3 * entry.itemsize
