"""What a page walk yields: the entries read, the rights found, and the translation or the fault."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from pyvmm.paging.entry import PagingMode
from pyvmm.paging.state import Access

ERROR_PRESENT = 1 << 0
ERROR_WRITE = 1 << 1
ERROR_USER = 1 << 2
ERROR_RESERVED = 1 << 3
ERROR_FETCH = 1 << 4
_ERROR_NAMES = ("P", "W/R", "U/S", "RSVD", "I/D")
_SIZES = {12: "4 KiB", 21: "2 MiB", 22: "4 MiB", 30: "1 GiB"}


class FaultKind(enum.Enum):
    """Why a walk ended without a translation."""

    NOT_PRESENT = "not present"
    RESERVED = "reserved bit set"
    PROTECTION = "protection"
    NON_CANONICAL = "non-canonical address"
    NO_MEMORY = "table outside RAM"


class Fault(NamedTuple):
    """A walk that gave no translation.

    Attributes:
        kind: which rule stopped it.
        error_code: what the CPU pushes with #PF (SDM vol. 3A section 4.7); None where it raises no #PF: a non-canonical
            address is #GP or #SS, and a table outside RAM has no outcome that the architecture defines.
        reason: the rule in words.
    """

    kind: FaultKind
    error_code: int | None
    reason: str

    def __str__(self) -> str:
        if self.error_code is None:
            return self.reason
        return f"page fault, error code {self.error_code:#x} ({describe_error_code(self.error_code)}): {self.reason}"


class Step(NamedTuple):
    """One entry that a walk read.

    Attributes:
        level: level number, 1 for the page table.
        name: what the SDM calls the entry ("PML4E").
        table: GPA of the table.
        slot: index in the table.
        address: GPA of the entry.
        entry: its value.
        leaf: whether it maps a page.
        flags: names of its flag bits that are set.
    """

    level: int
    name: str
    table: int
    slot: int
    address: int
    entry: int
    leaf: bool
    flags: tuple[str, ...]

    def __str__(self) -> str:
        flags = " ".join(self.flags) or "not present"
        return f"{self.name}[{self.slot}] at {self.address:#x} = {self.entry:#x}  {flags}"


class Rights(NamedTuple):
    """What the tables allow, over all levels, before CR0 and CR4 bend the rules.

    Attributes:
        writable: R/W is set at each level.
        user: U/S is set at each level.
        executable: no level has NX set, or NX is not enabled.
        global_page: the leaf's G is set and CR4.PGE enables it.
    """

    writable: bool = True
    user: bool = True
    executable: bool = True
    global_page: bool = False

    def __str__(self) -> str:
        rights = "r" + ("w" if self.writable else "-") + ("x" if self.executable else "-")
        return f"{rights} {'user' if self.user else 'supervisor'}{' global' if self.global_page else ''}"


class Walk(NamedTuple):
    """The outcome of `walk`.

    Attributes:
        gva: the linear address, after truncation to 32 bits outside long mode.
        mode: the paging mode.
        access: the access that was checked.
        steps: the entries that were read, root first; none with paging off.
        gpa: the physical address; None on a fault.
        page_size: bytes of the page; None when no leaf was reached, 4096 with paging off.
        rights: what the tables allow; None when no leaf was reached. Present on a protection fault too.
        fault: None when `gpa` is given.
    """

    gva: int
    mode: PagingMode
    access: Access
    steps: tuple[Step, ...]
    gpa: int | None = None
    page_size: int | None = None
    rights: Rights | None = None
    fault: Fault | None = None

    def describe(self) -> list[str]:
        """Return the walk as text: a heading, a line for each entry, the outcome."""
        lines = [f"GVA {self.gva:#x}, {self.mode.value}, {self.access}"]
        lines += [f"  {step}" for step in self.steps]
        lines.append(f"  -> {self.outcome()}")
        return lines

    def outcome(self) -> str:
        """Return the outcome in one line: GPA, page size and rights, or the fault."""
        if self.fault is not None:
            return str(self.fault)
        assert self.page_size is not None
        if self.mode is PagingMode.NONE:
            return f"GPA {self.gpa:#x}"
        return f"GPA {self.gpa:#x}, {_SIZES[self.page_size.bit_length() - 1]} page, {self.rights}"

    def to_dict(self) -> dict[str, Any]:
        """Return the walk as JSON-able data; addresses and entries as hexadecimal strings, which no reader rounds."""
        rights = self.rights
        return {
            "gva": hex(self.gva),
            "mode": self.mode.value,
            "access": str(self.access),
            "steps": [
                {
                    "name": s.name,
                    "address": hex(s.address),
                    "index": s.slot,
                    "entry": hex(s.entry),
                    "flags": list(s.flags),
                }
                for s in self.steps
            ],
            "gpa": None if self.gpa is None else hex(self.gpa),
            "page_size": self.page_size,
            "rights": None if rights is None else str(rights),
            "fault": None if self.fault is None else self.fault.kind.value,
            "error_code": None if self.fault is None else self.fault.error_code,
            "reason": None if self.fault is None else self.fault.reason,
        }


class EntryUpdate(NamedTuple):
    """A write that the CPU makes to a page-table entry: `size` bytes at `address`, `old` to `new`."""

    address: int
    size: int
    old: int
    new: int


def describe_error_code(code: int) -> str:
    """Name the bits that are set in a page-fault error code; the empty code is a supervisor read of no page."""
    return " ".join(name for bit, name in enumerate(_ERROR_NAMES) if code >> bit & 1) or "none set"
