"""ELF, as far as a boot loader needs it: header, program headers, notes (System V gABI, chapters 4 and 5).

Everything in the file is taken for hostile: each offset and size is checked against the file before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pyvmm.boot.source import Source
from pyvmm.boot.space import LoadSpace
from pyvmm.errors import ImageError, UsageError

MAGIC = b"\x7fELF"

_CLASS32, _CLASS64 = 1, 2
_LITTLE_ENDIAN = 1
_EM_386, _EM_486, _EM_X86_64 = 3, 6, 62
_MACHINES = {
    2: "SPARC",
    4: "m68k",
    8: "MIPS",
    15: "PA-RISC",
    20: "PowerPC",
    21: "64-bit PowerPC",
    22: "s390",
    40: "32-bit ARM",
    42: "SuperH",
    43: "64-bit SPARC",
    50: "IA-64",
    183: "AArch64",
    243: "RISC-V",
    247: "BPF",
    258: "LoongArch",
}
_TYPES = {
    1: "a relocatable object file: link it first",
    3: "position-independent (ET_DYN): link it with -static -no-pie at a fixed address",
    4: "a core dump, not a kernel",
}
_ET_EXEC = 2
_PT_LOAD, _PT_INTERP, _PT_NOTE = 1, 3, 4
_PN_XNUM = 0xFFFF
_MOST_HEADERS = 4096
_MOST_NOTE_BYTES = 1 << 20

# e_type .. e_shstrndx, from byte 16 on.
_HEADER = {_CLASS32: struct.Struct("<HHIIIIIHHHHHH"), _CLASS64: struct.Struct("<HHIQQQIHHHHHH")}
_PHDR32 = struct.Struct("<IIIIIIII")
_PHDR64 = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")


class Phdr(NamedTuple):
    """A program header, the same for both classes."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


class Elf(NamedTuple):
    """An ELF executable: 32 or 64 bits, entry point as the header gives it, program headers."""

    bits: int
    entry: int
    headers: tuple[Phdr, ...]

    @property
    def loads(self) -> list[Phdr]:
        """List the segments that take memory."""
        return [header for header in self.headers if header.type == _PT_LOAD and header.memsz]


def parse(source: Source) -> Elf:
    """Parse header and program headers of an x86 executable.

    Raises:
        ImageError: not ELF, truncated, another machine, no executable, or inconsistent.
    """
    ident = source.head(16)
    if ident[:4] != MAGIC:
        raise ImageError("not an ELF file: leave the format to detection")
    if len(ident) < 16:
        raise ImageError("truncated ELF: it ends inside its identification: get a complete copy")
    elf_class, encoding, version = ident[4:7]
    if elf_class not in _HEADER or version != 1:
        raise ImageError(f"damaged ELF: class {elf_class}, version {version}")
    if encoding != _LITTLE_ENDIAN:
        raise ImageError("big-endian ELF: only x86 and x86-64 kernels can run here")
    layout = _HEADER[elf_class]
    fields = layout.unpack(source.read(16, layout.size, "ELF header"))
    kind, machine, _, entry, phoff, _, _, ehsize, phentsize, phnum, *_ = fields
    _check_machine(elf_class, machine)
    if kind != _ET_EXEC:
        raise ImageError(f"this ELF file is {_TYPES.get(kind, f'of type {kind}, not an executable')}")
    bits = 32 if elf_class == _CLASS32 else 64
    phdr = _PHDR32 if bits == 32 else _PHDR64
    if ehsize < 16 + layout.size:
        raise ImageError(f"damaged ELF: header size {ehsize}, not {16 + layout.size}")
    if not phnum:
        raise ImageError("this ELF file has no program headers, so nothing to load: link it as an executable")
    if phentsize != phdr.size:
        raise ImageError(f"damaged ELF: program headers of {phentsize} bytes, not {phdr.size}")
    if phnum == _PN_XNUM or phnum > _MOST_HEADERS:
        raise ImageError(f"damaged ELF: {phnum} program headers, at most {_MOST_HEADERS} are accepted")
    table = source.read(phoff, phnum * phdr.size, "ELF program header table")
    if bits == 32:
        # The 32-bit header has its flags behind the sizes.
        headers = tuple(
            Phdr(type_, flags, offset, vaddr, paddr, filesz, memsz, align)
            for type_, offset, vaddr, paddr, filesz, memsz, flags, align in phdr.iter_unpack(table)
        )
    else:
        headers = tuple(map(Phdr._make, phdr.iter_unpack(table)))
    return Elf(bits, entry, headers)


