"""Guest memory: bounds, layout around the hole, views, sizes."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import GuestMemoryError, HostError, UsageError
from pyvmm.memory import HOLE_END, HOLE_START, GuestMemory, Region, format_size, parse_size

SIZE = 1 << 20


@pytest.fixture(scope="module")
def memory() -> GuestMemory:
    return GuestMemory(SIZE)


@given(
    gpa=st.integers(-16, SIZE + 16) | st.integers(-(1 << 65), 1 << 65),
    size=st.integers(0, 64),
    value=st.integers(0, 255),
)
def test_reads_and_writes_stay_inside(memory: GuestMemory, gpa: int, size: int, value: int) -> None:
    data = bytes([value]) * size
    if gpa >= 0 and gpa + size <= SIZE:
        memory.write(gpa, data)
        assert memory.read(gpa, size) == data
        assert bytes(memory.view(gpa, size)) == data
        assert memory.contains(gpa, size)
    else:
        for access in (lambda: memory.read(gpa, size), lambda: memory.write(gpa, data), lambda: memory.view(gpa, size)):
            with pytest.raises(GuestMemoryError) as caught:
                access()
            assert (caught.value.gpa, caught.value.size) == (gpa, size)
        assert not memory.contains(gpa, size)


@given(gpa=st.integers(0, SIZE - 8), value=st.integers(0, (1 << 64) - 1))
def test_numbers_are_little_endian_and_cut_to_size(memory: GuestMemory, gpa: int, value: int) -> None:
    for bits in (8, 16, 32, 64):
        getattr(memory, f"write_u{bits}")(gpa, value)
        expected = value & ((1 << bits) - 1)
        assert getattr(memory, f"read_u{bits}")(gpa) == expected
        assert memory.read(gpa, bits // 8) == expected.to_bytes(bits // 8, "little")


def test_a_number_across_the_end_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(GuestMemoryError):
        memory.read_u64(SIZE - 7)
    with pytest.raises(GuestMemoryError):
        memory.write_u16(SIZE - 1, 0)


def test_arrays_share_the_memory(memory: GuestMemory) -> None:
    array = memory.array(0x2000, 4, "<u4")
    array[:] = [1, 2, 3, 4]
    assert memory.read_u32(0x2004) == 2
    memory.write_u32(0x2008, 9)
    assert array.tolist() == [1, 2, 9, 4]
    with pytest.raises(GuestMemoryError):
        memory.array(SIZE - 8, 3, "<u4")


def test_ram_leaves_the_hole_out() -> None:
    memory = GuestMemory((3 << 30) + (64 << 20))
    try:
        assert memory.ranges == ((0, HOLE_START), (HOLE_END, 64 << 20))
        memory.write_u64(HOLE_END, 7)
        assert memory.read_u64(HOLE_END) == 7
        for gpa, size in ((HOLE_START, 1), (HOLE_START - 4, 8), (HOLE_END - 4, 8), (HOLE_END + (64 << 20), 1)):
            with pytest.raises(GuestMemoryError):
                memory.read(gpa, size)
    finally:
        memory.close()


@pytest.mark.parametrize("size", [0, -4096, 4096, 65537, 1 << 40, 1 << 62, 1 << 70])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(UsageError):
        GuestMemory(size)


def test_regions_are_whole_pages() -> None:
    for gpa, size in ((0, 100), (1, 4096), (0, 0), (-4096, 4096)):
        with pytest.raises(UsageError):
            Region(gpa, size)
    with pytest.raises(UsageError):
        Region(0, 4096, hugepages="1G")
    with pytest.raises(UsageError):
        Region(0, 4096, hugepages="2M")


def test_huge_pages_that_are_not_there_say_how_to_get_them() -> None:
    with open("/proc/sys/vm/nr_hugepages", encoding="ascii") as file:
        pages = int(file.read())
    with pytest.raises(HostError, match="nr_hugepages"):
        Region(0, (pages + 1) << 21, hugepages="2M")


def test_transparent_huge_pages_are_asked_for_or_refused() -> None:
    with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as file:
        off = "[never]" in (policy := file.read()) or "[deny]" in policy
    if off:  # asking would change nothing, and a measurement would not know
        with pytest.raises(HostError, match="transparent_hugepage/enabled"):
            Region(0, 4 << 20, hugepages="thp")
        return
    region = Region(0, 4 << 20, hugepages="thp")
    try:
        with open("/proc/self/smaps", encoding="ascii") as file:
            entries = file.read().split(f"{region.hva:x}-")[1]
        flags = next(line for line in entries.splitlines() if line.startswith("VmFlags"))
        assert " hg" in flags
    finally:
        region.close()


def test_hva_points_at_the_bytes() -> None:
    memory = GuestMemory(SIZE)
    memory.write(0x3000, b"through /proc/self/mem")
    fd = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        assert os.pread(fd, 22, memory.hva(0x3000)) == b"through /proc/self/mem"
    finally:
        os.close(fd)
        memory.close()


def test_hpa_needs_a_touched_page() -> None:
    memory = GuestMemory(SIZE)
    try:
        assert memory.hpa(0x5000) is None
        memory.write_u8(0x5123, 1)
        found = memory.hpa(0x5123)
        if os.geteuid() == 0:  # frame numbers are for CAP_SYS_ADMIN only
            assert found is not None and found % 4096 == 0x123
        else:
            assert found is None or found % 4096 == 0x123
    finally:
        memory.close()


def test_clear_gives_zeros() -> None:
    memory = GuestMemory(SIZE)
    memory.write(0x1000, b"x" * 100)
    memory.clear()
    assert memory.read(0x1000, 100) == bytes(100)
    memory.close()


def test_unmapped_pages_keep_their_contents() -> None:
    memory = GuestMemory(SIZE)
    memory.write(0x4000, b"still here")
    before = _resident()
    memory.write(0x10000, b"x" * 0x80000)
    assert _resident() >= before + 0x80000
    memory.unmap(0x10000, 0x80000)
    assert _resident() <= before + 0x10000
    memory.unmap(0x4000)
    assert memory.read(0x4000, 10) == b"still here"
    assert memory.read(0x10000, 0x80000) == b"x" * 0x80000
    with pytest.raises(GuestMemoryError):
        memory.unmap(SIZE)
    memory.close()


def _resident() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssShmem"))


def test_an_array_outlives_the_memory() -> None:
    memory = GuestMemory(SIZE)
    array = memory.array(0, 10)
    array[:] = np.arange(10)
    memory.close()
    memory.close()
    assert array.tolist() == list(range(10))
    with pytest.raises(GuestMemoryError):
        memory.read(0, 1)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("128M", 128 << 20),
        ("128m", 128 << 20),
        ("1G", 1 << 30),
        ("1GiB", 1 << 30),
        ("64K", 64 << 10),
        ("4096B", 4096),
        ("16", 16 << 20),
        (" 2T ", 2 << 40),
        (12345, 12345),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@given(st.text(max_size=12))
def test_sizes_parse_or_are_refused(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except UsageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (4096, "4 KiB"), (1 << 20, "1 MiB"), (1536 << 10, "1.5 MiB"), (1 << 30, "1 GiB"), (100, "100 B")],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert format_size(size) == text
