"""The page walk against an oracle that is written apart from it, one function a mode, straight from the SDM's figures."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyvmm.errors import GuestMemoryError
from pyvmm.paging.entry import FORMATS, PagingMode, flag_names
from pyvmm.paging.result import FaultKind, Rights, describe_error_code
from pyvmm.paging.state import (
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NXE,
    EXECUTE,
    READ,
    WRITE,
    Access,
    AccessKind,
    PagingState,
)
from pyvmm.paging.walk import accessed_dirty_updates, check_access, walk

PAGES = 8
RAM = PAGES * 0x1000


class Memory:
    """Physical memory of a few pages."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def _read(self, gpa: int, size: int) -> int:
        if gpa + size > len(self.data):
            raise GuestMemoryError(gpa, size)
        return int.from_bytes(self.data[gpa : gpa + size], "little")

    def read_u32(self, gpa: int, /) -> int:
        return self._read(gpa, 4)

    def read_u64(self, gpa: int, /) -> int:
        return self._read(gpa, 8)

    def put(self, gpa: int, size: int, value: int) -> None:
        self.data[gpa : gpa + size] = value.to_bytes(size, "little")


class PageFaultError(Exception):
    """The oracle's page fault."""

    def __init__(self, code: int, level: int) -> None:
        super().__init__(hex(code))
        self.code = code
        self.level = level


class NoTableError(Exception):
    """The oracle found no memory for a table."""


class NotCanonicalError(Exception):
    """The oracle was asked for an address that is not canonical."""


class Oracle:
    """A slow and literal page walk; each mode is spelled out on its own."""

    def __init__(self, state: PagingState, data: bytearray, access: Access) -> None:
        self.s = state
        self.data = data
        self.a = access
        self.nxe = bool(state.efer & (1 << 11))
        self.entries: list[int] = []

    def load(self, gpa: int, size: int, level: int) -> int:
        """Read a present entry."""
        if gpa + size > len(self.data):
            raise NoTableError
        entry = int.from_bytes(self.data[gpa : gpa + size], "little")
        if entry % 2 == 0:
            raise self.fault(0, level)
        return entry

    def fault(self, low: int, level: int) -> PageFaultError:
        """Make the error code of SDM vol. 3A figure 4-12."""
        code = low
        if self.a.kind is AccessKind.WRITE:
            code += 2
        if self.a.user and not self.a.implicit:
            code += 4
        smep = self.s.cr4 >> 20 & 1
        pae = self.s.cr4 >> 5 & 1
        if self.a.kind is AccessKind.EXECUTE and (smep or (pae and self.nxe)):
            code += 16
        return PageFaultError(code, level)

    def reserve(self, entry: int, ranges: list[tuple[int, int]], level: int) -> None:
        """Fault if a bit in one of the ranges (high, low) is set."""
        for high, low in ranges:
            for bit in range(low, high + 1):
                if entry >> bit & 1:
                    raise self.fault(1 + 8, level)

    def translate(self, gva: int) -> tuple[int, int]:
        """Return GPA and page size, or raise."""
        if not self.s.cr0 >> 31 & 1:
            return gva % 2**32, 4096
        if self.s.efer >> 10 & 1:
            return self.long(gva, 5 if self.s.cr4 >> 12 & 1 else 4)
        if self.s.cr4 >> 5 & 1:
            return self.pae(gva % 2**32)
        return self.bits32(gva % 2**32)

    def bits32(self, gva: int) -> tuple[int, int]:
        pde = self.load((self.s.cr3 >> 12 << 12) % 2**32 + (gva >> 22) * 4, 4, 2)
        if pde >> 7 & 1 and self.s.cr4 >> 4 & 1:
            m = min(40, self.s.maxphyaddr) if self.s.pse36 else 32
            self.reserve(pde, [(21, m - 19)], 2)
            self.permit([pde], 2)
            return (pde >> 13 & 0xFF) * 2**32 + (pde >> 22) * 2**22 + gva % 2**22, 2**22
        pte = self.load((pde >> 12) * 4096 + (gva >> 12) % 1024 * 4, 4, 1)
        self.permit([pde, pte], 1)
        return (pte >> 12) * 4096 + gva % 4096, 4096

    def pae(self, gva: int) -> tuple[int, int]:
        top = self.s.maxphyaddr
        pdpte = self.load((self.s.cr3 % 2**32 >> 5 << 5) + (gva >> 30) * 8, 8, 3)
        self.reserve(pdpte, [(2, 1), (8, 5), (63, top)], 3)
        pde = self.load((pdpte >> 12) % 2**40 * 4096 + (gva >> 21) % 512 * 8, 8, 2)
        high = [(62, top)] + ([] if self.nxe else [(63, 63)])
        if pde >> 7 & 1:
            self.reserve(pde, [*high, (20, 13)], 2)
            self.permit([pde], 2)
            return (pde >> 21) % 2**31 * 2**21 + gva % 2**21, 2**21
        self.reserve(pde, high, 2)
        pte = self.load((pde >> 12) % 2**40 * 4096 + (gva >> 12) % 512 * 8, 8, 1)
        self.reserve(pte, high, 1)
        self.permit([pde, pte], 1)
        return (pte >> 12) % 2**40 * 4096 + gva % 4096, 4096

    def long(self, gva: int, levels: int) -> tuple[int, int]:
        width = {4: 48, 5: 57}[levels]
        sign = gva >> (width - 1) & 1
        if any((gva >> bit & 1) != sign for bit in range(width, 64)):
            raise NotCanonicalError
        high = [(51, self.s.maxphyaddr)] + ([] if self.nxe else [(63, 63)])
        table = self.s.cr3 % 2**52 >> 12 << 12
        path = []
        for level in range(levels, 0, -1):
            entry = self.load(table + (gva >> (12 + 9 * (level - 1))) % 512 * 8, 8, level)
            path.append(entry)
            rules = list(high)
            size = 4096 << 9 * (level - 1)
            big = level in (2, 3) and bool(entry >> 7 & 1)
            if level >= 4:
                rules.append((7, 7))
            if level >= 3 and not big and self.s.nonleaf_global:
                rules.append((8, 8))
            if big:
                rules.append(({2: 20, 3: 29}[level], 13))
                if level == 3 and not self.s.gbpages:
                    rules.append((7, 7))
            self.reserve(entry, rules, level)
            if big or level == 1:
                self.permit(path, level)
                return entry % 2**52 // size * size + gva % size, size
            table = entry % 2**52 >> 12 << 12
        raise AssertionError

    def permit(self, path: list[int], level: int) -> None:
        """Apply SDM vol. 3A section 4.6.1 as it is written."""
        self.entries = path
        user_page = all(entry >> 2 & 1 for entry in path)
        writable = all(entry >> 1 & 1 for entry in path)
        xd = self.nxe and self.s.cr4 >> 5 & 1 and any(entry >> 63 & 1 for entry in path)
        if not permitted(self.s, self.a, user_page, writable, bool(xd)):
            raise self.fault(1, level)


