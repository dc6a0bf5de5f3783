"""The page walk: what the CPU does to turn a linear address into a physical one, step by step, faults included.

`walk` follows SDM vol. 3A sections 4.3 to 4.7 and APM vol. 2 sections 5.3 to 5.6. It has no side effect;
`accessed_dirty_updates` tells which entries the CPU would then write. Protection keys and shadow stacks are not
modelled.
"""

from __future__ import annotations

from typing import Protocol

from pyvmm.errors import GuestMemoryError
from pyvmm.paging.entry import (
    ACCESSED,
    DIRTY,
    FORMATS,
    GLOBAL,
    LARGE,
    NX,
    PAGE_SIZE,
    PRESENT,
    USER,
    WRITABLE,
    Format,
    Level,
    PagingMode,
    flag_names,
    page_address,
    table_address,
)
from pyvmm.paging.result import (
    ERROR_FETCH,
    ERROR_PRESENT,
    ERROR_RESERVED,
    ERROR_USER,
    ERROR_WRITE,
    EntryUpdate,
    Fault,
    FaultKind,
    Rights,
    Step,
    Walk,
)
from pyvmm.paging.state import (
    CR0_WP,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_NXE,
    READ,
    Access,
    AccessKind,
    PagingState,
)

_LINEAR_MASK = (1 << 64) - 1
_LINEAR_MASK_32 = (1 << 32) - 1


class PhysicalReader(Protocol):
    """What a walk needs of guest-physical memory: little-endian words; GuestMemoryError where there is no memory."""

    def read_u32(self, gpa: int, /) -> int: ...
    def read_u64(self, gpa: int, /) -> int: ...


def walk(state: PagingState, memory: PhysicalReader, gva: int, access: Access = READ) -> Walk:
    """Translate a linear address as the CPU would, with every access rule.

    Args:
        state: control registers and features.
        memory: physical memory to read the tables from.
        gva: the linear address; outside long mode its upper 32 bits are dropped, as segmentation does.
        access: what is accessed how.

    Returns:
        The steps and either the translation or the fault. Nothing is raised for any content of tables or registers.
    """
    mode = state.mode
    if mode is PagingMode.NONE:
        gva &= _LINEAR_MASK_32
        return Walk(gva, mode, access, (), gva, PAGE_SIZE, Rights())
    fmt = FORMATS[mode]
    gva &= _LINEAR_MASK if fmt.linear_bits > 32 else _LINEAR_MASK_32
    if not fmt.canonical(gva):
        reason = f"{gva:#x} is not canonical ({fmt.linear_bits}-bit linear addresses): #GP, or #SS on the stack"
        return Walk(gva, mode, access, (), fault=Fault(FaultKind.NON_CANONICAL, None, reason))

    steps: list[Step] = []
    table = state.cr3 & fmt.root_mask
    for level, (reserved_table, reserved_leaf) in zip(fmt.levels, state.reserved(fmt), strict=True):
        slot = level.slot(gva)
        address = table + slot * fmt.entry_size
        try:
            entry = _read_entry(state, memory, fmt, level, address, slot)
        except GuestMemoryError:
            reason = f"the {level.name} for {gva:#x} would be at GPA {address:#x}, which is outside guest RAM"
            return Walk(gva, mode, access, tuple(steps), fault=Fault(FaultKind.NO_MEMORY, None, reason))
        leaf = _is_leaf(state, level, entry)
        steps.append(
            Step(level.number, level.name, table, slot, address, entry, leaf, flag_names(fmt, level, leaf, entry))
        )
        if not entry & PRESENT:
            fault = Fault(FaultKind.NOT_PRESENT, _error_code(state, access, 0), f"the {level.name} is not present")
            return Walk(gva, mode, access, tuple(steps), fault=fault)
        bad = entry & (reserved_leaf if leaf else reserved_table)
        if bad:
            code = _error_code(state, access, ERROR_PRESENT | ERROR_RESERVED)
            fault = Fault(FaultKind.RESERVED, code, f"the {level.name} has reserved bits set ({bad:#x})")
            return Walk(gva, mode, access, tuple(steps), fault=fault)
        if leaf:
            break
        table = table_address(fmt, entry)

    rights = _rights(state, steps)
    denial = check_access(state, rights, access)
    if denial is not None:
        fault = Fault(FaultKind.PROTECTION, _error_code(state, access, ERROR_PRESENT), denial)
        return Walk(gva, mode, access, tuple(steps), None, level.page_size, rights, fault)
    gpa = page_address(fmt, level, entry) | (gva & (level.page_size - 1))
    return Walk(gva, mode, access, tuple(steps), gpa, level.page_size, rights)


