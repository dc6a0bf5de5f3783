"""Multiboot 1: ELF and flat kernels, boot information, modules."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyvmm.boot import BootOptions, load
from pyvmm.errors import ImageError, UsageError
from pyvmm.memory import GuestMemory
from tests.unit.boot_images import (
    CODE,
    Part,
    c_string,
    make_elf,
    make_multiboot_elf,
    make_multiboot_flat,
    make_multiboot_header,
)

MIB = 1 << 20


def test_machine_state(memory: GuestMemory) -> None:
    image = load(make_multiboot_elf(), memory)
    state = image.state
    assert (image.format, state.mode, state.bits, state.rip) == ("multiboot", "protected", 32, 0x100000)
    assert state.rax == 0x2BADB002
    assert state.cr0 >> 31 == 0
    assert state.rflags == 2
    assert memory.read_u32(state.rbx) & 1 << 6, "there is a memory map"


def test_boot_information(memory: GuestMemory) -> None:
    options = BootOptions(cmdline="a=1 b", initrd=b"I" * 5000, modules=[(b"MOD", "name of it"), (b"Z" * 4096, "")])
    image = load(make_multiboot_elf(flags=3), memory, options)
    info = image.state.rbx
    flags, lower, upper = struct.unpack("<3I", memory.read(info, 12))
    assert flags == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (lower, upper) == (639, 3 * 1024)
    assert c_string(memory, memory.read_u32(info + 16)) == "kernel a=1 b"
    assert c_string(memory, memory.read_u32(info + 64)) == "pyvmm"
    count, mods = memory.read_u32(info + 20), memory.read_u32(info + 24)
    found = []
    for at in range(mods, mods + 16 * count, 16):
        start, end, text, reserved = struct.unpack("<4I", memory.read(at, 16))
        assert start % 4096 == 0
        assert reserved == 0
        found.append((memory.read(start, end - start), c_string(memory, text)))
    assert found == [(b"I" * 5000, ""), (b"MOD", "name of it"), (b"Z" * 4096, "")]
    length, at = memory.read_u32(info + 44), memory.read_u32(info + 48)
    entries, end = [], at + length
    while at < end:
        size, base, span, kind = struct.unpack("<IQQI", memory.read(at, 24))
        entries.append((base, span, kind))
        at += size + 4
    assert entries == [tuple(entry) for entry in image.e820]
    assert (MIB, 3 * MIB, 1) in entries


def test_command_line_starts_with_the_file_name(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "my kernel.elf"
    path.write_bytes(make_multiboot_elf())
    image = load(str(path), memory, BootOptions(cmdline="x"))
    assert image.cmdline == "my_kernel.elf x"
    assert c_string(memory, memory.read_u32(image.state.rbx + 16)) == "my_kernel.elf x"
    assert image.symbols_path == str(path)


def test_modules_lie_above_the_kernel(memory: GuestMemory) -> None:
    image = load(make_multiboot_elf(), memory, BootOptions(modules=[(b"M", "")]))
    places = {segment.name: segment.gpa for segment in image.segments}
    assert places["module 0"] == 0x103000


def test_elf64_kernel_is_entered_in_protected_mode(memory: GuestMemory) -> None:
    assert load(make_multiboot_elf(bits=64), memory).state.mode == "protected"


def test_flat_kernel_is_placed_by_its_header(memory: GuestMemory) -> None:
    data = make_multiboot_flat(bss_end=0x110000)
    image = load(data, memory)
    assert (image.format, image.state.rip) == ("multiboot", 0x100020)
    assert memory.read(0x100000, len(data)) == data
    assert image.symbols_path is None
    assert ("multiboot image", 0x100000, 0x10000) in [tuple(segment) for segment in image.segments]


def test_flat_kernel_loads_part_of_the_file(memory: GuestMemory) -> None:
    # The header sits at byte 8; load_addr 4 bytes below it skips the first 4 bytes.
    header = make_multiboot_header(1 << 16, (0x100004, 0x100000, 0x100030, 0, 0x100020))
    data = b"SKIPFOUR" + header + CODE * 16
    load(data, memory)
    assert memory.read(0x100000, 0x40) == data[4:0x34] + bytes(0x10)


def test_header_addresses_win_over_elf(memory: GuestMemory) -> None:
    gap = make_multiboot_header(1 << 16, (0x200054, 0x200000, 0, 0, 0x200054))
    data = make_elf([Part(0x100000)], bits=32, gap=gap)
    assert data.index(gap) == 0x54
    assert load(data, memory).state.rip == 0x200054
    assert memory.read(0x200000, len(data)) == data


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (make_multiboot_elf(flags=1 << 3), "unknown features .flags 0x8"),
        (make_multiboot_flat(load_end=0x100010, bss_end=0x100008), "damaged multiboot header"),
        (make_multiboot_flat(load_end=0x90000), "damaged multiboot header"),
        (make_multiboot_flat(load_end=0x180000), "truncated: its multiboot image"),
        (make_multiboot_flat(bss_end=0xF0000000), "outside the guest's RAM"),
        (make_multiboot_flat(entry=0x90000), "entry point 0x90000 lies outside"),
        (make_multiboot_header(1 << 16, (0x1000, 0x2000, 0, 0, 0x2000)) + CODE, "load_addr 0x2000 does not fit"),
        (make_multiboot_header(1 << 16, (0x3000, 0x2000, 0, 0, 0x2000)) + CODE, "load_addr 0x2000 does not fit"),
        (make_multiboot_header(1 << 16, ())[:12], "truncated: its multiboot header"),
        (make_multiboot_elf(parts=[Part(0x100000), Part(0x100002)]), "overlaps"),
    ],
)
def test_damage_is_named(memory: GuestMemory, image: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load(image, memory)


def test_forced_without_a_header(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match="no multiboot header"):
        load(make_elf([Part(0x100000)]), memory, BootOptions(format="multiboot"))
    with pytest.raises(ImageError, match="not ELF"):
        load(make_multiboot_header() + CODE, memory, BootOptions(format="multiboot"))


def test_header_past_8192_bytes_or_with_a_bad_checksum_does_not_count(memory: GuestMemory) -> None:
    header = make_multiboot_header()
    assert load(make_elf([Part(0x100000)], gap=bytes(8192) + header), memory).format == "elf"
    assert load(make_elf([Part(0x100000)], gap=header[:11] + b"\0"), memory).format == "elf"
    assert load(make_elf([Part(0x100000)], gap=b"\0\0" + header), memory).format == "elf", "not aligned"


def test_video_request_is_noted(memory: GuestMemory) -> None:
    image = load(make_multiboot_elf(flags=1 << 2), memory)
    assert any("video" in note for note in image.notes)
    assert memory.read_u32(image.state.rbx) >> 11 == 0


def test_multiboot_2_is_named(memory: GuestMemory) -> None:
    words = (0xE85250D6, 0, 24)
    header = struct.pack("<4I", *words, -sum(words) & 0xFFFFFFFF) + struct.pack("<HHI", 0, 0, 8)
    data = make_elf([Part(0x100000)], gap=header)
    assert data.index(header) % 8 == 0
    with pytest.raises(ImageError, match="Multiboot 2"):
        load(data, memory)
    assert load(data, memory, BootOptions(format="elf")).state.mode == "long"


def test_options_that_do_not_suit(memory: GuestMemory) -> None:
    with pytest.raises(UsageError, match="protected mode, not in long"):
        load(make_multiboot_elf(), memory, BootOptions(mode="long"))
    with pytest.raises(UsageError, match="takes no load address"):
        load(make_multiboot_elf(), memory, BootOptions(load_addr=0))
    with pytest.raises(UsageError, match="lies outside the image"):
        load(make_multiboot_flat(), memory, BootOptions(entry=0x1000))
    with pytest.raises(ImageError, match="no room for the module 0"):
        load(make_multiboot_elf(), memory, BootOptions(modules=[(bytes(3 * MIB), "")]))
    with pytest.raises(UsageError, match="string of module 0"):
        load(make_multiboot_elf(), memory, BootOptions(modules=[(b"M", "a\nb")]))
