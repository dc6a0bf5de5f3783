"""Symbol tables: nearest symbols, real ELF files against pyelftools, and garbage."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.debug.symbols import Symbol, SymbolTable

SOURCE = """
    .globl start, twin
    .type start, @function
    .set constant, 0x1234
start:
twin_label:
    nop
    .size start, . - start
    .skip 31
    .type helper, @function
helper:
    ret
    .size helper, . - helper
    .data
    .type table, @object
table:
    .quad 0
    .size table, 8
"""


def build(folder: Path, bits: int) -> bytes:
    """Assemble and link `SOURCE` at 1 MiB."""
    compiler, linker = shutil.which("as"), shutil.which("ld")
    assert compiler and linker, "binutils are needed to build the test's image"
    subprocess.run(
        [compiler, f"--{bits}", "-o", folder / "s.o", "-"], input=SOURCE, text=True, check=True, capture_output=True
    )
    emulation = {32: "elf_i386", 64: "elf_x86_64"}[bits]
    subprocess.run(
        [linker, "-m", emulation, "-Ttext=0x100000", "-e", "start", "-o", folder / "s.elf", folder / "s.o"],
        check=True,
        capture_output=True,
    )
    return (folder / "s.elf").read_bytes()


@pytest.fixture(scope="module", params=[32, 64])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build(tmp_path_factory.mktemp("elf"), request.param)


def test_an_elf_file_gives_the_symbols_that_pyelftools_finds(image: bytes) -> None:
    table = SymbolTable.from_elf(image)
    section = ELFFile(io.BytesIO(image)).get_section_by_name(".symtab")
    assert isinstance(section, SymbolTableSection)
    placed = {
        symbol.name: symbol["st_value"]
        for symbol in section.iter_symbols()
        if symbol.name
        and symbol["st_shndx"] not in ("SHN_UNDEF", "SHN_ABS")
        and symbol["st_info"]["type"] in ("STT_FUNC", "STT_NOTYPE", "STT_OBJECT")
    }
    assert len(table) == len(set(placed.values()))
    for value in placed.values():
        found = table.nearest(value)
        assert found is not None and found[1] == 0 and placed[found[0].name] == value
    assert {"start", "helper", "table"} <= placed.keys()


def test_functions_are_preferred_and_constants_left_out(image: bytes) -> None:
    table = SymbolTable.from_elf(image)
    assert table.name(0x100000) == "start"
    assert table.name(0x100005) == "start+0x5"
    assert table.name(0x100020) == "helper"
    assert table.name(0xFFFFF) is None
    assert table.name(0x1234) is None


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(0, 2**64 - 1), st.text(min_size=1), max_size=20),
    st.integers(0, 2**64 - 1),
    st.integers(0, 5),
)
def test_nearest_is_the_last_at_or_before(names: dict[int, str], address: int, back: int) -> None:
    table = SymbolTable(Symbol(value, 0, name) for value, name in names.items())
    for wanted in (address, *(value + back for value in names)):
        below = [value for value in names if value <= wanted and wanted - value < 1 << 20]
        found = table.nearest(wanted)
        if below:
            assert found == (Symbol(max(below), 0, names[max(below)]), wanted - max(below))
        else:
            assert found is None


def test_a_big_symbol_reaches_to_its_end() -> None:
    table = SymbolTable([Symbol(0x1000, 0x400000, "heap"), Symbol(0x1000, 1, "later")])
    assert table.name(0x1000 + 0x3FFFFF) == "heap+0x3fffff"
    assert table.name(0x1000 + 0x400000) is None


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + b"\xff" * 58, b"MZ" + b"\0" * 200])
def test_what_is_no_elf_gives_an_empty_table(data: bytes) -> None:
    assert len(SymbolTable.from_elf(data)) == 0


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutated_images_never_raise(image: bytes, data: st.DataObject) -> None:
    mutated = bytearray(image[: data.draw(st.integers(0, len(image)) | st.just(len(image)))])
    headers = (
        int.from_bytes(image[0x28:0x30], "little") if image[4] == 2 else int.from_bytes(image[0x20:0x24], "little")
    )
    for _ in range(data.draw(st.integers(0, 8))):
        where = data.draw(st.integers(0, 63) | st.integers(headers, len(image) - 1) | st.integers(0, len(image) - 1))
        value = data.draw(st.binary(min_size=1, max_size=8))
        if where + len(value) <= len(mutated):
            mutated[where : where + len(value)] = value
    table = SymbolTable.from_elf(bytes(mutated))
    assert len(table) <= len(image)
    for address in (0, 0x100000, 2**64 - 1):
        name = table.name(address)
        assert name is None or (name.isprintable() and len(name) < 160)


def test_names_cannot_carry_terminal_escapes(image: bytes) -> None:
    table = SymbolTable.from_elf(image.replace(b"helper\0", b"\x1b[2Jhe\0"))
    assert table.name(0x100020) == "?[2Jhe"
