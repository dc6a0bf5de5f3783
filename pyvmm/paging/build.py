"""Builders of page tables: identity maps for starting a guest, and a `TableBuilder` for any mapping in any format."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from pyvmm.paging.entry import (
    ACCESSED,
    DIRTY,
    FORMATS,
    LARGE,
    PAGE_SIZE,
    PRESENT,
    USER,
    WRITABLE,
    Format,
    Level,
    PagingMode,
    page_entry,
    table_address,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TABLE_ENTRIES = 512
_LARGE_PAGE = 2 << 20
_MAX_IDENTITY = 512 << 30


class PhysicalMemory(Protocol):
    """What a builder needs of guest-physical memory: little-endian words at a GPA."""

    def read_u32(self, gpa: int, /) -> int: ...
    def read_u64(self, gpa: int, /) -> int: ...
    def write_u32(self, gpa: int, value: int, /) -> None: ...
    def write_u64(self, gpa: int, value: int, /) -> None: ...


def identity_words(tables: int, size: int = 4 << 30, user: bool = False) -> list[int]:
    """Return 4-level tables that map each linear address below `size` to itself, in 2 MiB pages.

    Args:
        tables: GPA where the caller will put the tables; a multiple of 4096.
        size: bytes to map from 0 on, rounded up to 2 MiB; at most 512 GiB.
        user: let user mode reach the pages too.

    Returns:
        The entries, 64 bits each, 512 a table, in the order of the tables' addresses, the root first.

    Raises:
        ValueError: `tables` is not page-aligned, or `size` is out of range.
    """
    if tables % PAGE_SIZE or tables < 0:
        raise ValueError(f"page tables must start on a 4096-byte boundary, not at {tables:#x}")
    if not 0 < size <= _MAX_IDENTITY:
        raise ValueError(f"an identity map can have 1 byte to {_MAX_IDENTITY:#x} bytes, not {size:#x}")
    pages = -(-size // _LARGE_PAGE)
    directories = -(-pages // _TABLE_ENTRIES)
    # Accessed and dirty are set beforehand so that the CPU has no reason to write to the tables.
    flags = PRESENT | WRITABLE | ACCESSED | (USER if user else 0)
    below = tables + 2 * PAGE_SIZE
    leaf = flags | LARGE | DIRTY
    return [
        tables + PAGE_SIZE | flags,
        *[0] * (_TABLE_ENTRIES - 1),
        *range(below | flags, below + directories * PAGE_SIZE | flags, PAGE_SIZE),
        *[0] * (_TABLE_ENTRIES - directories),
        *range(leaf, pages * _LARGE_PAGE | leaf, _LARGE_PAGE),
        *[0] * (-pages % _TABLE_ENTRIES),
    ]


def identity_tables(tables: int, size: int = 4 << 30, user: bool = False) -> NDArray[np.uint64]:
    """Return what `identity_words` does as an array of shape (n, 512), one row a table."""
    import numpy as np  # not for those who start a guest, which takes less time than this

    return np.array(identity_words(tables, size, user), np.uint64).reshape(-1, _TABLE_ENTRIES)


def identity_map(
    write_u64: Callable[[int, int], None], tables: int, size: int = 4 << 30, user: bool = False
) -> tuple[int, int]:
    """Write 4-level tables that map each linear address below `size` to itself, in 2 MiB pages.

    Only entries that are not zero are written: `tables` must lie in memory that is still zero. `identity_tables` gives
    the same as one array, for callers that can write an array.

    Args:
        write_u64: stores a 64-bit word at a GPA.
        tables: GPA of the first table (the root); a multiple of 4096.
        size: bytes to map from 0 on, rounded up to 2 MiB; at most 512 GiB.
        user: let user mode reach the pages too.

    Returns:
        The value for CR3, and the bytes that the tables take from `tables` on.

    Raises:
        ValueError: `tables` is not page-aligned, or `size` is out of range.
    """
    words = identity_words(tables, size, user)
    for index, word in enumerate(words):
        if word:
            write_u64(tables + 8 * index, word)
    return tables, 8 * len(words)


class TableBuilder:
    """Build page tables in guest memory, page by page, in any paging format.

    Intermediate tables are taken from `allocate` when first needed, with the widest rights, so that the leaf alone
    decides what is allowed. Accessed and dirty bits are left to the CPU.

    Attributes:
        format: the entry format in use.
        root: GPA of the root table, the value for CR3.
        tables: GPAs of all tables that this builder took, the root first.
    """

    def __init__(
        self, memory: PhysicalMemory, allocate: Callable[[], int], mode: PagingMode = PagingMode.LONG4
    ) -> None:
        """Take the root table from `allocate`.

        Args:
            memory: where the tables live.
            allocate: returns the GPA of a zeroed 4096-byte page, page-aligned, at each call (below 4 GiB for the root
                of PAE paging and for every table of 32-bit paging, whose entries hold no more).
            mode: which format to build.

        Raises:
            ValueError: `mode` has no tables, or `allocate` gave a page that the format cannot point to.
        """
        if mode not in FORMATS:
            raise ValueError(f"{mode.value} has no page tables to build")
        self.format: Format = FORMATS[mode]
        self.tables: list[int] = []
        self._memory = memory
        self._allocate = allocate
        self.root: int = self._table(self.format.root_mask)

    def map(self, gva: int, gpa: int, flags: int = WRITABLE, size: int = PAGE_SIZE) -> int:
        """Map one page; a mapping of the same size already there is replaced.

        Args:
            gva: linear address, aligned to `size`.
            gpa: physical address, aligned to `size`.
            flags: leaf bits as in `pyvmm.paging.entry`; `PRESENT` and, for a large page, `LARGE` are added.
            size: page size in bytes, one that the format has: 4 KiB, 2 MiB, 1 GiB, or 4 MiB in 32-bit paging.

        Returns:
            The GPA of the entry that maps the page.

        Raises:
            ValueError: an address is misaligned, not canonical or too wide, the format has no such page size, a large
                page is already mapped across `gva`, or a table of smaller pages is in the place of this page.
        """
        level = self._leaf_level(gva, size)
        value = page_entry(self.format, level, gpa, flags | PRESENT)
        address = self._descend(gva, level, create=True)
        assert address is not None
        self._write(address, value)
        return address

    def map_range(self, gva: int, gpa: int, length: int, flags: int = WRITABLE, size: int = PAGE_SIZE) -> None:
        """Map `length` bytes from `gva` on to `gpa` on, in pages of `size`; `length` is rounded up to whole pages.

        Raises:
            ValueError: as `map`.
        """
        for offset in range(0, length, size):
            self.map(gva + offset, gpa + offset, flags, size)

    def unmap(self, gva: int, size: int = PAGE_SIZE) -> bool:
        """Clear the entry that maps the page of `size` bytes at `gva`; return whether it was there.

        Tables that become empty stay where they are.

        Raises:
            ValueError: as `map`.
        """
        address = self._descend(gva, self._leaf_level(gva, size), create=False)
        if address is None or not self._read(address) & PRESENT:
            return False
        self._write(address, 0)
        return True

    def entry_address(self, gva: int, size: int = PAGE_SIZE) -> int | None:
        """Return the GPA of the entry for a page of `size` bytes at `gva`, or None where no table leads there.

        Raises:
            ValueError: as `map`.
        """
        return self._descend(gva, self._leaf_level(gva, size), create=False)

    def _leaf_level(self, gva: int, size: int) -> Level:
        fmt = self.format
        if not fmt.canonical(gva) or gva < 0 or gva >> (32 if fmt.linear_bits == 32 else 64):
            raise ValueError(f"{gva:#x} is not a linear address of {fmt.mode.value}")
        for level in fmt.levels:
            if level.page_size == size and (level.large or level.number == 1):
                if gva % size:
                    raise ValueError(f"linear address {gva:#x} is not a multiple of the page size {size:#x}")
                return level
        raise ValueError(f"{fmt.mode.value} has no pages of {size:#x} bytes")

    def _descend(self, gva: int, leaf: Level, create: bool) -> int | None:
        fmt = self.format
        table = self.root
        for level in fmt.levels:
            address = table + level.slot(gva) * fmt.entry_size
            entry = self._read(address)
            if level is leaf:
                if entry & PRESENT and level.number > 1 and not entry & LARGE:
                    raise ValueError(f"smaller pages are mapped around {gva:#x}; use their size")
                return address
            if not entry & PRESENT:
                if not create:
                    return None
                entry = self._table(table_address(fmt, -1)) | PRESENT
                if level.rights:
                    entry |= WRITABLE | USER
                self._write(address, entry)
            elif level.large and entry & LARGE:
                raise ValueError(f"{gva:#x} lies in a page of {level.page_size:#x} bytes; unmap that first")
            table = table_address(fmt, entry)
        raise AssertionError("the leaf level belongs to the format")

    def _table(self, reach: int) -> int:
        table = self._allocate()
        if table & ~reach or table % PAGE_SIZE:
            raise ValueError(f"{self.format.mode.value} cannot have a table at {table:#x}")
        self.tables.append(table)
        return table

    def _read(self, address: int) -> int:
        return self._memory.read_u64(address) if self.format.entry_size == 8 else self._memory.read_u32(address)

    def _write(self, address: int, value: int) -> None:
        if self.format.entry_size == 8:
            self._memory.write_u64(address, value)
        else:
            self._memory.write_u32(address, value)
