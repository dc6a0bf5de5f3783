"""Images built from bytes for the tests of the loaders."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pyvmm.memory import GuestMemory

PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
CODE = b"\xfa\xf4\xeb\xfd"


@dataclass
class Part:
    """A program header and the bytes that it covers; sizes and addresses as given, however absurd."""

    paddr: int
    data: bytes = CODE
    memsz: int | None = None
    vaddr: int | None = None
    kind: int = PT_LOAD
    filesz: int | None = None
    offset: int | None = None
    align: int = 4


def make_elf(
    parts: Sequence[Part],
    *,
    entry: int = 0x100000,
    bits: int = 64,
    machine: int | None = None,
    kind: int = 2,
    gap: bytes = b"",
    encoding: int = 1,
    phentsize: int | None = None,
    phnum: int | None = None,
) -> bytes:
    """Build an ELF executable: header, program headers, `gap`, contents."""
    wide = bits == 64
    header_size, phdr_size = (64, 56) if wide else (52, 32)
    at = header_size + phdr_size * len(parts) + len(gap)
    table, body = b"", b""
    for part in parts:
        offset = at + len(body) if part.offset is None else part.offset
        filesz = len(part.data) if part.filesz is None else part.filesz
        memsz = filesz if part.memsz is None else part.memsz
        vaddr = part.paddr if part.vaddr is None else part.vaddr
        if wide:
            table += struct.pack("<IIQQQQQQ", part.kind, 7, offset, vaddr, part.paddr, filesz, memsz, part.align)
        else:
            table += struct.pack("<IIIIIIII", part.kind, offset, vaddr, part.paddr, filesz, memsz, 7, part.align)
        body += part.data
    machine = (62 if wide else 3) if machine is None else machine
    ident = b"\x7fELF" + bytes([2 if wide else 1, encoding, 1]) + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH",
        kind,
        machine,
        1,
        entry,
        header_size,
        0,
        0,
        header_size,
        phdr_size if phentsize is None else phentsize,
        len(parts) if phnum is None else phnum,
        0,
        0,
        0,
    )
    return header + table + gap + body


def make_multiboot_header(flags: int = 0, addresses: Sequence[int] = ()) -> bytes:
    """Build a multiboot 1 header, with the five address fields if given."""
    magic = 0x1BADB002
    return struct.pack(f"<III{len(addresses)}I", magic, flags, -(magic + flags) & 0xFFFFFFFF, *addresses)


def make_multiboot_elf(flags: int = 0, bits: int = 32, parts: Sequence[Part] | None = None) -> bytes:
    """Build an ELF kernel with a multiboot header."""
    parts = parts or [Part(0x100000, CODE * 4, memsz=0x1000), Part(0x102000, b"data" * 8)]
    return make_elf(parts, bits=bits, gap=make_multiboot_header(flags))


def make_multiboot_flat(load_addr: int = 0x100000, load_end: int = 0, bss_end: int = 0, entry: int = 0x100020) -> bytes:
    """Build a multiboot kernel that is not ELF; its header is at byte 0."""
    addresses = (load_addr, load_addr, load_end, bss_end, entry)
    return make_multiboot_header(1 << 16, addresses) + CODE * 16


def make_note(owner: bytes, kind: int, value: bytes) -> bytes:
    """Build one ELF note."""
    name = owner + b"\0"
    name_field = name + bytes(-len(name) % 4)
    return struct.pack("<III", len(name), len(value), kind) + name_field + value + bytes(-len(value) % 4)


def make_pvh(entry: int = 0x100000, bits: int = 64, notes: bytes | None = None) -> bytes:
    """Build an ELF kernel with a PVH note behind a note of another kind."""
    if notes is None:
        notes = make_note(b"GNU", 1, b"abcdef") + make_note(b"Xen", 18, entry.to_bytes(bits // 8, "little"))
    return make_elf([Part(0, notes, kind=PT_NOTE), Part(0x100000, CODE * 8, memsz=0x2000)], bits=bits)


def make_bzimage(
    code: bytes = CODE * 512,
    *,
    version: int = 0x20F,
    xloadflags: int = 3,
    pref_address: int = 0x100000,
    init_size: int = 0x10000,
    setup_sects: int = 2,
    cmdline_size: int = 255,
    initrd_max: int = 0x7FFFFFFF,
    loadflags: int = 1,
    relocatable: int = 1,
    alignment: int = 0x10000,
    syssize: int | None = None,
) -> bytes:
    """Build a Linux bzImage whose setup header says what the arguments say."""
    setup = bytearray(((setup_sects or 4) + 1) * 512)
    fields = (
        ("<B", 0x1F1, setup_sects),
        ("<I", 0x1F4, -(-len(code) // 16) if syssize is None else syssize),
        ("<H", 0x1FE, 0xAA55),
        ("<H", 0x200, 0x6AEB),
        ("<I", 0x202, 0x53726448),
        ("<H", 0x206, version),
        ("<B", 0x211, loadflags),
        ("<I", 0x214, 0x100000),
        ("<I", 0x22C, initrd_max),
        ("<I", 0x230, alignment),
        ("<B", 0x234, relocatable),
        ("<H", 0x236, xloadflags),
        ("<I", 0x238, cmdline_size),
        ("<Q", 0x258, pref_address),
        ("<I", 0x260, init_size),
    )
    for layout, offset, value in fields:
        struct.pack_into(layout, setup, offset, value)
    return bytes(setup) + code


def c_string(memory: GuestMemory, gpa: int) -> str:
    """Read a NUL-terminated string."""
    data = bytearray()
    while byte := memory.read_u8(gpa + len(data)):
        data.append(byte)
    return data.decode()