def permitted(s: PagingState, a: Access, user_page: bool, writable: bool, xd: bool) -> bool:
    """Tell whether the SDM's list of cases allows an access."""
    wp, smep, smap = s.cr0 >> 16 & 1, s.cr4 >> 20 & 1, s.cr4 >> 21 & 1
    if a.implicit or not a.user:
        if a.kind is AccessKind.READ:
            if not user_page:
                return True
            return not smap or (a.ac and not a.implicit)
        if a.kind is AccessKind.WRITE:
            if not user_page:
                return writable or not wp
            if not smap or (a.ac and not a.implicit):
                return writable or not wp
            return False
        if not user_page:
            return not xd
        return not smep and not xd
    if a.kind is AccessKind.READ:
        return user_page
    if a.kind is AccessKind.WRITE:
        return user_page and writable
    return user_page and not xd


def entries(size: int) -> st.SearchStrategy[int]:
    """Entries that mostly point into RAM, with flags that mostly let a walk go on."""
    frame = st.one_of(st.integers(0, PAGES - 1), st.integers(0, PAGES - 1), st.integers(0, 2**20 - 1)).map(
        lambda n: n << 12
    )
    low = st.one_of(st.sampled_from([7, 7, 7, 0x87, 0x27, 3, 5, 1, 0, 0x67, 0x107]), st.integers(0, 0xFFF))
    flags = st.tuples(frame, low).map(lambda t: t[0] | t[1])
    if size == 4:
        return flags
    top = st.sampled_from([0, 0, 0, 1 << 63, 1 << 62, 1 << 51, 1 << 40, 1 << 36, 1 << 52])
    return st.tuples(flags, top).map(lambda t: t[0] | t[1])


