"""Repack a bzImage without its compression, for an emulator in which unpacking costs more than all of the boot.

A distribution's kernel is an xz stream with a decompressor in front. Under an emulator at 70 million instructions a second that
decompressor runs for a minute. The image made here keeps the kernel's own real-mode setup code, so that every boot loader takes it for
what it is, and carries the unpacked kernel with a few instructions in front that enter it by the 64-bit boot protocol.
"""

from __future__ import annotations

import struct

from pyvmm.boot import layout
from pyvmm.boot import zeropage as zp
from pyvmm.errors import ImageError

PAYLOAD_OFFSET = 0x248
PAYLOAD_LENGTH = 0x24C

_PAGE = 4096
_HUGE = 2 << 20
_GIB = 1 << 30
_IDENTITY_GIB = 4
_TABLE_PAGES = 2 + _IDENTITY_GIB
_FRONT = (1 + _TABLE_PAGES) * _PAGE
"""What lies in front of the kernel: a page with the code that enters it, and the page tables of the identity map."""

_GDT = struct.pack("<4Q", 0, 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF)
"""The selectors that boot.rst asks for ("64-bit Boot Protocol"): 0x10 flat 64-bit code, 0x18 flat data."""
_PRESENT_WRITE = 0x3
_LARGE = 0x80

_PT_LOAD = 1
_PHDR = struct.Struct("<IIQQQQQQ")


def unpack(payload: bytes) -> bytes:
    """Unpack a bzImage's payload, an ELF file that xz, gzip or bzip2 packed; what follows the stream is ignored.

    Raises:
        ImageError: packed by something else, or damaged.
    """
    import bz2
    import lzma
    import zlib

    try:
        if payload.startswith(b"\xfd7zXZ\0"):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
        if payload.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(payload)
        if payload.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(payload)
    except (lzma.LZMAError, zlib.error, OSError) as error:
        raise ImageError(f"the kernel inside cannot be unpacked: {error}") from None
    raise ImageError(
        f"the kernel inside is packed in a way that is not known here (it starts with {payload[:4].hex()})"
    )


def repack(image: bytes) -> bytes:
    """Return the bzImage `image` with its kernel unpacked.

    It is loaded at 1 MiB, where every boot loader puts a kernel that cannot be moved, and padded so that the kernel itself comes to lie
    where it is linked. There is no KASLR.

    Raises:
        ImageError: not a 64-bit bzImage of protocol 2.10 or later, or packed in an unknown way.
    """
    if len(image) < zp.SETUP_HEADER_END or image[zp.HEADER : zp.HEADER + 4] != zp.HEADER_MAGIC:
        raise ImageError("not a Linux bzImage (no HdrS header)")
    setup_size = ((image[zp.SETUP_SECTS] or 4) + 1) * 512
    start = setup_size + _get(image, "I", PAYLOAD_OFFSET)
    elf = unpack(image[start : start + _get(image, "I", PAYLOAD_LENGTH)])
    entry, base, end, flat = flatten(elf)
    load = layout.HIGH_MEMORY
    body = _front(load, entry).ljust(base - load, b"\0") + flat
    body += bytes(-len(body) % 16)
    setup = bytearray(image[:setup_size])
    for code, offset, value in (
        ("I", zp.SYSSIZE, len(body) // 16),
        ("I", zp.CODE32_START, load),
        ("B", zp.RELOCATABLE_KERNEL, 0),
        ("Q", zp.PREF_ADDRESS, load),
        ("I", zp.INIT_SIZE, end - load),
        ("I", PAYLOAD_OFFSET, base - load),
        ("I", PAYLOAD_LENGTH, len(flat)),
    ):
        struct.pack_into("<" + code, setup, offset, value)
    return bytes(setup) + body


def flatten(elf: bytes) -> tuple[int, int, int, bytes]:
    """Lay out the segments of a 64-bit kernel as they lie in memory.

    Returns:
        Entry point, first physical address, the one behind the last, and the bytes from the first on, without the zeros at the end.

    Raises:
        ImageError: not a 64-bit ELF file with segments.
    """
    if elf[:5] != b"\x7fELF\x02" or len(elf) < 64:
        raise ImageError("the kernel inside is not a 64-bit ELF file")
    entry, phoff, phentsize, phnum = *struct.unpack_from("<QQ", elf, 24), *struct.unpack_from("<HH", elf, 54)
    if phentsize != _PHDR.size or phoff + phnum * phentsize > len(elf):
        raise ImageError("the kernel inside is damaged: its program headers are not in the file")
    headers = [_PHDR.unpack_from(elf, phoff + number * phentsize) for number in range(phnum)]
    loads = [
        (paddr, offset, filesz, memsz) for kind, _, offset, _, paddr, filesz, memsz, _ in headers if kind == _PT_LOAD
    ]
    if not loads:
        raise ImageError("the kernel inside has nothing to load")
    base = min(paddr for paddr, *_ in loads)
    end = max(paddr + memsz for paddr, _, _, memsz in loads)
    if base < layout.HIGH_MEMORY + _FRONT or end > _GIB or base % _PAGE:
        raise ImageError(f"the kernel inside wants to lie at {base:#x} to {end:#x}")
    flat = bytearray(end - base)
    for paddr, offset, filesz, memsz in loads:
        if offset + filesz > len(elf) or filesz > memsz:
            raise ImageError("the kernel inside is truncated")
        flat[paddr - base : paddr - base + filesz] = elf[offset : offset + filesz]
    return entry, base, end, bytes(flat.rstrip(b"\0"))


def _get(image: bytes, code: str, offset: int) -> int:
    value: int = struct.unpack_from("<" + code, image, offset)[0]
    return value


def _front(load: int, entry: int) -> bytes:
    """Make the page that enters the kernel, for a start at `load` in protected mode, and the page tables behind it."""
    pml4 = load + _PAGE
    pdpt, directories = pml4 + _PAGE, pml4 + 2 * _PAGE
    gdt = load + 0x800
    head = bytes.fromhex("fa 0f0115") + struct.pack("<I", gdt + len(_GDT))  # cli; lgdt [descriptor]
    head += bytes.fromhex("b820000000 0f22e0")  # cr4 = PAE
    head += b"\xb8" + struct.pack("<I", pml4) + bytes.fromhex("0f22d8")  # cr3 = pml4
    head += bytes.fromhex("b9800000c0 0f32 0d00010000 0f30")  # EFER |= LME
    head += bytes.fromhex("0f20c0 0d00000080 0f22c0")  # cr0 |= PG
    head += b"\xea" + struct.pack("<IH", load + len(head) + 7, 0x10)  # jmp 0x10:next
    head += bytes.fromhex("b818000000 8ed8 8ec0 8ed0 31c0 8ee0 8ee8")  # ds = es = ss = 0x18; fs = gs = 0
    head += bytes.fromhex("89f6 b8") + struct.pack("<I", entry) + bytes.fromhex("ffe0")  # rsi = esi; jmp entry
    page = head.ljust(0x800, b"\0") + _GDT + struct.pack("<HI", len(_GDT) - 1, gdt)
    tables = struct.pack("<Q", pdpt | _PRESENT_WRITE).ljust(_PAGE, b"\0")
    tables += b"".join(
        struct.pack("<Q", (directories + number * _PAGE) | _PRESENT_WRITE) for number in range(_IDENTITY_GIB)
    ).ljust(_PAGE, b"\0")
    tables += b"".join(
        struct.pack("<Q", number * _HUGE | _LARGE | _PRESENT_WRITE) for number in range(_IDENTITY_GIB * _GIB // _HUGE)
    )
    return page.ljust(_PAGE, b"\0") + tables
