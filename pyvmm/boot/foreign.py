"""Files that are known not to be kernels that can be loaded, and what to do with them instead."""

from __future__ import annotations

from pyvmm.boot.source import Source
from pyvmm.errors import ImageError

_AT_START: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip-compressed: gunzip it first"),
    (b"\xfd7zXZ\0", "xz-compressed: unxz it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed: unzstd it first"),
    (b"BZh", "bzip2-compressed: bunzip2 it first"),
    (b"\x02\x21\x4c\x18", "lz4-compressed: unlz4 it first"),
    (b"\x04\x22\x4d\x18", "lz4-compressed: unlz4 it first"),
    (b"\x89LZO\0", "lzop-compressed: lzop -d it first"),
    (b"\x5d\0\0\x80\0", "lzma-compressed: unlzma it first"),
    (b"\x5d\0\0\0\x04", "lzma-compressed: unlzma it first"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"!<arch>\n", "a package or static library (ar archive): give the kernel inside it"),
    (b"\xed\xab\xee\xdb", "an RPM package: give the kernel inside it"),
    (b"070701", "a cpio archive, perhaps an initrd: give a kernel, and this as its initrd"),
    (b"070702", "a cpio archive, perhaps an initrd: give a kernel, and this as its initrd"),
    (b"QFI\xfb", "a qcow2 disk image: give the kernel inside it"),
    (b"KDMV", "a VMDK disk image: give the kernel inside it"),
    (b"vhdxfile", "a VHDX disk image: give the kernel inside it"),
    (b"conectix", "a VHD disk image: give the kernel inside it"),
    (b"<<< ", "a VirtualBox disk image: give the kernel inside it"),
    (b"hsqs", "a squashfs file system: give the kernel inside it"),
    (b"\x27\x05\x19\x56", "a U-Boot uImage: give the kernel that it wraps"),
    (b"ANDROID!", "an Android boot image: give the kernel that it wraps"),
    (b"\xcf\xfa\xed\xfe", "a Mach-O file: build the kernel as ELF"),
    (b"\xce\xfa\xed\xfe", "a Mach-O file: build the kernel as ELF"),
    (b"#!", "a script, not a kernel"),
)
_AT_OFFSET: tuple[tuple[int, bytes, str], ...] = (
    (0x8001, b"CD001", "an ISO 9660 CD image: give the kernel inside it"),
    (0x101, b"ustar", "a tar archive: unpack it first"),
    (0x200, b"EFI PART", "a GPT disk image: give the kernel inside it"),
)
_PARTITIONS = 0x1BE
_SMALLEST_DISK = 1 << 20
"""Short magics count only in images of this size and more: below, a flat guest is as likely."""
_EXT_MAGIC = 0x438


def refuse(source: Source) -> None:
    """Refuse the image if it is a file of a kind known not to be loadable.

    Raises:
        ImageError: it is; the message says what it is and what to do.
    """
    head = source.head(0x800)
    words = next((text for magic, text in _AT_START if head.startswith(magic)), None)
    if words is None and head.startswith(b"MZ"):
        words = _pe(source, head)
    for offset, magic, text in _AT_OFFSET:
        if words is None and source.size >= offset + len(magic) and source.read(offset, len(magic)) == magic:
            words = text
    if words is None and source.size >= _SMALLEST_DISK:
        if _has_partitions(head):
            words = "a partitioned disk image: give the kernel inside it"
        elif head[_EXT_MAGIC : _EXT_MAGIC + 2] == b"\x53\xef":
            words = "an ext2/3/4 file system: give the kernel inside it"
    if words:
        raise ImageError(f"{words} (to load it all the same, force the flat format)")


def _pe(source: Source, head: bytes) -> str | None:
    if head[0x38:0x3C] == b"ARM\x64":
        return "a Linux kernel for AArch64: only x86 and x86-64 kernels can run here"
    at = int.from_bytes(head[0x3C:0x40], "little")
    if at + 4 <= source.size and source.read(at, 4) == b"PE\0\0":
        return "an EFI or Windows program (PE): give a bzImage or an ELF kernel"
    return None


def _has_partitions(head: bytes) -> bool:
    """Tell whether a boot sector has a partition table that makes sense: plausible flags, and an entry in use."""
    if head[0x1FE:0x200] != b"\x55\xaa":
        return False
    entries = [head[at : at + 16] for at in range(_PARTITIONS, 0x1FE, 16)]
    used = [entry for entry in entries if entry[4] and entry[12:16] != bytes(4)]
    return bool(used) and all(entry[0] in (0, 0x80) for entry in entries)
