"""AML, the byte code of ACPI's DSDT: just the objects that a static namespace needs (ACPI 6.5, chapters 20 and 6.4).

Each function returns the bytes of one object; objects nest by concatenation:

    scope("\\\\_SB", device("COM1", name("_HID", eisa_id("PNP0501")), name("_CRS", resources(io(0x3F8, 8), irq(4)))))
"""

from __future__ import annotations

import re
import struct

_ZERO, _ONE, _NAME, _SCOPE, _STRING, _BUFFER, _PACKAGE = 0x00, 0x01, 0x08, 0x10, 0x0D, 0x11, 0x12
_DEVICE = b"\x5b\x82"
_DUAL_NAME, _MULTI_NAME = 0x2E, 0x2F
_INTEGERS = ((1, 0x0A), (2, 0x0B), (4, 0x0C), (8, 0x0E))  # bytes, prefix

_NAME_SEGMENT = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")
_EISA_ID = re.compile(r"[A-Z]{3}[0-9A-F]{4}")

_IO_PORT, _IRQ, _END_TAG = 0x47, 0x22, 0x79  # small resource items: kind and length in one byte
_MEMORY32_FIXED, _QWORD_SPACE, _EXTENDED_IRQ = 0x86, 0x8A, 0x89
_DECODE_16 = 1
_READ_WRITE = 1
_CONSUMER = 1 << 0  # this device uses the resource itself and hands it to no bus behind it
_MIN_FIXED, _MAX_FIXED = 1 << 2, 1 << 3  # of an address space
_SHARED = 1 << 3  # of an interrupt, whose bits for "edge" and "active low" stay clear


def package_length(size: int) -> bytes:
    """Encode the length of `size` bytes of content together with the encoding's own 1 to 4 bytes (PkgLength, 20.2.4)."""
    if size + 1 < 1 << 6:
        return bytes([size + 1])
    for more in (1, 2, 3):
        total = size + 1 + more
        if total < 1 << (4 + 8 * more):
            return bytes([more << 6 | total & 0xF]) + (total >> 4).to_bytes(more, "little")
    raise ValueError(f"{size} bytes are too long for an AML package")


def name_string(path: str) -> bytes:
    """Encode a path, as `COM1`, `\\_SB.COM1` or `^COM1` (NameString, 20.2.2).

    Raises:
        ValueError: a segment is not 1 to 4 of A-Z, 0-9 and _, or starts with a digit.
    """
    rest = path.lstrip("\\^")
    prefix = path[: len(path) - len(rest)]
    if prefix not in ("", "\\") and set(prefix) != {"^"}:
        raise ValueError(f"{path!r} is no AML path")
    segments = rest.split(".") if rest else []
    if len(segments) > 255 or not all(map(_NAME_SEGMENT.fullmatch, segments)):
        raise ValueError(f"{path!r} is no AML path")
    count = {0: b"\0", 1: b"", 2: bytes([_DUAL_NAME])}.get(len(segments), bytes([_MULTI_NAME, len(segments) & 0xFF]))
    return prefix.encode() + count + b"".join(segment.ljust(4, "_").encode() for segment in segments)


def integer(value: int) -> bytes:
    """Encode an unsigned number of at most 64 bits in its shortest form (ComputationalData, 20.2.3)."""
    if value in (0, 1):
        return bytes([_ONE if value else _ZERO])
    for size, prefix in _INTEGERS:
        if 0 <= value < 1 << (8 * size):
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} is no AML integer")


def string(text: str) -> bytes:
    """Encode ASCII text."""
    if "\0" in text:
        raise ValueError(f"{text!r} contains a NUL")
    return bytes([_STRING]) + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """Encode a compressed EISA identifier, as `PNP0501` (EISAID, 19.3.4): five bits a letter, big-endian."""
    if not _EISA_ID.fullmatch(text):
        raise ValueError(f"{text!r} is no EISA identifier")
    first, second, third = (ord(letter) - 0x40 for letter in text[:3])
    value = first << 26 | second << 21 | third << 16 | int(text[3:], 16)
    return integer(int.from_bytes(value.to_bytes(4, "big"), "little"))


def buffer(content: bytes) -> bytes:
    """Encode a buffer (DefBuffer, 20.2.5.4)."""
    body = integer(len(content)) + content
    return bytes([_BUFFER]) + package_length(len(body)) + body


def package(*elements: bytes) -> bytes:
    """Encode a package of at most 255 elements (DefPackage, 20.2.5.4)."""
    body = bytes([len(elements)]) + b"".join(elements)
    return bytes([_PACKAGE]) + package_length(len(body)) + body


def name(path: str, value: bytes) -> bytes:
    """Declare a named object (DefName, 20.2.5.1)."""
    return bytes([_NAME]) + name_string(path) + value


def scope(path: str, *objects: bytes) -> bytes:
    """Open a scope that exists already (DefScope, 20.2.5.1)."""
    body = name_string(path) + b"".join(objects)
    return bytes([_SCOPE]) + package_length(len(body)) + body


def device(path: str, *objects: bytes) -> bytes:
    """Declare a device (DefDevice, 20.2.5.2)."""
    body = name_string(path) + b"".join(objects)
    return _DEVICE + package_length(len(body)) + body


def resources(*items: bytes) -> bytes:
    """Make a resource template of resource items (6.4): a buffer that ends with an end tag, here without checksum."""
    return buffer(b"".join(items) + bytes([_END_TAG, 0]))


def io(port: int, size: int) -> bytes:
    """Describe `size` ports that stay where they are (I/O port descriptor, 6.4.2.5)."""
    return struct.pack("<BBHHBB", _IO_PORT, _DECODE_16, port, port, 1, size)


def irq(line: int) -> bytes:
    """Describe an edge-triggered ISA interrupt, 0 to 15 (IRQ descriptor without flags, 6.4.2.1)."""
    return struct.pack("<BH", _IRQ, 1 << line)


def memory(address: int, size: int) -> bytes:
    """Describe registers in memory that stay where they are (6.4.3.4; above 4 GiB 6.4.3.5.1)."""
    end = address + size
    if end <= 1 << 32:
        return struct.pack("<BHBII", _MEMORY32_FIXED, 9, _READ_WRITE, address, size)
    flags = _CONSUMER | _MIN_FIXED | _MAX_FIXED
    return struct.pack("<BHBBBQQQQQ", _QWORD_SPACE, 0x2B, 0, flags, _READ_WRITE, 0, address, end - 1, 0, size)


def interrupt(gsi: int) -> bytes:
    """Describe a level-triggered, active-high, shareable interrupt by its GSI (extended interrupt, 6.4.3.6)."""
    return struct.pack("<BHBBI", _EXTENDED_IRQ, 6, _CONSUMER | _SHARED, 1, gsi)
