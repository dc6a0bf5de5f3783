"""Table builders: what they build translates as asked, and what cannot be built is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyvmm.errors import GuestMemoryError
from pyvmm.paging.build import TableBuilder, identity_map, identity_tables
from pyvmm.paging.entry import FORMATS, GLOBAL, LARGE, PRESENT, USER, WRITABLE, PagingMode, page_address, page_entry
from pyvmm.paging.result import FaultKind
from pyvmm.paging.state import CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, EFER_NXE, WRITE, PagingState
from pyvmm.paging.walk import walk


class Memory:
    """Sparse physical memory of `size` bytes, zero where nothing was written."""

    def __init__(self, size: int = 1 << 40) -> None:
        self.size = size
        self.words: dict[int, int] = {}

    def _check(self, gpa: int, size: int) -> None:
        if gpa < 0 or gpa + size > self.size:
            raise GuestMemoryError(gpa, size)

    def read_u32(self, gpa: int, /) -> int:
        self._check(gpa, 4)
        return self.words.get(gpa, 0)

    def write_u32(self, gpa: int, value: int, /) -> None:
        self._check(gpa, 4)
        self.words[gpa] = value

    def read_u64(self, gpa: int, /) -> int:
        return self.read_u32(gpa) | self.read_u32(gpa + 4) << 32

    def write_u64(self, gpa: int, value: int, /) -> None:
        self.write_u32(gpa, value & 0xFFFF_FFFF)
        self.write_u32(gpa + 4, value >> 32)


class Block:
    """Physical memory that is one array of 64-bit words from `base` on."""

    def __init__(self, base: int, words: NDArray[np.uint64]) -> None:
        self.base = base
        self.words = words.reshape(-1)

    def read_u32(self, gpa: int, /) -> int:
        raise AssertionError("tables of 64-bit entries are read in 64-bit words")

    def read_u64(self, gpa: int, /) -> int:
        return int(self.words[(gpa - self.base) // 8])


class Pages:
    """Hands out zeroed pages, in ascending order."""

    def __init__(self, first: int = 0x10_0000) -> None:
        self.next = first

    def __call__(self) -> int:
        self.next += 0x1000
        return self.next - 0x1000


STATES = {
    PagingMode.BITS32: PagingState(CR0_PG, 0, CR4_PSE, 0),
    PagingMode.PAE: PagingState(CR0_PG, 0, CR4_PAE, EFER_NXE),
    PagingMode.LONG4: PagingState(CR0_PG, 0, CR4_PAE, EFER_NXE | EFER_LMA),
    PagingMode.LONG5: PagingState(CR0_PG, 0, CR4_PAE | CR4_LA57, EFER_NXE | EFER_LMA),
}


def state_for(builder: TableBuilder) -> PagingState:
    base = STATES[builder.format.mode]
    return PagingState(base.cr0, builder.root, base.cr4, base.efer)


@settings(deadline=None)
@given(
    tables=st.integers(0, 1 << 20).map(lambda n: n * 0x1000),
    size=st.one_of(st.integers(1, 8 << 30), st.sampled_from([1 << 21, (1 << 30) + 1, 512 << 30])),
    data=st.data(),
)
def test_identity_map_maps_exactly_its_size(tables: int, size: int, data: st.DataObject) -> None:
    memory = Block(tables, identity_tables(tables, size))
    used = memory.words.nbytes
    state = PagingState(CR0_PG, tables, CR4_PAE, EFER_LMA)
    end = -(-size // (2 << 20)) * (2 << 20)
    inside = [0, size - 1, end - 1, data.draw(st.integers(0, end - 1))]
    for gva in inside:
        result = walk(state, memory, gva, WRITE)
        assert result.gpa == gva
        assert all(tables <= step.address < tables + used for step in result.steps)
        assert not (result.rights and result.rights.user)
    if end < 512 << 30:
        assert walk(state, memory, end).fault is not None
    assert walk(state, memory, 1 << 39).fault is not None


def test_identity_map_writes_what_identity_tables_returns() -> None:
    memory = Memory()
    assert identity_map(memory.write_u64, 0x7000, 3 << 30, user=True) == (0x7000, 5 * 0x1000)
    words = identity_tables(0x7000, 3 << 30, user=True).reshape(-1)
    assert [memory.read_u64(0x7000 + 8 * i) for i in range(len(words))] == words.tolist()
    rights = walk(PagingState(CR0_PG, 0x7000, CR4_PAE, EFER_LMA), memory, 0x1234).rights
    assert rights is not None and rights.user and rights.writable


@pytest.mark.parametrize(
    ("tables", "size"), [(0x1001, 1 << 30), (-0x1000, 1 << 30), (0, 0), (0, -1), (0, (512 << 30) + 1)]
)
def test_identity_map_refuses(tables: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"page tables must start|an identity map can have"):
        identity_map(Memory().write_u64, tables, size)


def page_sizes(mode: PagingMode) -> list[int]:
    return [level.page_size for level in FORMATS[mode].levels if level.large or level.number == 1]


@st.composite
def mappings(draw: st.DrawFn) -> tuple[PagingMode, dict[int, tuple[int, int, int]]]:
    """A mode, and disjoint pages as linear address -> (size, GPA, flags); each has a 4 GiB-wide neighbourhood or less."""
    mode = draw(st.sampled_from(list(FORMATS)))
    fmt = FORMATS[mode]
    result: dict[int, tuple[int, int, int]] = {}
    for _ in range(draw(st.integers(1, 12))):
        size = draw(st.sampled_from(page_sizes(mode)))
        near = draw(st.sampled_from([0, 1 << 31, 1 << (fmt.linear_bits - 1), (1 << fmt.linear_bits) - (1 << 31)]))
        gva = (near + draw(st.integers(0, (1 << 31) - 1))) % (1 << fmt.linear_bits) // size * size
        if fmt.linear_bits > 32 and gva >> (fmt.linear_bits - 1):
            gva |= (1 << 64) - (1 << fmt.linear_bits)
        widest = 32 if fmt.entry_size == 4 and size == 0x1000 else 40
        gpa = draw(st.integers(0, (1 << widest) // size - 1)) * size
        flags = draw(st.sampled_from([0, WRITABLE, USER, WRITABLE | USER, WRITABLE | GLOBAL]))
        if all(gva + size <= other or gva >= other + result[other][0] for other in result):
            result[gva] = (size, gpa, flags)
    return mode, result


@settings(deadline=None)
@given(mappings(), st.data())
def test_what_is_mapped_translates_and_what_is_unmapped_faults(
    built: tuple[PagingMode, dict[int, tuple[int, int, int]]], data: st.DataObject
) -> None:
    mode, pages = built
    memory = Memory()
    builder = TableBuilder(memory, Pages(), mode)
    for gva, (size, gpa, flags) in pages.items():
        address = builder.map(gva, gpa, flags, size)
        assert address == builder.entry_address(gva, size)
    state = state_for(builder)
    assert len(set(builder.tables)) == len(builder.tables)
    for gva, (size, gpa, flags) in pages.items():
        offset = data.draw(st.integers(0, size - 1))
        result = walk(state, memory, gva + offset)
        assert (result.gpa, result.page_size) == (gpa + offset, size)
        assert result.rights is not None
        assert (result.rights.writable, result.rights.user) == (bool(flags & WRITABLE), bool(flags & USER))
        assert {step.table for step in result.steps} <= set(builder.tables)
    gone = data.draw(st.sampled_from(sorted(pages)))
    assert builder.unmap(gone, pages[gone][0])
    assert not builder.unmap(gone, pages[gone][0])
    for gva, (size, gpa, _) in pages.items():
        result = walk(state, memory, gva + size - 1)
        if gva == gone:
            assert result.fault is not None and result.fault.kind is FaultKind.NOT_PRESENT
            assert FORMATS[mode].levels[len(result.steps) - 1].page_size == size
        else:
            assert result.gpa == gpa + size - 1


def test_map_range_covers_the_last_partial_page() -> None:
    memory = Memory()
    builder = TableBuilder(memory, Pages())
    builder.map_range(0x40_0000, 0x8000, 0x2001)
    state = state_for(builder)
    assert walk(state, memory, 0x40_2FFF).gpa == 0xAFFF
    assert walk(state, memory, 0x40_3000).fault is not None


def test_a_page_can_be_replaced_by_one_of_its_size_only() -> None:
    builder = TableBuilder(Memory(), Pages())
    builder.map(0x20_0000, 0x1000)
    builder.map(0x20_0000, 0x2000)
    with pytest.raises(ValueError, match="smaller pages are mapped"):
        builder.map(0x20_0000, 0x20_0000, size=2 << 20)
    builder.map(0x40_0000, 0x20_0000, size=2 << 20)
    with pytest.raises(ValueError, match="lies in a page of 0x200000 bytes"):
        builder.map(0x40_1000, 0x1000)


@pytest.mark.parametrize(
    ("mode", "gva", "gpa", "size"),
    [
        (PagingMode.LONG4, 0x1001, 0, 0x1000),
        (PagingMode.LONG4, 0x1000, 0x10, 0x1000),
        (PagingMode.LONG4, 0x1000, 1 << 52, 0x1000),
        (PagingMode.LONG4, 0x1000, -0x1000, 0x1000),
        (PagingMode.LONG4, 1 << 47, 0, 0x1000),
        (PagingMode.LONG4, 1 << 64, 0, 0x1000),
        (PagingMode.LONG4, -0x1000, 0, 0x1000),
        (PagingMode.LONG4, 0, 0, 4 << 20),
        (PagingMode.LONG4, 0, 0, 512 << 30),
        (PagingMode.LONG5, 1 << 56, 0, 0x1000),
        (PagingMode.PAE, 1 << 32, 0, 0x1000),
        (PagingMode.PAE, 0, 0, 1 << 30),
        (PagingMode.BITS32, 0, 1 << 32, 0x1000),
        (PagingMode.BITS32, 0, 1 << 40, 4 << 20),
        (PagingMode.BITS32, 0, 0, 2 << 20),
    ],
)
def test_map_refuses(mode: PagingMode, gva: int, gpa: int, size: int) -> None:
    memory = Memory()
    builder = TableBuilder(memory, Pages(), mode)
    with pytest.raises(ValueError):
        builder.map(gva, gpa, size=size)
    assert not memory.words


def test_tables_must_be_where_entries_can_point() -> None:
    with pytest.raises(ValueError, match="has no page tables"):
        TableBuilder(Memory(), Pages(), PagingMode.NONE)
    with pytest.raises(ValueError, match="cannot have a table at"):
        TableBuilder(Memory(), Pages(1 << 32), PagingMode.PAE)
    with pytest.raises(ValueError, match="cannot have a table at"):
        TableBuilder(Memory(), Pages(0x1008))


@settings(deadline=None)
@given(st.sampled_from(list(FORMATS)), st.data())
def test_page_entry_is_the_inverse_of_page_address(mode: PagingMode, data: st.DataObject) -> None:
    fmt = FORMATS[mode]
    level = data.draw(st.sampled_from([level for level in fmt.levels if level.large or level.number == 1]))
    width = 52 if fmt.entry_size == 8 else 32 if level.number == 1 else 40
    gpa = data.draw(st.integers(0, (1 << width) // level.page_size - 1)) * level.page_size
    entry = page_entry(fmt, level, gpa, PRESENT | USER)
    assert page_address(fmt, level, entry) == gpa
    assert entry >> 8 * fmt.entry_size == 0
    assert bool(entry & LARGE) == (level.number > 1)