@st.composite
def states(draw: st.DrawFn) -> PagingState:
    mode = draw(st.sampled_from([PagingMode.NONE, *FORMATS, *FORMATS]))
    cr0 = draw(st.sampled_from([0, CR0_WP])) | (0 if mode is PagingMode.NONE else CR0_PG)
    cr4 = 0
    for bit in (CR4_PSE, CR4_PGE, CR4_SMEP, CR4_SMAP):
        cr4 |= draw(st.sampled_from([0, bit]))
    efer = draw(st.sampled_from([0, EFER_NXE]))
    if mode in (PagingMode.LONG4, PagingMode.LONG5):
        efer |= EFER_LMA
    if mode in (PagingMode.PAE, PagingMode.LONG4, PagingMode.LONG5):
        cr4 |= CR4_PAE
    if mode is PagingMode.LONG5:
        cr4 |= CR4_LA57
    cr3 = draw(st.integers(0, PAGES - 1)) << 12 | draw(st.sampled_from([0, 0, 0x18, 0xFE0, 0xFFF]))
    return PagingState(
        cr0,
        cr3,
        cr4,
        efer,
        draw(st.sampled_from([32, 36, 40, 48, 52])),
        None,
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
    )


accesses = st.builds(Access, st.sampled_from(list(AccessKind)), st.booleans(), st.booleans(), st.booleans())
addresses = st.one_of(
    st.sampled_from(
        [0, 1 << 47, (1 << 47) - 1, -(1 << 47) % 2**64, -(1 << 56) % 2**64, 1 << 56, 2**64 - 1, 2**32, 0x12345]
    ),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**48 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(1, 2**47).map(lambda n: 2**64 - n),
)


@settings(max_examples=600, deadline=None)
@given(states(), addresses, accesses, st.data())
def test_walk_agrees_with_the_oracle(state: PagingState, gva: int, access: Access, data: st.DataObject) -> None:
    ram = bytearray(RAM)
    memory = Memory(ram)
    size = 4 if state.mode is PagingMode.BITS32 else 8
    # Each table the walk comes to is given a random entry where the walk will look, then the walk goes one level on.
    for _ in range(5):
        steps = walk(state, memory, gva, access).steps
        fresh = [step for step in steps if step.entry == 0]
        if not fresh:
            break
        memory.put(fresh[-1].address, size, data.draw(entries(size)))
    result = walk(state, memory, gva, access)
    oracle = Oracle(state, ram, access)
    try:
        expected = oracle.translate(gva)
    except NotCanonicalError:
        assert result.fault is not None
        assert (result.fault.kind, result.fault.error_code) == (FaultKind.NON_CANONICAL, None)
        assert result.steps == ()
    except NoTableError:
        assert result.fault is not None
        assert (result.fault.kind, result.fault.error_code) == (FaultKind.NO_MEMORY, None)
    except PageFaultError as fault:
        assert result.gpa is None and result.fault is not None
        assert result.fault.error_code == fault.code
        assert result.steps[-1].level == fault.level
        kinds = {0: FaultKind.NOT_PRESENT, 1: FaultKind.PROTECTION, 9: FaultKind.RESERVED}
        assert result.fault.kind is kinds[fault.code & 9]
    else:
        assert result.fault is None
        assert (result.gpa, result.page_size) == expected
    json.dumps(result.to_dict())
    assert len(result.describe()) == len(result.steps) + 2
    assert all("\n" not in line for line in result.describe())


FEATURES = [
    *({"maxphyaddr": width, "efer": nxe} for width in (32, 36, 40, 48, 52) for nxe in (0, EFER_NXE)),
    {"maxphyaddr": 36, "pse36": False},
    {"gbpages": False},
    {"nonleaf_global": True},
]


@pytest.mark.parametrize("mode", list(FORMATS))
@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_each_bit_at_each_level_has_the_meaning_that_the_oracle_gives_it(
    mode: PagingMode, features: dict[str, Any]
) -> None:
    """Flip every single bit of the entry at every level, as a table and as a page; compare with the oracle."""
    fmt = FORMATS[mode]
    cr4 = CR4_PSE if mode is PagingMode.BITS32 else CR4_PAE | (CR4_LA57 if mode is PagingMode.LONG5 else 0)
    state = PagingState(CR0_PG, 0, cr4, 0)._replace(**features)
    if fmt.linear_bits > 32:
        state = state._replace(efer=state.efer | EFER_LMA)
    seen = set()
    for depth, level in enumerate(fmt.levels):
        for large in (False, True) if level.large else (False,):
            for bit in range(8 * fmt.entry_size):
                memory = Memory(bytearray(RAM))
                for above in range(depth + 1):
                    plain = 1 if mode is PagingMode.PAE and above == 0 else 7
                    memory.put(above << 12, fmt.entry_size, (above + 1) << 12 | plain)
                for below in range(depth + 1, len(fmt.levels)):
                    memory.put(below << 12, fmt.entry_size, (below + 1) << 12 | 7)
                plain = memory.data[depth << 12] & 7
                base = (0x80 if large else (depth + 1) << 12) | plain
                memory.put(depth << 12, fmt.entry_size, base ^ 1 << bit)
                result = walk(state, memory, 0x123, WRITE)
                try:
                    expected: object = Oracle(state, memory.data, WRITE).translate(0x123)
                except PageFaultError as fault:
                    expected = fault.code, fault.level
                except NoTableError:
                    expected = None
                if result.fault is None:
                    actual: object = (result.gpa, result.page_size)
                elif result.fault.error_code is None:
                    actual = None
                else:
                    actual = (result.fault.error_code, result.steps[-1].level)
                assert actual == expected, (level.name, large, bit)
                seen.add(result.fault.kind if result.fault else None)
    assert {None, FaultKind.NOT_PRESENT} <= seen


