"""Plain ELF kernels, and what damaged or foreign ELF files are told."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import pytest

from pyvmm.boot import BootOptions, load
from pyvmm.boot.layout import PAGE_TABLES, ZERO_PAGE
from pyvmm.errors import ImageError, UsageError
from pyvmm.memory import GuestMemory
from tests.unit.boot_images import CODE, PT_INTERP, Part, c_string, make_elf

MIB = 1 << 20


def test_elf64_starts_in_long_mode_with_a_zero_page(memory: GuestMemory) -> None:
    image = load(make_elf([Part(0x100000, CODE, memsz=0x3000)]), memory, BootOptions(cmdline="quiet x=1"))
    state = image.state
    assert (image.format, state.mode, state.rip, image.entry) == ("elf", "long", 0x100000, 0x100000)
    assert memory.read(0x100000, 8) == CODE + bytes(4)
    assert state.rflags == 2
    assert state.rsi == ZERO_PAGE
    assert c_string(memory, memory.read_u32(ZERO_PAGE + 0x228)) == "quiet x=1"
    assert memory.read_u8(ZERO_PAGE + 0x1E8) == len(image.e820)
    assert state.rsp % 16 == 8
    assert memory.contains(state.rsp, 8)


def test_page_tables_and_gdt_match_the_state(memory: GuestMemory) -> None:
    state = load(make_elf([Part(0x100000)]), memory).state
    assert state.cr3 == PAGE_TABLES
    for gva in (0, 0x100000, 0xFEE00000, 0xFFFFFFFF):
        table = state.cr3
        for shift in (39, 30):
            entry = memory.read_u64(table + 8 * (gva >> shift & 511))
            assert entry & 3 == 3
            table = entry & ~0xFFF
        leaf = memory.read_u64(table + 8 * (gva >> 21 & 511))
        assert leaf & 0x83 == 0x83
        assert (leaf & ~0x1FFFFF) + (gva & 0x1FFFFF) == gva
    code = memory.read_u64(state.gdt.base + state.cs.selector)
    data = memory.read_u64(state.gdt.base + state.ss.selector)
    assert code >> 53 & 1 == 1, "the code descriptor has L set"
    assert code >> 40 & 0xFF == 0x9B
    assert data >> 40 & 0xFF == 0x93
    assert state.gdt.limit >= max(state.cs.selector, state.ss.selector) + 7


def test_elf32_starts_in_protected_mode(memory: GuestMemory) -> None:
    state = load(make_elf([Part(0x100000)], bits=32), memory).state
    assert (state.mode, state.bits, state.rip, state.rsi) == ("protected", 32, 0x100000, ZERO_PAGE)
    assert memory.read_u64(state.gdt.base + state.cs.selector) >> 54 & 1 == 1, "the code descriptor has D set"


def test_mode_can_be_chosen(memory: GuestMemory) -> None:
    assert load(make_elf([Part(0x100000)]), memory, BootOptions(mode="protected")).state.mode == "protected"
    with pytest.raises(UsageError, match="long or protected"):
        load(make_elf([Part(0x100000)]), memory, BootOptions(mode="real"))


def test_entry_is_translated_where_it_is_virtual(memory: GuestMemory) -> None:
    high = 0xFFFFFFFF80000000
    virtual = make_elf([Part(0x100000, CODE * 8, vaddr=high)], entry=high + 8)
    assert load(virtual, memory).state.rip == 0x100008
    physical = make_elf([Part(0x100000, CODE * 8, vaddr=high)], entry=0x100004)
    assert load(physical, memory).state.rip == 0x100004


def test_entry_can_be_chosen_inside_the_image_only(memory: GuestMemory) -> None:
    image = make_elf([Part(0x100000, CODE * 8)])
    assert load(image, memory, BootOptions(entry=0x100004)).state.rip == 0x100004
    with pytest.raises(UsageError, match="lies in no segment"):
        load(image, memory, BootOptions(entry=0x200000))


def test_loader_structures_move_out_of_the_kernels_way(memory: GuestMemory) -> None:
    kernel = make_elf([Part(0x1000, CODE, memsz=0x20000)], entry=0x1000)
    image = load(kernel, memory, BootOptions(cmdline="moved"))
    ends = [(segment.gpa, segment.gpa + segment.size) for segment in image.segments]
    assert all(first[1] <= second[0] for first, second in pairwise(ends))
    assert image.state.cr3 >= 0x21000
    assert c_string(memory, memory.read_u32(image.state.rsi + 0x228)) == "moved"
    assert memory.read(0x1000, 0x20000) == CODE + bytes(0x20000 - 4), "nothing was put into the kernel's BSS"


def test_full_low_memory_is_an_error(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match="no room for the"):
        load(make_elf([Part(0x0, CODE, memsz=0xA0000)], entry=0), memory)


def test_only_file_bytes_are_written(memory: GuestMemory) -> None:
    memory.write(0x100000, b"\xee" * 0x2000)
    load(make_elf([Part(0x100000, CODE, memsz=0x2000)]), memory)
    assert memory.read(0x100000, 0x2000) == CODE + b"\xee" * 0x1FFC


def test_initrd_goes_high_and_into_the_zero_page(memory: GuestMemory) -> None:
    load(make_elf([Part(0x100000)]), memory, BootOptions(initrd=b"R" * 5000))
    at, size = memory.read_u32(ZERO_PAGE + 0x218), memory.read_u32(ZERO_PAGE + 0x21C)
    assert (at, size) == (4 * MIB - 8192, 5000)
    assert memory.read(at, size) == b"R" * 5000


def test_file_is_loaded_like_bytes_and_gives_symbols(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "kernel.elf"
    path.write_bytes(make_elf([Part(0x100000, CODE * 3000)]))
    image = load(path, memory)
    assert memory.read(0x100000, 12000) == CODE * 3000
    assert image.symbols_path == str(path)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (make_elf([Part(0x100000)])[:10], "truncated ELF"),
        (make_elf([Part(0x100000)])[:40], "truncated: its ELF header"),
        (make_elf([Part(0x100000)])[:80], "truncated: its ELF program header table"),
        (make_elf([Part(0x100000)])[:-1], "truncated: its ELF segment 0"),
        (make_elf([Part(0x100000)], machine=183), "AArch64"),
        (make_elf([Part(0x100000)], machine=40, bits=32), "32-bit ARM"),
        (make_elf([Part(0x100000)], machine=0xBEEF), "ELF machine 48879"),
        (make_elf([Part(0x100000)], machine=62, bits=32), "x32"),
        (make_elf([Part(0x100000)], encoding=2), "big-endian"),
        (make_elf([Part(0x100000)], kind=1), "link it first"),
        (make_elf([Part(0x100000)], kind=3), "no-pie"),
        (make_elf([Part(0x100000)], kind=4), "core dump"),
        (make_elf([Part(0x100000)], kind=77), "of type 77"),
        (make_elf([Part(0x100000)], phentsize=55), "program headers of 55 bytes"),
        (make_elf([Part(0x100000)], phnum=0xFFFF), "65535 program headers"),
        (make_elf([Part(0x100000)], phnum=4000), "truncated: its ELF program header table"),
        (make_elf([]), "no program headers"),
        (make_elf([Part(0x100000, b"", memsz=0)]), "no segment to load"),
        (make_elf([Part(0x100000), Part(0, b"/lib/ld.so\0", kind=PT_INTERP)]), "dynamically linked"),
        (make_elf([Part(0x100000, memsz=2)]), "0x4 bytes for 0x2"),
        (make_elf([Part(0x100000, memsz=1 << 60)]), "outside the guest's RAM"),
        (make_elf([Part(0x100000, filesz=1 << 60, memsz=1 << 60)]), "outside the guest's RAM"),
        (make_elf([Part((1 << 64) - 2)]), "outside the guest's RAM"),
        (make_elf([Part(4 * MIB - 2)]), "outside the guest's RAM"),
        (make_elf([Part(0x100000, offset=1 << 63)]), "truncated: its ELF segment 0"),
        (make_elf([Part(0x100000, memsz=0x1000), Part(0x100800)]), "overlaps ELF segment 0"),
        (make_elf([Part(0x100000), Part(0x100000)]), "overlaps"),
        (make_elf([Part(0x100000)], entry=0x300000), "entry point 0x300000 lies in no segment"),
    ],
)
def test_damage_is_named_in_one_line(memory: GuestMemory, image: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        load(image, memory)
    assert "\n" not in str(caught.value)


def test_many_segments(memory: GuestMemory) -> None:
    parts = [Part(0x100000 + 0x100 * number, struct.pack("<I", number)) for number in range(2000)]
    image = load(make_elf(parts), memory)
    assert memory.read_u32(0x100000 + 0x100 * 1999) == 1999
    assert len([segment for segment in image.segments if segment.name.startswith("ELF")]) == 2000


def test_modules_are_refused(memory: GuestMemory) -> None:
    with pytest.raises(UsageError, match="takes no modules"):
        load(make_elf([Part(0x100000)]), memory, BootOptions(modules=[(b"x", "")]))
    with pytest.raises(UsageError, match="takes no load address"):
        load(make_elf([Part(0x100000)]), memory, BootOptions(load_addr=0x200000))
