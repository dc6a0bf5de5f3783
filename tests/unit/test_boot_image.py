"""Opening and recognizing images, memory map, command line, MP table: what all formats share."""

from __future__ import annotations

import os
import socket
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot import FORMATS, BootOptions, detect, load
from pyvmm.boot.cmdline import encode_cmdline
from pyvmm.boot.e820 import RAM, RESERVED, memory_map
from pyvmm.boot.source import Source
from pyvmm.boot.space import LoadSpace
from pyvmm.errors import ImageError, UsageError
from pyvmm.memory import GuestMemory
from tests.unit.boot_images import CODE, Part, make_bzimage, make_elf, make_multiboot_elf, make_multiboot_flat, make_pvh

MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (make_bzimage(), "linux"),
        (make_multiboot_elf(), "multiboot"),
        (make_multiboot_flat(), "multiboot"),
        (make_pvh(), "pvh"),
        (make_elf([Part(0x100000)]), "elf"),
        (CODE, "flat"),
        (bytes(510) + b"\x55\xaa", "flat"),
        (b"MZ" + bytes(100), "flat"),
    ],
)
def test_detection(image: bytes, name: str) -> None:
    assert detect(Source(image)) == name
    assert name in FORMATS


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"\x1f\x8b\x08" + bytes(20), "gunzip"),
        (b"\xfd7zXZ\0" + bytes(20), "unxz"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "unzstd"),
        (b"\x5d\0\0\x80\0" + b"\xff" * 8, "unlzma"),
        (b"!<arch>\ndebian-binary", "ar archive"),
        (b"070701" + bytes(20), "initrd"),
        (b"QFI\xfb" + bytes(20), "qcow2"),
        (bytes(0x8001) + b"CD001", "ISO 9660"),
        (bytes(0x101) + b"ustar", "tar archive"),
        (bytes(0x200) + b"EFI PART", "GPT disk"),
        (b"#!/bin/sh\n", "script"),
        (b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0", "EFI or Windows"),
        (b"MZ" + bytes(54) + b"ARM\x64" + bytes(8), "AArch64"),
        (bytes(0x1C2) + b"\x83" + bytes(7) + b"\1" + bytes(51) + b"\x55\xaa" + bytes(MIB), "partitioned disk"),
        (bytes(0x438) + b"\x53\xef" + bytes(MIB), "ext2/3/4"),
    ],
)
def test_foreign_files_are_named(memory: GuestMemory, image: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load(image, memory)


def test_files_that_cannot_be_images(memory: GuestMemory, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    name = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(name))
        for path, words in (
            (empty, "empty"),
            (tmp_path, "is a directory"),
            (fifo, "is a FIFO"),
            (name, "cannot be opened"),
            (Path("/dev/null"), "is a character device"),
            (tmp_path / "missing", "no such file"),
            (empty / "x", "not a directory"),
            (tmp_path / ("x" * 300), "file name too long"),
        ):
            with pytest.raises(ImageError, match=words) as caught:
                load(path, memory)
            assert str(caught.value).startswith(f"{path}: ")
            assert caught.value.path == str(path)
    for odd in ("", "a\0b", "two\nlines", "\udcff"):
        with pytest.raises(ImageError) as caught:
            load(odd, memory)
        assert str(caught.value).isprintable()
    with pytest.raises(ImageError, match="empty"):
        load(b"", memory)


def test_unreadable_file(memory: GuestMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so the refusal is played by the call itself.
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "kernel"
    path.write_bytes(CODE)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match="cannot be opened: permission denied"):
        load(path, memory)


def test_errors_inside_an_image_carry_the_path(memory: GuestMemory, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(make_elf([Part(0x100000)])[:-1])
    with pytest.raises(ImageError, match="truncated") as caught:
        load(kernel, memory)
    assert caught.value.path == str(kernel)
    kernel.write_bytes(make_elf([Part(0x100000)]))
    initrd = tmp_path / "initrd"
    initrd.write_bytes(bytes(4 * MIB))
    with pytest.raises(ImageError, match="no room for the initrd") as caught:
        load(kernel, memory, BootOptions(initrd=initrd))
    assert caught.value.path == str(initrd)
    with pytest.raises(ImageError, match="no such file") as caught:
        load(kernel, memory, BootOptions(initrd=tmp_path / "missing"))
    assert caught.value.path == str(tmp_path / "missing")


def test_a_file_that_shrinks_while_it_is_read(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(bytes(8192))
    with Source(path) as source:
        os.truncate(path, 4096)
        with pytest.raises(ImageError, match="changed while being read"):
            source.copy_to(memory, 0x100000, 0, 8192)
        with pytest.raises(ImageError, match="changed while being read"):
            source.read(4096, 10)


def test_a_sparse_giant_is_refused_without_reading_it(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "giant"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(ImageError, match="flat real-mode"):
        load(path, memory)
    with pytest.raises(ImageError, match="no room for the initrd"):
        load(make_bzimage(), memory, BootOptions(initrd=path))


def test_no_descriptor_is_left_open(memory: GuestMemory, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(make_multiboot_elf())
    bad.write_bytes(make_multiboot_elf()[:-1])
    before = set(os.listdir("/proc/self/fd"))
    load(good, memory, BootOptions(initrd=good, modules=[(bad, "x")]))
    for path in (bad, tmp_path):
        with pytest.raises(ImageError):
            load(path, memory)
    with pytest.raises(ImageError):
        load(good, memory, BootOptions(modules=[(tmp_path, "")]))
    assert set(os.listdir("/proc/self/fd")) == before


def test_options_out_of_range(memory: GuestMemory) -> None:
    for options, words in (
        (BootOptions(format="coff"), "unknown image format"),
        (BootOptions(mode="v8086"), "unknown CPU mode"),
        (BootOptions(cpus=0), "at least 1"),
        (BootOptions(load_addr=-1), "load address"),
        (BootOptions(entry=1 << 64), "entry point"),
    ):
        with pytest.raises(UsageError, match=words):
            load(CODE, memory, options)


@pytest.mark.parametrize("image", [make_elf([Part(0x100000)]), make_multiboot_elf(), make_pvh(), make_bzimage()])
def test_command_line_limits(memory: GuestMemory, image: bytes) -> None:
    for text, words in (("x" * 5000, "5... bytes.*at most"), ("a\0b", "control character"), ("\udc80", "UTF-8")):
        with pytest.raises(UsageError, match=words) as caught:
            load(image, memory, BootOptions(cmdline=text))
        assert len(str(caught.value)) < 200


def test_command_line_encoding() -> None:
    assert encode_cmdline("größe=1", 9) == "größe=1".encode() + b"\0"
    with pytest.raises(UsageError, match="9 bytes"):
        encode_cmdline("größe=1", 8)


def test_memory_map_of_a_pc() -> None:
    assert memory_map(((0, 3 * GIB), (4 * GIB, GIB))) == [
        (0, 0x9FC00, RAM),
        (0x9FC00, 0x400, RESERVED),
        (0xF0000, 0x10000, RESERVED),
        (MIB, 3 * GIB - MIB, RAM),
        (0xFFFBC000, 0x4000, RESERVED),
        (4 * GIB, GIB, RAM),
    ]


@given(st.integers(16, 1 << 20), st.integers(0, 1 << 20))
def test_memory_map_is_sorted_disjoint_and_inside_ram(low_pages: int, high_pages: int) -> None:
    low = min(low_pages << 12, 3 * GIB)
    ranges = [(0, low)] + ([(4 * GIB, high_pages << 12)] if high_pages else [])
    entries = memory_map(ranges)
    for first, second in pairwise(entries):
        assert first.base + first.size <= second.base
    for entry in entries:
        assert entry.size > 0
        if entry.type == RAM:
            assert any(base <= entry.base and entry.base + entry.size <= base + size for base, size in ranges)
            assert entry.base + entry.size <= 0x9FC00 or entry.base >= MIB


def test_describe(memory: GuestMemory) -> None:
    text = load(make_multiboot_elf(flags=4), memory, BootOptions(cmdline="hello")).describe()
    for words in ("format multiboot", "protected mode at 0x100000", "hello", "GDT", "usable", "note: "):
        assert words in text


def test_mp_table(memory: GuestMemory) -> None:
    image = load(CODE, memory, BootOptions(cpus=3))
    at = next(segment.gpa for segment in image.segments if segment.name == "MP table")
    assert at % 16 == 0
    assert 0xF0000 <= at < 0x100000
    pointer = memory.read(at, 16)
    assert pointer[:4] == b"_MP_"
    assert sum(pointer) % 256 == 0
    table = int.from_bytes(pointer[4:8], "little")
    length, count = memory.read_u16(table + 4), memory.read_u16(table + 34)
    assert memory.read(table, 4) == b"PCMP"
    assert sum(memory.read(table, length)) % 256 == 0
    assert memory.read_u32(table + 36) == 0xFEE00000
    entries, offset = [], table + 44
    for _ in range(count):
        kind = memory.read_u8(offset)
        size = 20 if kind == 0 else 8
        entries.append(memory.read(offset, size))
        offset += size
    assert offset == table + length
    assert [(entry[1], entry[3]) for entry in entries if entry[0] == 0] == [(0, 3), (1, 1), (2, 1)]
    ioapics = [entry for entry in entries if entry[0] == 2]
    assert [(entry[1], entry[4:8]) for entry in ioapics] == [(3, struct.pack("<I", 0xFEC00000))]


def test_mp_table_gives_way(memory: GuestMemory) -> None:
    full = load(bytes(0x10000), memory, BootOptions(load_addr=0xF0000, cpus=2))
    assert any("MP table" in note for note in full.notes)
    many = load(CODE, memory, BootOptions(cpus=300))
    assert any("254 of 300" in note for note in many.notes)


def test_small_guests_work() -> None:
    memory = GuestMemory(64 << 10)
    try:
        assert load(CODE, memory).entry == 0x7C00
        image = load(make_elf([Part(0x4000)], entry=0x4000), memory, BootOptions(cmdline="x"))
        assert image.state.mode == "long"
    finally:
        memory.close()


def test_place_prefers_then_searches(memory: GuestMemory) -> None:
    space = LoadSpace(memory)
    space.claim("a", 0x1000, 0x1000)
    assert space.place("b", 0x1000, preferred=0x3000) == 0x3000
    assert space.place("c", 0x1000, preferred=0x3800, align=0x1000, low=0x1000) == 0x2000
    assert space.place("d", 0x10, preferred=None, low=0x1000) == 0x4000
    assert space.place_high("e", 0x800, low=0, high=0x4000) == 0
    with pytest.raises(ImageError, match="no room for the f"):
        space.place_high("f", 0x1000, low=0x1000, high=0x4000)
    assert [segment.name for segment in space.segments] == ["e", "a", "c", "b", "d"]


_claims = st.lists(st.tuples(st.integers(0, 0x3FF), st.integers(1, 0x40)), max_size=20)


@given(_claims, st.integers(1, 0x40), st.booleans())
def test_place_never_overlaps_and_finds_room_if_there_is_any(
    claims: list[tuple[int, int]], size: int, from_top: bool
) -> None:
    memory = GuestMemory(64 << 10)
    try:
        space = LoadSpace(memory)
        used = [False] * 0x400
        for start, length in claims:
            if start + length <= 0x400 and not any(used[start : start + length]):
                space.claim("claim", start, length)
                used[start : start + length] = [True] * length
            else:
                assert start + length > 0x400 or not space.free(start, length)
        fits = [at for at in range(0x400 - size + 1) if not any(used[at : at + size])]
        if not fits:
            with pytest.raises(ImageError):
                space.place("x", size, align=1, low=0, high=0x400)
        elif from_top:
            assert space.place_high("x", size, low=0, high=0x400, align=1) == fits[-1]
        else:
            assert space.place("x", size, align=1, low=0, high=0x400) == fits[0]
    finally:
        memory.close()