def check_access(state: PagingState, rights: Rights, access: Access) -> str | None:
    """Apply the access rules to a page with these rights (SDM vol. 3A section 4.6.1, APM vol. 2 section 5.6).

    Returns:
        None when the access is allowed, else the rule that forbids it, in words.
    """
    if access.kind is AccessKind.EXECUTE and not rights.executable:
        return "the page is not executable (NX)"
    if not access.supervisor:
        if not rights.user:
            return "the page is for the supervisor only (U/S is clear)"
        if access.kind is AccessKind.WRITE and not rights.writable:
            return "the page is read-only (R/W is clear)"
        return None
    if access.kind is AccessKind.EXECUTE:
        if rights.user and state.cr4 & CR4_SMEP:
            return "CR4.SMEP keeps the supervisor from executing a user page"
        return None
    if rights.user and state.cr4 & CR4_SMAP and (access.implicit or not access.ac):
        return "CR4.SMAP keeps the supervisor from accessing a user page"
    if access.kind is AccessKind.WRITE and not rights.writable and state.cr0 & CR0_WP:
        return "the page is read-only (R/W is clear) and CR0.WP is set"
    return None


def accessed_dirty_updates(result: Walk) -> tuple[EntryUpdate, ...]:
    """Return the writes to entries that the CPU makes when it uses a translation (SDM vol. 3A section 4.8).

    Accessed is set at every level that has it, dirty in the leaf by a write. A walk that faulted makes none: the CPU
    may set accessed bits on the way to a fault, but need not.
    """
    if result.fault is not None or result.mode is PagingMode.NONE:
        return ()
    fmt = FORMATS[result.mode]
    updates = []
    for level, step in zip(fmt.levels, result.steps, strict=False):
        wanted = step.entry
        if level.rights:
            wanted |= ACCESSED
            if step.leaf and result.access.kind is AccessKind.WRITE:
                wanted |= DIRTY
        if wanted != step.entry:
            updates.append(EntryUpdate(step.address, fmt.entry_size, step.entry, wanted))
    return tuple(updates)


def _read_entry(state: PagingState, memory: PhysicalReader, fmt: Format, level: Level, address: int, slot: int) -> int:
    if fmt.entry_size == 4:
        return memory.read_u32(address)
    if state.pdptrs is not None and not level.rights:
        return state.pdptrs[slot]
    return memory.read_u64(address)


def _is_leaf(state: PagingState, level: Level, entry: int) -> bool:
    if level.number == 1:
        return True
    if not (level.large and entry & LARGE):
        return False
    # Only 32-bit paging needs CR4.PSE for its large pages (SDM vol. 3A section 4.3).
    return state.mode is not PagingMode.BITS32 or bool(state.cr4 & CR4_PSE)


def _rights(state: PagingState, steps: list[Step]) -> Rights:
    # NX needs no look at EFER.NXE here: without it bit 63 is reserved, and 32-bit entries have no such bit.
    every = WRITABLE | USER
    some = 0
    for step in steps:
        if step.level == 3 and state.mode is PagingMode.PAE:
            continue
        every &= step.entry
        some |= step.entry
    return Rights(
        bool(every & WRITABLE),
        bool(every & USER),
        not some & NX,
        bool(steps[-1].entry & GLOBAL and state.cr4 & CR4_PGE),
    )


def _error_code(state: PagingState, access: Access, base: int) -> int:
    code = base
    if access.kind is AccessKind.WRITE:
        code |= ERROR_WRITE
    if not access.supervisor:
        code |= ERROR_USER
    fetch_is_told = state.cr4 & CR4_SMEP or (state.cr4 & CR4_PAE and state.efer & EFER_NXE)
    if access.kind is AccessKind.EXECUTE and fetch_is_told:
        code |= ERROR_FETCH
    return code
