"""Tell whether a file can be the initial RAM disk of a Linux kernel, by how it starts and, uncompressed, by its structure.

A kernel that cannot use its initrd says so in one line among hundreds and panics at the end of its start, far from the
cause: so what it would not take is refused beforehand. It takes (init/initramfs.c, lib/decompress.c,
init/do_mounts_rd.c) one cpio archive or several in a row, each compressed or not, with zero bytes before and between
them; or the image of a file system, an old RAM disk. What follows a compressed archive is not looked at, for where
that ends only its decompressor knows.
"""

from __future__ import annotations

from pyvmm.boot.source import Source
from pyvmm.errors import ImageError

_COMPRESSED = (
    b"\x1f\x8b",  # gzip
    b"\x1f\x9e",  # gzip, as old ones wrote it
    b"BZh",
    b"\x5d\x00",  # lzma
    b"\xfd7zXZ\x00",
    b"\x89LZO\x00",
    b"\x02\x21\x4c\x18",  # lz4, the legacy format
    b"\x28\xb5\x2f\xfd",  # zstd
)
_RAM_DISKS = (
    (0x438, b"\x53\xef"),  # ext2, ext3, ext4
    (0, b"-rom1fs-"),
    (0, b"\x45\x3d\xcd\x28"),  # cramfs, also behind a boot sector
    (0x200, b"\x45\x3d\xcd\x28"),
    (0, b"hsqs"),
    *((0x410, magic) for magic in (b"\x7f\x13", b"\x8f\x13", b"\x68\x24", b"\x78\x24")),  # minix, versions 1 and 2
)
_OTHERS = (
    (0, b"\x04\x22\x4d\x18", "an lz4 frame, of which a kernel takes only the legacy format (lz4 -l)"),
    (0, b"070707", "a cpio archive of the old portable format"),
    (0, b"\xc7\x71", "a cpio archive of the old binary format"),
    (0, b"\x7fELF", "an ELF file"),
    (0x202, b"HdrS", "a Linux kernel"),
    (0, b"MZ", "an EFI program"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"!<arch>\n", "a package or static library"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0x101, b"ustar", "a tar archive"),
    (0x8001, b"CD001", "an ISO 9660 CD image"),
    (0, b"#!", "a script"),
)
_MAGICS = (b"070701", b"070702")
_HEADER = 110
_SIZE, _NAME_SIZE = slice(54, 62), slice(94, 102)
_TRAILER = b"TRAILER!!!\0"
_CHUNK = 1 << 16
_REMEDY = "pack one with cpio -o -H newc, compressed or not"


def check_initrd(source: Source) -> None:
    """Check that a Linux kernel can unpack or mount `source`; damage inside a compressed archive is not found.

    Raises:
        ImageError: it cannot; the message says what the file looks like, or where an uncompressed archive breaks.
    """
    at = _skip_zeros(source, 0)
    if at == source.size:
        raise ImageError(f"no initrd: it holds nothing but zero bytes: {_REMEDY}")
    archives = 0
    while at < source.size:
        head = source.read(at, min(_HEADER + len(_TRAILER), source.size - at))
        if head.startswith(_COMPRESSED):
            return
        # A kernel takes digits for a header on a boundary of 4 bytes only, elsewhere for compressed data.
        if not head.startswith(_MAGICS) or at % 4:
            if archives:
                raise ImageError(
                    f"damaged initrd: neither an archive nor compressed data at byte {at:#x}, behind "
                    f"{'a cpio archive' if archives == 1 else f'{archives} cpio archives'}: make it anew"
                )
            if _is_ram_disk(source):
                return
            raise ImageError(f"no initrd that Linux can use: it looks like {_looks(source, head)}: {_REMEDY}")
        at = _skip_zeros(source, _archive_end(source, at))
        archives += 1


def _archive_end(source: Source, at: int) -> int:
    """Return where the uncompressed archive at `at` ends: behind its trailer, or at the end of the file."""
    while at < source.size:
        head = source.read(at, min(_HEADER + len(_TRAILER), source.size - at))
        if not any(head.startswith(magic[: len(head)]) for magic in _MAGICS):
            raise ImageError(f"damaged initrd: no cpio header at byte {at:#x}, inside an archive: make it anew")
        end = at + _HEADER
        if len(head) >= _HEADER:
            try:
                size, name_size = int(head[_SIZE], 16), int(head[_NAME_SIZE], 16)
            except ValueError:
                raise ImageError(f"damaged initrd: bad cpio header at byte {at:#x}: make it anew") from None
            if name_size == len(_TRAILER) and head[_HEADER:] == _TRAILER:
                return end + len(_TRAILER)
            end = _aligned(end + name_size) + size
        if end > source.size:
            raise ImageError(
                f"truncated initrd: the cpio entry at byte {at:#x} reaches past its end: get a complete copy"
            )
        at = _aligned(end)
    return source.size


def _aligned(offset: int) -> int:
    return -(-offset // 4) * 4


def _skip_zeros(source: Source, at: int) -> int:
    """Return the offset of the first byte from `at` on that is not zero, or the size."""
    while at < source.size:
        chunk = source.read(at, min(_CHUNK, source.size - at))
        rest = chunk.lstrip(b"\0")
        if rest:
            return at + len(chunk) - len(rest)
        at += len(chunk)
    return at


def _has(source: Source, offset: int, magic: bytes) -> bool:
    return source.size >= offset + len(magic) and source.read(offset, len(magic)) == magic


def _is_ram_disk(source: Source) -> bool:
    return any(_has(source, offset, magic) for offset, magic in _RAM_DISKS)


def _looks(source: Source, head: bytes) -> str:
    """Describe a file that is no initrd."""
    for offset, magic, words in _OTHERS:
        if _has(source, offset, magic):
            return words
    sample = source.head(512)
    if all(byte in b"\t\n\r\f\x1b" or 0x20 <= byte < 0x7F or byte >= 0x80 for byte in sample) and b"\n" in sample:
        return "a text file"
    return f"nothing known (it starts with {head[:8].hex(' ')})"
