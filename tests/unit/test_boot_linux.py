"""Linux bzImage: setup header, placement, zero page, initrd; offsets are checked against <asm/bootparam.h>."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyvmm.boot import BootOptions, load, zeropage
from pyvmm.boot.layout import ZERO_PAGE
from pyvmm.errors import ImageError, UsageError
from pyvmm.memory import GuestMemory
from tests.unit.boot_images import CODE, c_string, make_bzimage

MIB = 1 << 20


def initrd(size: int) -> bytes:
    """Make what starts like a compressed archive."""
    return b"\x1f\x8b".ljust(size, b"R")


def test_machine_state_and_zero_page(memory: GuestMemory) -> None:
    kernel = make_bzimage()
    image = load(kernel, memory, BootOptions(cmdline="console=ttyS0"))
    state = image.state
    assert (image.format, state.mode, state.rip, state.rsi) == ("linux", "long", 0x100200, ZERO_PAGE)
    assert (state.cs.selector, state.ds.selector, state.ss.selector, state.rflags) == (0x10, 0x18, 0x18, 2)
    assert memory.read(0x100000, 2048) == kernel[3 * 512 :]
    page = memory.read(ZERO_PAGE, 4096)
    assert page[0x1F1:0x210] == kernel[0x1F1:0x210], "the setup header is the kernel's"
    assert page[0x210] == 0xFF
    assert page[0x1EF] == 0, "the sentinel tells Linux that the page was clean"
    assert page[:0x1E0] == bytes(0x1E0)
    assert int.from_bytes(page[0x1E0:0x1E4], "little") == 3 * 1024
    assert c_string(memory, int.from_bytes(page[0x228:0x22C], "little")) == "console=ttyS0"
    table = [page[0x2D0 + 20 * n : 0x2E4 + 20 * n] for n in range(page[0x1E8])]
    entries = [tuple(int.from_bytes(e[a:b], "little") for a, b in ((0, 8), (8, 16), (16, 20))) for e in table]
    assert entries == [tuple(entry) for entry in image.e820]
    assert (0x100000, 3 * MIB, 1) in entries


def test_32_bit_kernel_takes_the_32_bit_entry(memory: GuestMemory) -> None:
    for kernel in (make_bzimage(xloadflags=0), make_bzimage(version=0x20A)):
        state = load(kernel, memory).state
        assert (state.mode, state.rip, state.cs.selector, state.ds.selector) == ("protected", 0x100000, 0x10, 0x18)
        assert (state.rsi, state.rbp, state.rdi, state.rbx) == (ZERO_PAGE, 0, 0, 0)


def test_zero_setup_sects_means_four(memory: GuestMemory) -> None:
    kernel = make_bzimage(b"\x11" * 1024, setup_sects=0)
    load(kernel, memory)
    assert memory.read(0x100000, 1024) == b"\x11" * 1024


def test_signature_behind_the_code_is_left_out(memory: GuestMemory) -> None:
    load(make_bzimage() + b"signature", memory)
    assert memory.read_u32(0x100000 + 2048) == 0


def test_pref_address_and_load_address(memory: GuestMemory) -> None:
    assert load(make_bzimage(pref_address=0x200000), memory).entry == 0x200200
    memory_image = load(make_bzimage(), memory, BootOptions(load_addr=0x240000))
    assert memory_image.entry == 0x240200
    assert memory.read_u32(ZERO_PAGE + 0x214) == 0x240000
    with pytest.raises(UsageError, match="multiple of 0x10000"):
        load(make_bzimage(), memory, BootOptions(load_addr=0x240010))
    with pytest.raises(UsageError, match="not relocatable"):
        load(make_bzimage(relocatable=0), memory, BootOptions(load_addr=0x240000))
    with pytest.raises(ImageError, match="no power of two"):
        load(make_bzimage(alignment=3), memory, BootOptions(load_addr=0x240000))


def test_init_size_must_fit_and_stays_free(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match=r"needs RAM from 0x100000 to 0x500000.*give it 5 MiB"):
        load(make_bzimage(init_size=4 * MIB), memory)
    image = load(make_bzimage(init_size=2 * MIB), memory, BootOptions(initrd=initrd(MIB)))
    assert {s.name: s.gpa for s in image.segments}["initrd"] == 3 * MIB
    with pytest.raises(ImageError, match="no room for the initrd"):
        load(make_bzimage(init_size=2 * MIB), memory, BootOptions(initrd=initrd(MIB + 1)))


def test_initrd_obeys_initrd_addr_max(memory: GuestMemory) -> None:
    load(make_bzimage(initrd_max=0x2FFFFF), memory, BootOptions(initrd=initrd(5000)))
    at, size = memory.read_u32(ZERO_PAGE + 0x218), memory.read_u32(ZERO_PAGE + 0x21C)
    assert (at, size) == (0x300000 - 8192, 5000)
    assert memory.read(at, size) == initrd(5000)
    with pytest.raises(ImageError, match="no room for the initrd"):
        load(make_bzimage(initrd_max=0x10FFFF), memory, BootOptions(initrd=initrd(5000)))


def test_initrd_above_4_gib_goes_into_the_extended_fields() -> None:
    memory = GuestMemory((3 << 30) + 4 * MIB)
    try:
        kernel = make_bzimage(initrd_max=0x10FFFF)
        load(kernel, memory, BootOptions(initrd=initrd(5000)))
        low, high = memory.read_u32(ZERO_PAGE + 0x218), memory.read_u32(ZERO_PAGE + 0x0C0)
        assert (high << 32) + low == (4 << 30) + 4 * MIB - 8192
        assert memory.read((high << 32) + low, 5000) == initrd(5000)
        with pytest.raises(ImageError, match="no room"):
            load(make_bzimage(initrd_max=0x10FFFF, xloadflags=1), memory, BootOptions(initrd=initrd(5000)))
    finally:
        memory.close()


def test_cmdline_limit_is_the_kernels(memory: GuestMemory) -> None:
    load(make_bzimage(cmdline_size=10), memory, BootOptions(cmdline="x" * 10))
    with pytest.raises(UsageError, match="11 bytes, this kernel takes at most 10"):
        load(make_bzimage(cmdline_size=10), memory, BootOptions(cmdline="x" * 11))
    with pytest.raises(UsageError, match="at most 255"):
        load(make_bzimage(version=0x205), memory, BootOptions(cmdline="x" * 256))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (make_bzimage()[:0x206], "truncated: its setup header"),
        (make_bzimage()[:0x300], "truncated bzImage"),
        (make_bzimage()[: 3 * 512], "truncated bzImage"),
        (make_bzimage()[:-16], "truncated bzImage"),
        (make_bzimage(syssize=0xFFFFFFFF), "truncated bzImage"),
        (make_bzimage(code=CODE * 8), "no protected-mode code"),
        (make_bzimage(version=0x201), r"boot protocol 2\.01 is too old"),
        (make_bzimage(loadflags=0), "zImage"),
        (make_bzimage(pref_address=1 << 63), "asks to be loaded at"),
        (make_bzimage(pref_address=0x1000), "asks to be loaded at"),
        (make_bzimage(pref_address=1 << 40), "needs RAM from"),
        (make_bzimage(init_size=0xFFFFFFFF), "needs RAM from"),
        (make_bzimage()[:0x201] + b"\x04" + make_bzimage()[0x202:], "setup header is shorter"),
    ],
)
def test_damage_is_named(memory: GuestMemory, image: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load(image, memory)


def test_options_that_do_not_suit(memory: GuestMemory) -> None:
    with pytest.raises(UsageError, match="own entry point"):
        load(make_bzimage(), memory, BootOptions(entry=0x100000))
    with pytest.raises(UsageError, match="32-bit Linux images start in protected mode"):
        load(make_bzimage(xloadflags=0), memory, BootOptions(mode="long"))
    with pytest.raises(ImageError, match="not a Linux bzImage"):
        load(b"\x90" * 1024, memory, BootOptions(format="linux"))


def test_zero_page_offsets_match_the_headers(tmp_path: Path) -> None:
    fields = {
        "EXT_RAMDISK_IMAGE": "ext_ramdisk_image",
        "EXT_RAMDISK_SIZE": "ext_ramdisk_size",
        "EXT_CMD_LINE_PTR": "ext_cmd_line_ptr",
        "ALT_MEM_K": "alt_mem_k",
        "E820_ENTRIES": "e820_entries",
        "SETUP_HEADER": "hdr",
        "SETUP_SECTS": "hdr.setup_sects",
        "SYSSIZE": "hdr.syssize",
        "BOOT_FLAG": "hdr.boot_flag",
        "JUMP": "hdr.jump",
        "HEADER": "hdr.header",
        "VERSION": "hdr.version",
        "TYPE_OF_LOADER": "hdr.type_of_loader",
        "LOADFLAGS": "hdr.loadflags",
        "CODE32_START": "hdr.code32_start",
        "RAMDISK_IMAGE": "hdr.ramdisk_image",
        "RAMDISK_SIZE": "hdr.ramdisk_size",
        "CMD_LINE_PTR": "hdr.cmd_line_ptr",
        "INITRD_ADDR_MAX": "hdr.initrd_addr_max",
        "KERNEL_ALIGNMENT": "hdr.kernel_alignment",
        "RELOCATABLE_KERNEL": "hdr.relocatable_kernel",
        "XLOADFLAGS": "hdr.xloadflags",
        "CMDLINE_SIZE": "hdr.cmdline_size",
        "PREF_ADDRESS": "hdr.pref_address",
        "INIT_SIZE": "hdr.init_size",
        "SETUP_HEADER_END": "edd_mbr_sig_buffer",
        "E820_TABLE": "e820_table",
    }
    lines = [f'printf("{name} %zu\\n", offsetof(struct boot_params, {field}));' for name, field in fields.items()]
    source = tmp_path / "offsets.c"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <asm/bootparam.h>\nint main(void) {\n"
        + "\n".join(lines)
        + '\nprintf("SIZE %zu %zu\\n", sizeof(struct boot_params), sizeof(struct boot_e820_entry));\n}\n'
    )
    program = tmp_path / "offsets"
    subprocess.run(["gcc", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    *rows, last = [line.split() for line in output.splitlines()]
    assert len(rows) == len(fields)
    for name, offset in rows:
        assert getattr(zeropage, name) == int(offset), name
    assert last == ["SIZE", "4096", "20"]
