"""ACPI tables: the AML encoder against an independent reader, the tables against the specification's offsets."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyvmm.boot import BootOptions, acpi, load
from pyvmm.boot import acpi_aml as aml
from pyvmm.boot.acpi import MmioDevice, Platform
from pyvmm.memory import GuestMemory
from tests.unit.aml_reader import Reader, eisa, read_aml, read_resources
from tests.unit.boot_images import Part, make_bzimage, make_elf, make_multiboot_elf, make_pvh

PLATFORM = Platform(
    cpus=2,
    sci=9,
    pm_event=0x600,
    pm_control=0x604,
    pm_timer=0x608,
    soft_off=5,
    reset=(0xCF9, 6),
    serial=((0x3F8, 4), (0x2F8, 3)),
    rtc=0x70,
    century=0x32,
    keyboard_controller=True,
    pvpanic=0x505,
    virtio_mmio=(MmioDevice(0xD0000000, 0x1000, 5), MmioDevice(0x8_0000_0000, 0x200, 16)),
)
BARE = Platform(
    cpus=1, sci=9, pm_event=0x600, pm_control=0x604, pm_timer=0x608, soft_off=0, reset=(0x64, 0xFE), century=0
)

segments = st.from_regex(r"[A-Z_][A-Z0-9_]{0,2}[A-Z0-9]|[A-Z]", fullmatch=True)


def with_cpus(cpus: int) -> Platform:
    return Platform(cpus, 9, 0x600, 0x604, 0x608, 5, (0xCF9, 6))


# AML


@given(st.one_of(st.integers(0, 70), st.integers(4080, 4110), st.integers((1 << 20) - 20, (1 << 20) + 5)))
def test_package_lengths_count_themselves(size: int) -> None:
    encoded = aml.package_length(size)
    reader = Reader(encoded + bytes(4))
    assert reader.package_end() == len(encoded) + size
    assert reader.at == len(encoded)


def test_package_lengths_at_the_limit() -> None:
    sizes = [len(aml.package_length(size)) for size in (62, 63, 4093, 4094, (1 << 20) - 4, (1 << 20) - 3)]
    assert sizes == [1, 2, 2, 3, 3, 4]
    assert Reader(aml.package_length((1 << 28) - 5)).package_end() == (1 << 28) - 1
    with pytest.raises(ValueError, match="too long"):
        aml.package_length((1 << 28) - 4)


@given(st.one_of(st.integers(0, 300), st.integers(0, (1 << 64) - 1)))
def test_integers(value: int) -> None:
    encoded = aml.integer(value)
    reader = Reader(encoded)
    assert reader.value() == value and reader.at == len(encoded)
    assert len(encoded) == (1 if value < 2 else 1 + next(n for n in (1, 2, 4, 8) if value < 1 << 8 * n))


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_numbers_that_are_no_integers(value: int) -> None:
    with pytest.raises(ValueError, match="no AML integer"):
        aml.integer(value)


@given(st.sampled_from(["", "\\", "^", "^^^"]), st.lists(segments, max_size=255))
def test_names(prefix: str, parts: list[str]) -> None:
    path = prefix + ".".join(parts)
    reader = Reader(aml.name_string(path))
    wanted = prefix + ".".join(part.rstrip("_") or "_" for part in parts)
    assert reader.name() == wanted and reader.at == len(reader.data)


@pytest.mark.parametrize("path", ["com1", "1COM", "COM10", "A..B", ".A", "A.", "\\^A", "A B", "Ä", ".".join("A" * 256)])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(ValueError, match="no AML path"):
        aml.name_string(path)


@given(st.text(st.characters(min_codepoint=1, max_codepoint=127)))
def test_strings(text: str) -> None:
    assert Reader(aml.string(text)).value() == text


def test_texts_that_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="NUL"):
        aml.string("a\0b")
    with pytest.raises(ValueError, match="ascii"):
        aml.string("é")
    for bad in ("PNP050", "pnp0501", "PNP050G", "PNP05011"):
        with pytest.raises(ValueError, match="EISA"):
            aml.eisa_id(bad)


@given(st.from_regex(r"[A-Z]{3}[0-9A-F]{4}", fullmatch=True))
def test_eisa_identifiers(text: str) -> None:
    assert eisa(Reader(aml.eisa_id(text)).value()) == text


def test_the_eisa_identifier_that_the_specification_gives() -> None:
    assert aml.eisa_id("PNP0501") == bytes.fromhex("0c41d00501")


values = st.recursive(
    st.one_of(st.integers(0, (1 << 64) - 1), st.binary(max_size=100), st.text("abc", max_size=80)),
    lambda inner: st.lists(inner, max_size=10),
    max_leaves=20,
)


def encode(value: object) -> bytes:
    if isinstance(value, int):
        return aml.integer(value)
    if isinstance(value, bytes):
        return aml.buffer(value)
    if isinstance(value, str):
        return aml.string(value)
    assert isinstance(value, list)
    return aml.package(*map(encode, value))


@given(values)
@example(list(range(255)))
@example([bytes(5000), [bytes(70_000), []]])
@example([b"x" * (1 << 20)])
def test_nested_objects(value: object) -> None:
    root = read_aml(aml.scope("\\_SB", aml.device("DEV", aml.name("OBJ", encode(value)))))
    assert root.children[0].children[0].names == {"OBJ": value}


@given(st.integers(0, 0xFFFF), st.integers(1, 255), st.integers(0, 15), st.integers(0, (1 << 32) - 1))
def test_small_resources(port: int, size: int, line: int, gsi: int) -> None:
    template = Reader(aml.resources(aml.io(port, size), aml.irq(line), aml.interrupt(gsi))).value()
    assert read_resources(template) == [("io", (port, size)), ("irq", (line,)), ("interrupt", (gsi,))]


@given(st.one_of(st.integers(0, 1 << 33), st.integers((1 << 32) - 0x3000, 1 << 32)), st.integers(1, 0x2000))
def test_memory_resources(address: int, size: int) -> None:
    template = Reader(aml.resources(aml.memory(address, size))).value()
    assert read_resources(template) == [("memory", (address, size))]


# Tables


def tables(memory: bytes, rsdp: int, base: int) -> dict[str, bytes]:
    """Follow the pointers from the RSDP and return the tables by signature; each must be sound."""

    def at(gpa: int, size: int) -> bytes:
        return memory[gpa - base : gpa - base + size]

    def table(gpa: int) -> bytes:
        found = at(gpa, int.from_bytes(at(gpa + 4, 4), "little"))
        assert len(found) >= 36 and sum(found) % 256 == 0, found[:4]
        assert found[10:24] == b"PYVMM PYVMM   "
        return found

    assert rsdp % 16 == 0
    pointer = at(rsdp, 36)
    assert pointer[:8] == b"RSD PTR " and pointer[15] == 2 and pointer[20:24] == b"\x24\0\0\0"
    assert sum(pointer[:20]) % 256 == sum(pointer) % 256 == 0
    assert pointer[16:20] == bytes(4), "no RSDT"
    xsdt = table(int.from_bytes(pointer[24:32], "little"))
    assert xsdt[:4] == b"XSDT" and xsdt[8] == 1
    found = {"XSDT": xsdt}
    for (gpa,) in struct.iter_unpack("<Q", xsdt[36:]):
        found[at(gpa, 4).decode()] = table(gpa)
    fadt = found["FACP"]
    facs, dsdt = struct.unpack_from("<II", fadt, 36)
    assert struct.unpack_from("<QQ", fadt, 132) == (0, dsdt), "only one of the FACS addresses may be given"
    assert facs % 64 == 0
    found["FACS"], found["DSDT"] = at(facs, 64), table(dsdt)
    return found


@pytest.mark.parametrize("platform", [PLATFORM, BARE, with_cpus(254), with_cpus(300)])
def test_all_tables_are_found_and_sound(platform: Platform) -> None:
    base = 0xF0000
    found = tables(acpi.build(platform, base), base, base)
    assert sorted(found) == ["APIC", "DSDT", "FACP", "FACS", "XSDT"]
    assert found["FACS"][:8] == b"FACS\x40\0\0\0" and found["FACS"][32] == 2
    assert found["DSDT"] == acpi.dsdt(platform) and found["APIC"] == acpi.madt(platform)


def test_fadt() -> None:
    fadt = acpi.fadt(PLATFORM, 0xF0040, 0xF0080)
    assert (len(fadt), fadt[8], fadt[131]) == (276, 6, 3)

    def field(offset: int, size: int) -> int:
        return int.from_bytes(fadt[offset : offset + size], "little")

    assert field(46, 2) == 9, "SCI"
    assert field(48, 8) == 0, "no SMI command port, so nothing to write to it"
    assert [field(at, 4) for at in range(56, 88, 4)] == [0x600, 0, 0x604, 0, 0, 0x608, 0, 0]
    assert list(fadt[88:94]) == [4, 2, 0, 4, 0, 0]
    assert field(96, 2) > 100 and field(98, 2) > 1000, "no C2, no C3"
    assert fadt[108] == 0x32
    assert field(109, 2) == 0b111
    flags = field(112, 4)
    assert flags & 1 << 10, "there is a reset register"
    assert not flags & (1 << 4 | 1 << 8 | 1 << 20), "fixed power button, 24-bit timer, not hardware-reduced"
    assert flags & 1 << 5, "no sleep button"
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 1, 0xCF9, 6)
    blocks = {at: struct.unpack_from("<BBBBQ", fadt, at) for at in range(148, 268, 12)}
    assert {at: block for at, block in blocks.items() if any(block)} == {
        148: (1, 32, 0, 2, 0x600),
        172: (1, 16, 0, 2, 0x604),
        208: (1, 32, 0, 3, 0x608),
    }
    assert acpi.fadt(BARE, 0, 0)[109] == 0b101, "no 8042"


def test_madt() -> None:
    madt = acpi.madt(with_cpus(3))
    assert struct.unpack_from("<II", madt, 36) == (0xFEE00000, 1)
    assert entries(madt) == [
        bytes([0, 8, 0, 0, 1, 0, 0, 0]),
        bytes([0, 8, 1, 1, 1, 0, 0, 0]),
        bytes([0, 8, 2, 2, 1, 0, 0, 0]),
        bytes([1, 12, 0, 0]) + struct.pack("<II", 0xFEC00000, 0),
        bytes([2, 10, 0, 9, 9, 0, 0, 0, 0b1101, 0]),
        bytes([4, 6, 0xFF, 0, 0, 1]),
    ]


def entries(madt: bytes) -> list[bytes]:
    found, at = [], 44
    while at < len(madt):
        found.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert at == len(madt)
    return found


def test_large_apic_ids_need_entries_of_their_own() -> None:
    found = entries(acpi.madt(with_cpus(257)))
    assert [entry[3] for entry in found if entry[0] == 0] == list(range(255))
    x2apic = [struct.unpack("<BBHIII", entry) for entry in found if entry[0] == 9]
    assert x2apic == [(9, 16, 0, 255, 1, 255), (9, 16, 0, 256, 1, 256)]
    assert found[-1] == struct.pack("<BBHIBBBB", 10, 12, 0, 0xFFFFFFFF, 1, 0, 0, 0)
    assert all(entry[0] not in (9, 10) for entry in entries(acpi.madt(with_cpus(255))))


def test_dsdt() -> None:
    table = acpi.dsdt(PLATFORM)
    assert table[8] == 2, "64-bit integers"
    root = read_aml(table[36:])
    assert root.names == {"_S5": [5, 5, 0, 0]}
    (bus,) = root.children
    assert (bus.kind, bus.path, bus.names) == ("scope", "\\_SB", {})
    devices = {}
    for node in bus.children:
        assert node.kind == "device" and not node.children
        hid = node.names["_HID"] if isinstance(node.names["_HID"], str) else eisa(node.names["_HID"])
        resources = read_resources(node.names["_CRS"]) if "_CRS" in node.names else []
        devices[node.path] = (hid, node.names.get("_UID"), resources)
    assert devices == {
        "C000": ("ACPI0007", 0, []),
        "C001": ("ACPI0007", 1, []),
        "COM1": ("PNP0501", 1, [("io", (0x3F8, 8)), ("irq", (4,))]),
        "COM2": ("PNP0501", 2, [("io", (0x2F8, 8)), ("irq", (3,))]),
        "RTC": ("PNP0B00", None, [("io", (0x70, 2))]),
        "PEVT": ("QEMU0001", None, [("io", (0x505, 1))]),
        "VR00": ("LNRO0005", 0, [("memory", (0xD0000000, 0x1000)), ("interrupt", (5,))]),
        "VR01": ("LNRO0005", 1, [("memory", (0x800000000, 0x200)), ("interrupt", (16,))]),
    }


def test_what_is_not_there_is_not_named() -> None:
    (bus,) = read_aml(acpi.dsdt(BARE)[36:]).children
    assert [node.path for node in bus.children] == ["C000"]


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 16), st.integers(0, 23)), max_size=64))
def test_any_list_of_virtio_devices(devices: list[tuple[int, int, int]]) -> None:
    platform = Platform(1, 9, 0x600, 0x604, 0x608, 5, (0xCF9, 6), virtio_mmio=tuple(MmioDevice(*d) for d in devices))
    table = acpi.dsdt(platform)
    assert sum(table) % 256 == 0
    (bus,) = read_aml(table[36:]).children
    found = [read_resources(node.names["_CRS"]) for node in bus.children if node.names["_HID"] == "LNRO0005"]
    assert found == [[("memory", (address, size)), ("interrupt", (gsi,))] for address, size, gsi in devices]
    assert len({node.path for node in bus.children}) == len(bus.children)


# Placement and handing over


MAKERS: list[tuple[Callable[[], bytes], int | None]] = [
    (make_bzimage, 0x70),
    (make_pvh, 32),
    (lambda: make_elf([Part(0x100000)]), 0x70),
    (make_multiboot_elf, None),
    (lambda: b"\xfa\xf4", None),
]


@pytest.mark.parametrize(("make", "field"), MAKERS)
def test_every_format_gets_tables_where_it_looks(
    memory: GuestMemory, make: Callable[[], bytes], field: int | None
) -> None:
    image = load(make(), memory, BootOptions(acpi=PLATFORM, cpus=2))
    where = {segment.name: segment for segment in image.segments}
    rsdp = where["ACPI tables"].gpa
    assert rsdp >= 0xE0000 and rsdp + where["ACPI tables"].size <= 0x100000
    tables(memory.read(0xF0000, 0x10000), rsdp, 0xF0000)
    assert "MP table" in where
    if field is not None:
        told = (image.state.rbx if image.format == "pvh" else image.state.rsi) + field
        assert memory.read_u64(told) == rsdp
        assert image.rsdp_field == told


def test_no_tables_unless_asked_for(memory: GuestMemory) -> None:
    image = load(make_bzimage(), memory)
    assert "ACPI tables" not in {segment.name for segment in image.segments}
    assert memory.read_u64(image.state.rsi + 0x70) == 0
    assert b"RSD PTR " not in memory.read(0xE0000, 0x20000)


def test_the_reserved_range_covers_the_tables_of_the_largest_machine(memory: GuestMemory) -> None:
    virtio = tuple(MmioDevice(0xD0000000 + 0x1000 * number, 0x1000, 5) for number in range(64))
    platform = Platform(254, 9, 0x600, 0x604, 0x608, 5, (0xCF9, 6), virtio_mmio=virtio)
    image = load(make_bzimage(), memory, BootOptions(acpi=platform, cpus=254))
    assert image.notes == []
    (segment,) = (segment for segment in image.segments if segment.name == "ACPI tables")
    end = segment.gpa + segment.size
    assert any(e.type == 2 and e.base <= segment.gpa and end <= e.base + e.size for e in image.e820)


def test_a_kernel_that_fills_the_bios_area_is_told_so(memory: GuestMemory) -> None:
    kernel = make_elf([Part(0xF0000, memsz=0x10000), Part(0x100000)])
    image = load(kernel, memory, BootOptions(acpi=PLATFORM))
    assert any("ACPI" in note for note in image.notes)
    assert memory.read_u64(image.state.rsi + 0x70) == 0
    small = GuestMemory(0x80000)
    try:
        assert any("ACPI" in note for note in load(b"\xfa\xf4", small, BootOptions(acpi=PLATFORM)).notes)
    finally:
        small.close()