def _check_machine(elf_class: int, machine: int) -> None:
    wanted = (_EM_386, _EM_486) if elf_class == _CLASS32 else (_EM_X86_64,)
    if machine in wanted:
        return
    if machine in (_EM_386, _EM_486, _EM_X86_64):
        name = "x86-64" if machine == _EM_X86_64 else "i386"
        raise ImageError(f"an ELF{32 * elf_class} file for {name} (x32 or damaged): build it as plain i386 or x86-64")
    name = _MACHINES.get(machine, f"ELF machine {machine}")
    raise ImageError(f"a kernel for {name}: only x86 and x86-64 kernels can run here")


def check_executable(elf: Elf) -> None:
    """Check that `elf` can run without a dynamic linker and has something to load.

    Raises:
        ImageError: it cannot, or has not.
    """
    if any(header.type == _PT_INTERP for header in elf.headers):
        raise ImageError("a dynamically linked program, not a kernel: link it with -static -nostdlib")
    if not elf.loads:
        raise ImageError("this ELF file has no segment to load: link it as an executable")


def load_segments(source: Source, elf: Elf, space: LoadSpace) -> None:
    """Copy all PT_LOAD segments to their physical addresses; bytes past `p_filesz` stay the zeros of fresh RAM.

    All places are checked before the first byte is copied.

    Raises:
        ImageError: a segment is truncated, larger in the file than in memory, outside RAM, or overlaps another.
    """
    check_executable(elf)
    for number, header in enumerate(elf.loads):
        name = f"ELF segment {number}"
        if header.filesz > header.memsz:
            raise ImageError(f"damaged ELF: segment {number} has {header.filesz:#x} bytes for {header.memsz:#x} in RAM")
        space.claim(name, header.paddr, header.memsz)
        source.check(header.offset, header.filesz, name)
    for number, header in enumerate(elf.loads):
        source.copy_to(space.memory, header.paddr, header.offset, header.filesz, f"ELF segment {number}")


def start_address(elf: Elf, wanted: int | None = None) -> int:
    """Return the GPA to start at: `wanted`, or else that of the file's entry point.

    `e_entry` is a virtual address by the gABI, and a physical one in kernels that are linked high and know it (Linux):
    it is translated through the segment whose virtual range holds it, or else taken as it is.

    Raises:
        ImageError: the entry point lies in no segment.
        UsageError: `wanted` lies in no segment.
    """
    entry = elf.entry if wanted is None else wanted
    if wanted is None:
        for header in elf.loads:
            if header.vaddr <= entry < header.vaddr + header.memsz:
                return entry - header.vaddr + header.paddr
    if any(header.paddr <= entry < header.paddr + header.memsz for header in elf.loads):
        return entry
    if wanted is None:
        raise ImageError(f"the entry point {entry:#x} lies in no segment: check the linker script's ENTRY")
    raise UsageError(f"the entry point {entry:#x} lies in no segment of the image: choose one that does")


def notes(source: Source, elf: Elf) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield the notes of all PT_NOTE segments as (name without NUL, type, descriptor).

    A note that reaches past its segment ends that segment's list: notes are optional, so damage in them is no reason to
    refuse.
    """
    for header in elf.headers:
        if header.type != _PT_NOTE or header.offset >= source.size:
            continue
        data = source.read(header.offset, min(header.filesz, source.size - header.offset, _MOST_NOTE_BYTES))
        align = 8 if header.align == 8 else 4
        at = 0
        while at + _NOTE.size <= len(data):
            name_size, desc_size, kind = _NOTE.unpack_from(data, at)
            desc = -(-(at + _NOTE.size + name_size) // align) * align
            if desc + desc_size > len(data):
                break
            name = data[at + _NOTE.size : at + _NOTE.size + name_size]
            yield name.rstrip(b"\0"), kind, data[desc : desc + desc_size]
            at = -(-(desc + desc_size) // align) * align
