"""Control registers, flags and segments in words: `CR0=0x80000011 PG ET PE`."""

from __future__ import annotations

from pyvmm.engine.state import CpuState, DescriptorTable, Segment

Names = tuple[tuple[int, str], ...]

CR0_BITS: Names = (
    (31, "PG"), (30, "CD"), (29, "NW"), (18, "AM"), (16, "WP"), (5, "NE"), (4, "ET"), (3, "TS"), (2, "EM"), (1, "MP"),
    (0, "PE"),
)  # fmt: skip
"""SDM vol. 3A section 2.5."""
CR4_BITS: Names = (
    (32, "FRED"), (28, "LAM_SUP"), (25, "UINTR"), (24, "PKS"), (23, "CET"), (22, "PKE"), (21, "SMAP"), (20, "SMEP"),
    (19, "KL"), (18, "OSXSAVE"), (17, "PCIDE"), (16, "FSGSBASE"), (14, "SMXE"), (13, "VMXE"), (12, "LA57"),
    (11, "UMIP"), (10, "OSXMMEXCPT"), (9, "OSFXSR"), (8, "PCE"), (7, "PGE"), (6, "MCE"), (5, "PAE"), (4, "PSE"),
    (3, "DE"), (2, "TSD"), (1, "PVI"), (0, "VME"),
)  # fmt: skip
"""SDM vol. 3A section 2.5."""
EFER_BITS: Names = (
    (21, "AIBRSE"), (20, "UAIE"), (18, "INTWB"), (17, "MCOMMIT"), (15, "TCE"), (14, "FFXSR"), (13, "LMSLE"),
    (12, "SVME"), (11, "NXE"), (10, "LMA"), (8, "LME"), (0, "SCE"),
)  # fmt: skip
"""APM vol. 2 section 3.1.7."""
RFLAGS_BITS: Names = (
    (21, "ID"), (20, "VIP"), (19, "VIF"), (18, "AC"), (17, "VM"), (16, "RF"), (14, "NT"), (11, "OF"), (10, "DF"),
    (9, "IF"), (8, "TF"), (7, "SF"), (6, "ZF"), (4, "AF"), (2, "PF"), (0, "CF"),
)  # fmt: skip
"""SDM vol. 1 section 3.4.3. IOPL, a field of two bits, is told apart."""

_IOPL = 3 << 12
_RFLAGS_FIXED = 1 << 1
_DATA = ("read-only", "read/write", "read-only expand-down", "read/write expand-down")
_CODE = ("execute-only", "execute/read", "execute-only conforming", "execute/read conforming")
# SDM vol. 3A table 3-2: types of system descriptors that KVM can report in TR and LDTR.
_SYSTEM = {1: "16-bit TSS", 2: "LDT", 3: "busy 16-bit TSS", 9: "TSS", 11: "busy TSS"}


def bit_names(value: int, names: Names) -> str:
    """Name the bits that are set, highest first; bits without a name are told as one number at the end."""
    words = [name for bit, name in names if value >> bit & 1]
    rest = value & ~sum(1 << bit for bit, _ in names)
    if rest:
        words.append(f"unknown {rest:#x}")
    return " ".join(words)


def register_words(name: str, value: int, names: Names) -> str:
    """Return a register as `NAME=value` and the names of its bits."""
    return f"{name}={value:#x} {bit_names(value, names)}".rstrip()


def rflags_words(value: int) -> str:
    """Return RFLAGS as `RFLAGS=value`, its flags and, where it is not 0, IOPL; bit 1, always set, is not told."""
    iopl = (value & _IOPL) >> 12
    words = register_words("RFLAGS", value & ~_IOPL & ~_RFLAGS_FIXED, RFLAGS_BITS)
    words = words.replace(f"={value & ~_IOPL & ~_RFLAGS_FIXED:#x}", f"={value:#x}", 1)
    if iopl:
        words += f" IOPL={iopl}"
    return words if value & _RFLAGS_FIXED else f"{words} (bit 1 is clear, which no CPU allows)"


def segment_words(name: str, segment: Segment) -> str:
    """Return a segment register in one line: selector, base, limit, privilege and kind."""
    where = f"{name.upper():<4}{segment.selector:04x} base={segment.base:#x} limit={segment.limit:#x}"
    if segment.unusable:
        return f"{where} unusable"
    return f"{where} {'' if segment.present else 'not present '}DPL {segment.dpl} {_kind(segment)}"


def table_words(name: str, table: DescriptorTable) -> str:
    """Return GDTR or IDTR in one line: linear base and limit."""
    return f"{name.upper():<4}base={table.base:#x} limit={table.limit:#x}"


def mode_words(state: CpuState) -> str:
    """Return the operating mode, code size and privilege: `long mode, 64-bit code, CPL 0`."""
    name = {"v8086": "virtual-8086", "compat": "compatibility"}.get(state.mode, state.mode)
    return f"{name} mode, {state.bits}-bit code, CPL {state.cpl}"


def control_words(state: CpuState) -> list[str]:
    """Return the control registers and flags, a line each."""
    return [
        register_words("CR0", state.cr0, CR0_BITS),
        f"CR2={state.cr2:#x} CR3={state.cr3:#x} CR8={state.cr8:#x}",
        register_words("CR4", state.cr4, CR4_BITS),
        register_words("EFER", state.efer, EFER_BITS),
        rflags_words(state.rflags),
    ]


def _kind(segment: Segment) -> str:
    if not segment.s:
        return _SYSTEM.get(segment.type, f"system descriptor type {segment.type:#x}")
    kind = segment.type & 0xF
    if not kind & 8:
        return f"{_DATA[kind >> 1 & 3]} data"
    # L and D together are reserved; the CPU takes it for nothing, so neither does the text.
    size = "64-bit" if segment.l and not segment.db else "32-bit" if segment.db and not segment.l else "16-bit"
    if segment.l and segment.db:
        size = "L=1 D=1 (reserved)"
    return f"{size} code, {_CODE[kind >> 1 & 3]}"
