"""Recognize images: the signs by which each protocol marks its kernels. Small, for every start of a guest runs it."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pyvmm.boot.elf import Elf, notes
from pyvmm.boot.source import Source

_BOOT_FLAG = 0x1FE
_BOOT_MAGIC = b"\x55\xaa"
_LINUX_HEADER = 0x202
_LINUX_MAGIC = b"HdrS"

MULTIBOOT_SEARCH = 8192
"""The header lies within these first bytes, on a 4-byte boundary (Multiboot 0.6.96, section 3.1)."""
MULTIBOOT_ADDRESSES = 1 << 16
"""Header flag: the header says where to load the image, which need not be ELF."""
_MULTIBOOT_MAGIC = struct.pack("<I", 0x1BADB002)
_MULTIBOOT2_MAGIC = struct.pack("<I", 0xE85250D6)
_MULTIBOOT2_SEARCH = 32768

_LINUX = b"Linux"
_XEN = b"Xen"
_XEN_GUEST_OS = 6
_XEN_PHYS32_ENTRY = 18


class MultibootHeader(NamedTuple):
    """A multiboot 1 header: its offset in the file, its flags."""

    offset: int
    flags: int


def is_bzimage(source: Source) -> bool:
    """Tell whether the image has a boot sector's signature and the `HdrS` of a Linux kernel (boot.rst, header fields)."""
    head = source.head(_LINUX_HEADER + len(_LINUX_MAGIC))
    return head[_BOOT_FLAG : _BOOT_FLAG + 2] == _BOOT_MAGIC and head[_LINUX_HEADER:] == _LINUX_MAGIC


def multiboot_header(source: Source) -> MultibootHeader | None:
    """Find the multiboot 1 header, by magic and checksum."""
    at = _find(source.head(MULTIBOOT_SEARCH), _MULTIBOOT_MAGIC, 4, "<3I")
    return None if at is None else MultibootHeader(at, int.from_bytes(source.read(at + 4, 4), "little"))


def has_multiboot2(source: Source) -> bool:
    """Tell whether there is a Multiboot 2 header (Multiboot2 Specification 2.0, section 3.1)."""
    return _find(source.head(_MULTIBOOT2_SEARCH), _MULTIBOOT2_MAGIC, 8, "<4I") is not None


def _find(data: bytes, magic: bytes, align: int, layout: str) -> int | None:
    """Find aligned words that start with `magic` and sum up to 0 modulo 2**32."""
    size = struct.calcsize(layout)
    at = data.find(magic)
    while 0 <= at <= len(data) - size:
        if at % align == 0 and sum(struct.unpack_from(layout, data, at)) & 0xFFFFFFFF == 0:
            return at
        at = data.find(magic, at + 1)
    return None


def is_linux(source: Source, image: Elf) -> bool:
    """Tell whether an ELF kernel is a Linux `vmlinux`, by notes of its own (include/linux/elfnote.h) or those for Xen."""
    return any(
        owner == _LINUX or (owner == _XEN and kind == _XEN_GUEST_OS and value.rstrip(b"\0").lower() == b"linux")
        for owner, kind, value in notes(source, image)
    )


def pvh_entry(source: Source, image: Elf) -> int | None:
    """Return the GPA of the PVH entry point (XEN_ELFNOTE_PHYS32_ENTRY), or None where the image has no such note."""
    for owner, kind, value in notes(source, image):
        # The field is as wide as the ELF class; some kernels write 32 bits into a 64-bit file.
        if owner == _XEN and kind == _XEN_PHYS32_ENTRY and len(value) in (4, 8):
            return int.from_bytes(value, "little")
    return None
