"""PVH: note, start information, modules."""

from __future__ import annotations

import struct

import pytest

from pyvmm.boot import BootOptions, load
from pyvmm.errors import ImageError, UsageError
from pyvmm.memory import GuestMemory
from tests.unit.boot_images import CODE, PT_NOTE, Part, c_string, make_elf, make_note, make_pvh

MIB = 1 << 20


@pytest.mark.parametrize("bits", [32, 64])
def test_machine_state(memory: GuestMemory, bits: int) -> None:
    image = load(make_pvh(0x100004, bits), memory)
    state = image.state
    assert (image.format, state.mode, state.bits, state.rip) == ("pvh", "protected", 32, 0x100004)
    assert memory.read_u32(state.rbx) == 0x336EC578
    assert (state.cr4, state.rflags, state.tr.base, state.tr.limit) == (0, 2, 0, 0x67)


def test_start_information(memory: GuestMemory) -> None:
    options = BootOptions(cmdline="root=/dev/null", initrd=b"I" * 100, modules=[(b"MOD", "second")])
    image = load(make_pvh(), memory, options)
    fields = struct.unpack("<IIIIQQQQII", memory.read(image.state.rbx, 56))
    magic, version, flags, count, mods, cmdline, rsdp, memmap, entries, reserved = fields
    assert (magic, version, flags, count, rsdp, reserved) == (0x336EC578, 1, 0, 2, 0, 0)
    assert c_string(memory, cmdline) == "root=/dev/null"
    found = []
    for at in (mods, mods + 32):
        gpa, size, text, _ = struct.unpack("<4Q", memory.read(at, 32))
        found.append((memory.read(gpa, size), c_string(memory, text) if text else None))
    assert found == [(b"I" * 100, None), (b"MOD", "second")]
    table = [struct.unpack("<QQII", memory.read(memmap + 24 * number, 24)) for number in range(entries)]
    assert table == [(*entry, 0) for entry in image.e820]


def test_notes_of_other_owners_and_kinds_do_not_count(memory: GuestMemory) -> None:
    entry = (0x100000).to_bytes(4, "little")
    for notes in (
        make_note(b"GNU", 18, entry),
        make_note(b"Xen", 17, entry),
        make_note(b"Xen", 18, entry[:3]),
        b"short",
    ):
        assert load(make_pvh(notes=notes), memory).format == "elf"
    with pytest.raises(ImageError, match="no PVH note"):
        load(make_pvh(notes=b""), memory, BootOptions(format="pvh"))


def test_note_with_a_huge_size_is_ignored(memory: GuestMemory) -> None:
    notes = struct.pack("<III", 4, 0xFFFFFFF0, 18) + b"Xen\0" + bytes(8)
    assert load(make_pvh(notes=notes), memory).format == "elf"
    lost = make_elf([Part(0, b"", kind=PT_NOTE, offset=1 << 60, filesz=1 << 60), Part(0x100000, CODE)])
    assert load(lost, memory).format == "elf"


def test_damage_is_named(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match="PVH entry point 0x300000 lies in no segment"):
        load(make_pvh(0x300000), memory)
    with pytest.raises(UsageError, match="PVH images start in protected mode"):
        load(make_pvh(), memory, BootOptions(mode="long"))
