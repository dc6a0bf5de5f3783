"""The bus: no overlaps, exact look-ups, no straddling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices import Action, Bus, Device, Mapping, StraddleError
from pyvmm.errors import DeviceError

SIZES = (1, 2, 4, 8)
windows = st.lists(st.tuples(st.integers(-4, 130), st.integers(-1, 24)), max_size=12)


class Recorder(Device):
    name = "recorder"

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append(("r", offset, size, 0))
        return offset

    def write(self, offset: int, size: int, value: int) -> Action | None:
        self.log.append(("w", offset, size, value))
        return None


def fill(bus: Bus, wanted: list[tuple[int, int]]) -> list[Mapping]:
    attached: list[Mapping] = []
    for base, size in wanted:
        fits = size > 0 and base >= 0 and base + size <= bus.size
        free = not any(base < m.base + m.size and m.base < base + size for m in attached)
        if fits and free:
            attached.append(bus.attach(base, size, Recorder()))
        else:
            with pytest.raises(DeviceError):
                bus.attach(base, size, Recorder())
    return attached


def brute_find(attached: list[Mapping], addr: int, size: int) -> Mapping | str | None:
    touched = {id(m): m for a in range(addr, addr + size) for m in attached if m.base <= a < m.base + m.size}
    if not touched:
        return None
    (mapping, *others) = touched.values()
    if others or addr < mapping.base or addr + size > mapping.base + mapping.size:
        return "straddle"
    return mapping


@given(windows, st.lists(st.integers(0, 11)))
def test_find_agrees_with_a_search_of_every_byte(wanted: list[tuple[int, int]], removals: list[int]) -> None:
    bus = Bus("test", 128)
    attached = fill(bus, wanted)
    for index in [-1, *removals]:
        if 0 <= index < len(attached):
            bus.detach(attached.pop(index))
        assert list(bus.mappings) == sorted(attached, key=lambda m: m.base)
        for _ in range(2):  # the second round is answered from the bus's memory
            for addr in range(128):
                for size in SIZES:
                    expected = brute_find(attached, addr, size)
                    if expected == "straddle":
                        with pytest.raises(StraddleError) as caught:
                            bus.find(addr, size)
                        assert (caught.value.addr, caught.value.size) == (addr, size)
                        assert caught.value.mapping in attached
                    else:
                        assert bus.find(addr, size) is expected


def test_accesses_reach_the_device_as_offsets() -> None:
    bus = Bus("pio", 1 << 16)
    device = Recorder()
    bus.attach(0x3F8, 8, device)
    assert bus.read(0x3FD, 1) == 5
    assert bus.write(0x3FC, 4, 0x12345678) is None
    assert bus.read(0x3FD, 2) == 5
    assert device.log == [("r", 5, 1, 0), ("w", 4, 4, 0x12345678), ("r", 5, 2, 0)]


@pytest.mark.parametrize("size", SIZES)
def test_nobody_answers_with_all_ones(size: int) -> None:
    bus = Bus("pio", 1 << 16)
    assert bus.read(0x80, size) == (1 << (8 * size)) - 1
    assert bus.write(0x80, size, 1) is None


def test_a_straddling_access_reaches_nobody() -> None:
    bus = Bus("pio", 1 << 16)
    device = Recorder()
    bus.attach(0x70, 2, device)
    for addr, size in ((0x71, 2), (0x6F, 2), (0x6E, 8)):
        with pytest.raises(StraddleError, match=r"recorder \[0x70, 0x72\)"):
            bus.read(addr, size)
        with pytest.raises(StraddleError):
            bus.write(addr, size, 0)
    assert device.log == []


def test_a_remembered_address_still_checks_the_size() -> None:
    bus = Bus("pio", 1 << 16)
    bus.attach(0x70, 2, Recorder())
    assert bus.read(0x71, 1) == 1
    with pytest.raises(StraddleError):
        bus.read(0x71, 2)


def test_overlap_names_both() -> None:
    bus = Bus("pio", 1 << 16)
    first, second = Recorder(), Recorder()
    first.name, second.name = "first", "second"
    bus.attach(0x60, 5, first)
    with pytest.raises(DeviceError, match=r"pio: second \[0x64, 0x65\) overlaps first \[0x60, 0x65\)"):
        bus.attach(0x64, 1, second)
    assert len(bus.mappings) == 1


def test_detach_wants_what_is_attached() -> None:
    bus = Bus("pio", 1 << 16)
    mapping = bus.attach(0x60, 1, Recorder())
    assert bus.read(0x60, 1) == 0
    bus.detach(mapping)
    assert bus.read(0x60, 1) == 0xFF
    with pytest.raises(DeviceError, match="not attached"):
        bus.detach(mapping)


def test_memory_of_addresses_is_bounded() -> None:
    bus = Bus("mmio", 1 << 52)
    bus.attach(0xFF000000, 0x10000, Recorder())
    for offset in range(0x3000):
        assert bus.read(0xFF000000 + offset, 1) == offset
    assert len(bus._memo) <= 4096
