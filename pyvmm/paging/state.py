"""What decides a translation besides the tables: the control state, and who accesses how."""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import Final, NamedTuple

from pyvmm.paging.entry import FORMATS, Format, PagingMode, reserved_bits

CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_PGE: Final = 1 << 7
CR4_LA57: Final = 1 << 12
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11


class AccessKind(enum.Enum):
    """What an access does with memory."""

    READ = "read"
    WRITE = "write"
    EXECUTE = "execute"


class Access(NamedTuple):
    """One access to a linear address, as the access rules see it (SDM vol. 3A section 4.6).

    Attributes:
        kind: read, write or instruction fetch.
        user: made at CPL 3.
        ac: RFLAGS.AC; lifts SMAP for explicit supervisor accesses.
        implicit: made by the CPU for itself (descriptor tables, TSS): a supervisor access whatever the CPL, and one
            that RFLAGS.AC does not help.
    """

    kind: AccessKind = AccessKind.READ
    user: bool = False
    ac: bool = False
    implicit: bool = False

    @property
    def supervisor(self) -> bool:
        """Whether the rules for supervisor-mode accesses apply."""
        return self.implicit or not self.user

    def __str__(self) -> str:
        who = "implicit supervisor" if self.implicit else "user" if self.user else "supervisor"
        return f"{who} {self.kind.value}"


READ: Final = Access()
WRITE: Final = Access(AccessKind.WRITE)
EXECUTE: Final = Access(AccessKind.EXECUTE)


class PagingState(NamedTuple):
    """Control state and CPU features that paging depends on.

    Attributes:
        cr0, cr3, cr4, efer: the registers. EFER.LMA, not EFER.LME, tells long mode, as on a running CPU.
        maxphyaddr: physical address bits that the CPU has (CPUID 80000008H:EAX[7:0]); the default reserves none.
        pdptrs: PDPTE registers, loaded by MOV to CR3 in PAE paging (SDM vol. 3A section 4.4.1). None: the walker reads
            the entries from memory at CR3, which is what the next MOV to CR3 would load.
        pse36, gbpages, nonleaf_global: as in `pyvmm.paging.entry.reserved_bits`.
    """

    cr0: int
    cr3: int
    cr4: int
    efer: int
    maxphyaddr: int = 52
    pdptrs: tuple[int, int, int, int] | None = None
    pse36: bool = True
    gbpages: bool = True
    nonleaf_global: bool = False

    @property
    def mode(self) -> PagingMode:
        """The paging mode (SDM vol. 3A section 4.1.1)."""
        if not self.cr0 & CR0_PG:
            return PagingMode.NONE
        if self.efer & EFER_LMA:
            return PagingMode.LONG5 if self.cr4 & CR4_LA57 else PagingMode.LONG4
        return PagingMode.PAE if self.cr4 & CR4_PAE else PagingMode.BITS32

    def reserved(self, fmt: Format) -> tuple[tuple[int, int], ...]:
        """Return, for each level of `fmt` from the root down, the reserved bits of a non-leaf and of a leaf entry."""
        return _reserved(
            fmt.mode, self.maxphyaddr, bool(self.efer & EFER_NXE), self.pse36, self.gbpages, self.nonleaf_global
        )


@lru_cache(maxsize=64)
def _reserved(
    mode: PagingMode, maxphyaddr: int, nxe: bool, pse36: bool, gbpages: bool, nonleaf_global: bool
) -> tuple[tuple[int, int], ...]:
    fmt = FORMATS[mode]

    def mask(level_index: int, leaf: bool) -> int:
        return reserved_bits(
            fmt,
            fmt.levels[level_index],
            leaf,
            maxphyaddr=maxphyaddr,
            nxe=nxe,
            pse36=pse36,
            gbpages=gbpages,
            nonleaf_global=nonleaf_global,
        )

    return tuple((mask(i, False), mask(i, True)) for i in range(len(fmt.levels)))
