"""Formats of x86 page-table entries: which bits mean what, at which level, in which paging mode.

The formats are data. `FORMATS` maps a `PagingMode` to a `Format`, whose `levels` run from the root down to the page
table; walkers and builders are written once, over that table. Sources: Intel SDM vol. 3A sections 4.3 (32-bit paging),
4.4 (PAE paging), 4.5 (4-level and 5-level paging); AMD APM vol. 2 sections 5.2 and 5.3.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
WRITE_THROUGH = 1 << 3
CACHE_DISABLE = 1 << 4
ACCESSED = 1 << 5
DIRTY = 1 << 6
LARGE = 1 << 7
"""Page size (PS) in an entry above the page table: the entry maps a page."""
PAT = 1 << 7
"""The PAT bit of a page-table entry; it shares its place with `LARGE`."""
GLOBAL = 1 << 8
PAT_LARGE = 1 << 12
NX = 1 << 63

PAGE_SIZE = 0x1000
ADDRESS_MASK = 0x000F_FFFF_FFFF_F000
"""Address field (bits 51:12) of a 64-bit entry that points to a table or to a 4 KiB page."""
ADDRESS_MASK_32 = 0xFFFF_F000
"""Address field of a 32-bit entry that points to a table or to a 4 KiB page."""


class PagingMode(enum.Enum):
    """How the CPU turns a linear address into a physical one (SDM vol. 3A section 4.1.1)."""

    NONE = "no paging"
    BITS32 = "32-bit paging"
    PAE = "PAE paging"
    LONG4 = "4-level paging"
    LONG5 = "5-level paging"


class Level(NamedTuple):
    """One level of a paging structure.

    Attributes:
        number: 1 for the page table, 2 for the page directory, and so on up.
        name: name of an entry of this level, as the SDM calls it.
        shift: lowest linear-address bit of the index; a page mapped at this level has `1 << shift` bytes.
        index_bits: width of the index; a table has `1 << index_bits` entries.
        large: whether an entry with `LARGE` set can map a page here.
        rights: whether the entry holds R/W, U/S and accessed bits (a PDPTE of PAE paging does not).
    """

    number: int
    name: str
    shift: int
    index_bits: int
    large: bool = False
    rights: bool = True

    @property
    def page_size(self) -> int:
        """Bytes that one entry of this level spans."""
        return 1 << self.shift

    def slot(self, gva: int) -> int:
        """Return the index into a table of this level for a linear address."""
        return (gva >> self.shift) & ((1 << self.index_bits) - 1)


class Format(NamedTuple):
    """The tables of one paging mode.

    Attributes:
        mode: the mode.
        entry_size: bytes an entry has, 4 or 8.
        linear_bits: width of a linear address; above 32 bits it must be canonical.
        levels: the levels from the root down.
        root_mask: bits of CR3 that hold the root table's address.
    """

    mode: PagingMode
    entry_size: int
    linear_bits: int
    levels: tuple[Level, ...]
    root_mask: int

    def canonical(self, gva: int) -> bool:
        """Tell whether a linear address is canonical: bits above `linear_bits - 1` all repeat that bit.

        Formats with 32-bit linear addresses have no such rule and accept every address.
        """
        if self.linear_bits == 32:
            return True
        top = (gva & 0xFFFF_FFFF_FFFF_FFFF) >> (self.linear_bits - 1)
        return top in (0, (1 << (65 - self.linear_bits)) - 1)


_PT = Level(1, "PTE", 12, 9)
_PD = Level(2, "PDE", 21, 9, large=True)
_PDPT = Level(3, "PDPTE", 30, 9, large=True)
_PML4 = Level(4, "PML4E", 39, 9)
_PML5 = Level(5, "PML5E", 48, 9)

FORMATS: dict[PagingMode, Format] = {
    PagingMode.BITS32: Format(
        PagingMode.BITS32, 4, 32, (Level(2, "PDE", 22, 10, large=True), Level(1, "PTE", 12, 10)), ADDRESS_MASK_32
    ),
    PagingMode.PAE: Format(PagingMode.PAE, 8, 32, (Level(3, "PDPTE", 30, 2, rights=False), _PD, _PT), 0xFFFF_FFE0),
    PagingMode.LONG4: Format(PagingMode.LONG4, 8, 48, (_PML4, _PDPT, _PD, _PT), ADDRESS_MASK),
    PagingMode.LONG5: Format(PagingMode.LONG5, 8, 57, (_PML5, _PML4, _PDPT, _PD, _PT), ADDRESS_MASK),
}


def bits(low: int, high: int) -> int:
    """Return a mask of bits `low` to `high`, both included; 0 when `low > high`."""
    return ((1 << (high - low + 1)) - 1) << low if high >= low else 0


def table_address(fmt: Format, entry: int) -> int:
    """Return the GPA of the table that a non-leaf entry points to."""
    return entry & (ADDRESS_MASK_32 if fmt.entry_size == 4 else ADDRESS_MASK)


def page_address(fmt: Format, level: Level, entry: int) -> int:
    """Return the GPA of the page that a leaf entry maps.

    A 4 MiB page of 32-bit paging has address bits 39:32 in entry bits 20:13 (PSE-36, SDM vol. 3A section 4.3).
    """
    if fmt.entry_size == 8:
        return entry & ADDRESS_MASK & -level.page_size
    if level.number == 2:
        return (entry & 0xFFC0_0000) | ((entry >> 13) & 0xFF) << 32
    return entry & ADDRESS_MASK_32


def page_entry(fmt: Format, level: Level, gpa: int, flags: int) -> int:
    """Return a leaf entry that maps the page at `gpa`, the inverse of `page_address`.

    Args:
        gpa: address of the page, aligned to `level.page_size`; bits that the format cannot hold are refused.
        flags: flag bits; `LARGE` is added where the level needs it.

    Raises:
        ValueError: `gpa` is not aligned, or the format cannot express it.
    """
    if level.number > 1:
        flags |= LARGE
    field = gpa
    if fmt.entry_size == 4 and level.number == 2:
        field = (gpa & 0xFFC0_0000) | ((gpa >> 32) & 0xFF) << 13
    entry = field | flags
    if gpa & (level.page_size - 1) or page_address(fmt, level, entry) != gpa:
        raise ValueError(f"a {level.name} of {fmt.mode.value} cannot map a page at {gpa:#x}")
    return entry


def reserved_bits(
    fmt: Format,
    level: Level,
    leaf: bool,
    *,
    maxphyaddr: int = 52,
    nxe: bool = True,
    pse36: bool = True,
    gbpages: bool = True,
    nonleaf_global: bool = False,
) -> int:
    """Return the mask of bits that must be zero in a present entry; one that is set makes a page fault with RSVD.

    Args:
        leaf: whether the entry maps a page.
        maxphyaddr: physical address bits that the CPU has (CPUID 80000008H:EAX[7:0]).
        nxe: EFER.NXE; bit 63 is reserved without it.
        pse36: whether 4 MiB pages may lie above 4 GiB (CPUID.01H:EDX[17]).
        gbpages: whether 1 GiB pages exist (CPUID.80000001H:EDX[26]).
        nonleaf_global: whether bit 8 is reserved above the page directory, as on AMD (APM vol. 2 section 5.3.3).
    """
    if fmt.entry_size == 4:
        if level.number == 1 or not leaf:
            return 0
        widest = min(40, maxphyaddr) if pse36 else 32
        return bits(widest - 19, 21)
    mask = bits(maxphyaddr, 51)
    if not nxe:
        mask |= NX
    if fmt.mode is PagingMode.PAE:
        mask |= bits(52, 62)
        if level.number == 3:
            return mask | NX | bits(1, 2) | bits(5, 8)
    if leaf:
        mask |= bits(13, level.shift - 1)
        if level.number == 3 and not gbpages:
            mask |= LARGE
    else:
        if level.number >= 4:
            mask |= LARGE
        if level.number >= 3 and nonleaf_global:
            mask |= GLOBAL
    return mask


_NAMES = (
    (WRITABLE, "RW"),
    (USER, "US"),
    (WRITE_THROUGH, "PWT"),
    (CACHE_DISABLE, "PCD"),
    (ACCESSED, "A"),
)


def flag_names(fmt: Format, level: Level, leaf: bool, entry: int) -> tuple[str, ...]:
    """Name the flag bits that are set in an entry, in bit order, as the SDM's figures call them.

    Bits that the CPU ignores in an entry of this kind are not named; a non-present entry has no flags.
    """
    if not entry & PRESENT:
        return ()
    names = ["P"]
    names += [name for bit, name in _NAMES if entry & bit and (level.rights or bit in (WRITE_THROUGH, CACHE_DISABLE))]
    if leaf:
        names += [name for bit, name in ((DIRTY, "D"), (GLOBAL, "G")) if entry & bit]
        if level.number > 1:
            names.append("PS")
        if entry & (PAT_LARGE if level.number > 1 else PAT):
            names.append("PAT")
    if fmt.entry_size == 8 and entry & NX:
        names.append("NX")
    return tuple(names)