@settings(max_examples=300, deadline=None)
@given(states(), addresses, st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=7), accesses)
@example(PagingState(CR0_PG, 2**64 - 1, CR4_PAE, EFER_LMA), 0, [2**64 - 1], READ)
def test_any_content_of_tables_and_cr3_gives_an_outcome(
    state: PagingState, gva: int, words: list[int], access: Access
) -> None:
    pattern = b"".join(word.to_bytes(8, "little") for word in words)
    memory = Memory(bytearray((pattern * (RAM // len(pattern) + 1))[:RAM]))
    result = walk(state, memory, gva, access)
    assert (result.gpa is None) != (result.fault is None)
    assert result.outcome()


def test_permission_matrix_over_every_combination() -> None:
    flags = (False, True)
    count = 0
    for kind, user, ac, implicit, wp, smep, smap, page_user, writable, xd in itertools.product(
        AccessKind, flags, flags, flags, flags, flags, flags, flags, flags, flags
    ):
        state = PagingState(
            CR0_PG | (CR0_WP if wp else 0),
            0,
            CR4_PAE | (CR4_SMEP if smep else 0) | (CR4_SMAP if smap else 0),
            EFER_LMA | EFER_NXE,
        )
        access = Access(kind, user, ac, implicit)
        allowed = check_access(state, Rights(writable, page_user, not xd), access) is None
        assert allowed == permitted(state, access, page_user, writable, xd), (state, access)
        count += 1
    assert count == 3 * 2**9


def test_rights_need_every_level() -> None:
    """A bit cleared (or NX set) at any one level of the four takes the right away, and the leaf alone decides G."""
    state = PagingState(CR0_PG, 0, CR4_PAE | CR4_PGE, EFER_LMA | EFER_NXE)
    for level in range(4):
        for clear, name in ((2, "writable"), (4, "user"), (1 << 63, "executable"), (0, "")):
            memory = Memory(bytearray(RAM))
            for i in range(4):
                entry = (i + 1) << 12 | 7
                if i == level:
                    entry ^= clear
                memory.put(i << 12, 8, entry | (0x100 if i == 3 else 0))
            rights = walk(state, memory, 0x123).rights
            assert rights is not None and rights.global_page
            for right in ("writable", "user", "executable"):
                assert getattr(rights, right) == (right != name)


def one_page(entry: int = 0x4007) -> Memory:
    memory = Memory(bytearray(RAM))
    for table, value in ((0, 0x1007), (0x1000, 0x2007), (0x2000, 0x3007), (0x3000, entry)):
        memory.put(table, 8, value)
    return memory


LONG = PagingState(CR0_PG | CR0_WP, 0, CR4_PAE, EFER_LMA | EFER_NXE)


@pytest.mark.parametrize(
    ("entry", "access", "code", "names"),
    [
        (0x4006, READ, 0, "none set"),
        (0x4006, Access(AccessKind.WRITE, user=True), 6, "W/R U/S"),
        (0x4003, Access(user=True), 5, "P U/S"),
        (0x4005, WRITE, 3, "P W/R"),
        (0x4007 | 1 << 63, EXECUTE, 17, "P I/D"),
        (0x4007 | 1 << 51, READ, 9, "P RSVD"),
    ],
)
def test_error_codes_are_those_of_the_hardware(entry: int, access: Access, code: int, names: str) -> None:
    fault = walk(LONG._replace(maxphyaddr=48), one_page(entry), 0x10, access).fault
    assert fault is not None
    assert fault.error_code == code
    assert describe_error_code(code) == names
    assert f"{code:#x} ({names})" in str(fault)


def test_nothing_but_pdptrs_of_pae_is_taken_from_registers() -> None:
    memory = Memory(bytearray(RAM))
    memory.put(0x2000, 8, 0x40_0000 | 0x87)
    state = PagingState(CR0_PG, 0x1000, CR4_PAE, 0, pdptrs=(0x2001, 0, 0, 0))
    assert walk(state, memory, 0x1234).gpa == 0x40_1234
    assert walk(state._replace(pdptrs=None), memory, 0x1234).fault is not None
    assert walk(state._replace(efer=EFER_LMA), memory, 0x1234).fault is not None


def test_a_pdpte_of_pae_holds_no_rights() -> None:
    """A PDPTE with only P set still lets user mode write: R/W and U/S do not exist there (SDM table 4-8)."""
    memory = Memory(bytearray(RAM))
    memory.put(0x1000, 8, 0x2001)
    memory.put(0x2000, 8, 0x40_0087)
    state = PagingState(CR0_PG, 0x1000, CR4_PAE, 0)
    result = walk(state, memory, 0, Access(AccessKind.WRITE, user=True))
    assert result.gpa == 0x40_0000
    assert [update.address for update in accessed_dirty_updates(result)] == [0x2000]


@settings(max_examples=200, deadline=None)
@given(states(), st.integers(0, 2**32 - 1), accesses, st.data())
def test_accessed_and_dirty_are_set_once_and_change_nothing_else(
    state: PagingState, gva: int, access: Access, data: st.DataObject
) -> None:
    memory = Memory(bytearray(RAM))
    size = 4 if state.mode is PagingMode.BITS32 else 8
    for _ in range(5):
        fresh = [step for step in walk(state, memory, gva, access).steps if step.entry == 0]
        if fresh:
            memory.put(fresh[-1].address, size, data.draw(entries(size)))
    before = walk(state, memory, gva, access)
    updates = accessed_dirty_updates(before)
    assert not (updates and before.fault)
    leaves = [step.address for step in before.steps if step.leaf]
    for update in updates:
        assert update.old != update.new
        assert not update.new & ~update.old & 0x40 or update.address in leaves
        assert update.new & ~update.old & ~0x60 == 0 and update.old & ~update.new == 0
        memory.put(update.address, update.size, update.new)
    # Tables that point to themselves can hold one entry at two levels; only the plain case has one outcome.
    if before.fault is None and len({step.address for step in before.steps}) == len(before.steps):
        after = walk(state, memory, gva, access)
        assert (after.gpa, after.rights) == (before.gpa, before.rights)
        assert accessed_dirty_updates(after) == ()
        if after.steps:
            leaf = after.steps[-1]
            assert leaf.entry & 0x20
            assert bool(leaf.entry & 0x40) >= (access.kind is AccessKind.WRITE)


def test_flag_names_follow_the_kind_of_entry() -> None:
    fmt = FORMATS[PagingMode.LONG4]
    pml4, _, pd, pt = fmt.levels
    assert flag_names(fmt, pt, True, 0x1E7 | 1 << 63) == ("P", "RW", "US", "A", "D", "G", "PAT", "NX")
    assert flag_names(fmt, pd, True, 0x10E1) == ("P", "A", "D", "PS", "PAT")
    assert flag_names(fmt, pml4, False, 0x1FF) == ("P", "RW", "US", "PWT", "PCD", "A")
    assert flag_names(fmt, pt, True, 0x1E6) == ()
    pae = FORMATS[PagingMode.PAE]
    assert flag_names(pae, pae.levels[0], False, 0x3F) == ("P", "PWT", "PCD")


def test_description_tells_path_and_outcome() -> None:
    lines = walk(LONG, one_page(), 0x345, READ).describe()
    assert lines[0] == "GVA 0x345, 4-level paging, supervisor read"
    assert lines[1] == "  PML4E[0] at 0x0 = 0x1007  P RW US"
    assert lines[-1] == "  -> GPA 0x4345, 4 KiB page, rwx user"
    assert walk(PagingState(0, 0, 0, 0), one_page(), 2**32 + 5).describe() == [
        "GVA 0x5, no paging, supervisor read",
        "  -> GPA 0x5",
    ]


def test_a_write_dirties_the_leaf_alone_and_a_read_nothing() -> None:
    memory = one_page()
    assert [(u.address, u.new - u.old) for u in accessed_dirty_updates(walk(LONG, memory, 0x10, WRITE))] == [
        (0, 0x20),
        (0x1000, 0x20),
        (0x2000, 0x20),
        (0x3000, 0x60),
    ]
    assert {u.new - u.old for u in accessed_dirty_updates(walk(LONG, memory, 0x10, READ))} == {0x20}
    assert accessed_dirty_updates(walk(LONG, one_page(0x4005), 0x10, WRITE)) == ()
