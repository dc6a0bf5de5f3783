"""The small devices of a PC, the register declarations, and what all devices have in common."""

from __future__ import annotations

import calendar
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyvmm.devices
from pyvmm.devices import (
    I8042,
    AcpiPm,
    Action,
    Bus,
    Cmos,
    DebugCon,
    DebugExit,
    DebugExitPort,
    Device,
    Field,
    FwCfg,
    Panic,
    PciConfigPorts,
    PostCode,
    PowerOff,
    PvPanic,
    Register,
    RegisterMap,
    Reset,
    ResetControl,
    StateError,
    SystemControlA,
    TestDevice,
    Uart,
)
from pyvmm.errors import DeviceError

MIB, GIB = 1 << 20, 1 << 30


class Line:
    def __init__(self) -> None:
        self.levels: list[bool] = []

    def set(self, level: bool) -> None:
        self.levels.append(level)

    @property
    def level(self) -> bool:
        return bool(self.levels and self.levels[-1])


def pio() -> Bus:
    return Bus("pio", 1 << 16)


# What all devices have in common

MAKERS: dict[str, tuple[Callable[[], Device], int]] = {
    "acpi-pm": (lambda: AcpiPm(clock=lambda: 10**9), 12),
    "cmos": (lambda: Cmos(256 * MIB, clock=lambda: 1.7e9), 2),
    "debug-exit": (DebugExitPort, 4),
    "debugcon": (DebugCon, 1),
    "fw_cfg": (lambda: FwCfg(256 * MIB, 2), 2),
    "i8042": (I8042, 5),
    "pci-config": (PciConfigPorts, 8),
    "postcode": (PostCode, 1),
    "pvpanic": (PvPanic, 1),
    "reset-control": (ResetControl, 1),
    "system-control-a": (SystemControlA, 1),
    "testdev": (TestDevice, 4),
    "uart": (Uart, 8),
}
accesses = st.lists(st.tuples(st.booleans(), st.integers(0, 11), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)))


@pytest.mark.parametrize("name", MAKERS)
@given(steps=accesses, more=accesses)
def test_any_access_is_served_and_any_state_survives_json(
    name: str, steps: list[tuple[bool, int, int, int]], more: list[tuple[bool, int, int, int]]
) -> None:
    make, window = MAKERS[name]

    def drive(device: Device, steps: list[tuple[bool, int, int, int]]) -> list[int | Action | None]:
        seen: list[int | Action | None] = []
        for write, offset, size, value in steps:
            if offset + size > window:
                continue
            value &= (1 << (size * 8)) - 1
            if write:
                action = device.write(offset, size, value)
                assert action is None or isinstance(action, Action)
                seen.append(action)
            else:
                answer = device.read(offset, size)
                assert 0 <= answer < 1 << (size * 8)
                seen.append(answer)
            assert device.describe(offset, size, value, write)
        return seen

    device, other = make(), make()
    assert device.name == name
    drive(device, steps)
    state = json.loads(json.dumps(device.state()))
    other.from_state(state)
    assert other.state() == device.state() == state
    assert drive(other, more) == drive(device, more)
    device.reset()
    device.from_state(state)
    assert device.state() == state


@pytest.mark.parametrize("name", [name for name, (make, _) in MAKERS.items() if make().state()])
def test_a_state_that_lacks_or_spoils_a_value_is_refused(name: str) -> None:
    make, _ = MAKERS[name]
    for key in make().state():
        for spoilt in (None, "no number", -1 << 70, 1.5):
            state: dict[str, Any] = make().state()
            state[key] = spoilt
            with pytest.raises(StateError):
                make().from_state(state)


def test_a_device_is_ten_lines() -> None:
    class Answer(Device):
        name = "answer"

        def read(self, offset: int, size: int) -> int:
            return 42

    bus = pio()
    bus.attach(0x1234, 1, Answer())
    assert bus.read(0x1234, 1) == 42
    assert bus.write(0x1234, 1, 1) is None
    assert Device().read(0, 2) == 0xFFFF
    Device().irq.set(True)


def test_actions_compare_and_print() -> None:
    assert PowerOff() == PowerOff() != Reset()
    assert DebugExit(1) == DebugExit(1) != DebugExit(2)
    assert len({Reset(), Reset(), DebugExit(1), DebugExit(1)}) == 2
    assert [repr(action) for action in (PowerOff(), Reset(), DebugExit(0x10))] == [
        "PowerOff()",
        "Reset()",
        "DebugExit(0x10)",
    ]


def test_every_public_name_loads_and_only_what_is_used() -> None:
    for name in pyvmm.devices.__all__:
        assert getattr(pyvmm.devices, name).__module__.startswith("pyvmm.devices.")
    assert set(pyvmm.devices.__all__) <= set(dir(pyvmm.devices))
    with pytest.raises(AttributeError, match="nothing"):
        _ = pyvmm.devices.nothing
    script = (
        "import sys; from pyvmm.devices import Bus, PostCode;"
        "print(*(m for m in sys.modules if m.startswith('pyvmm.devices.')))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(loaded) == [f"pyvmm.devices.{name}" for name in ("bus", "device", "postcode", "registers")]


# Register declarations


def test_register_words_and_masks() -> None:
    register = Register("R", 4, 2, "rw", Field("ON", 0), Field("MODE", 3, 1, names={2: "fast"}), Field("N", 11, 8))
    assert (register["ON"], register["MODE"], register["N"]) == (0x001, 0x00E, 0xF00)
    assert register.describe(0x0305) == "R=0x0305 ON MODE=fast N=0x3"
    assert register.describe(0x8002) == "R=0x8002 MODE=0x1 N=0x0 +0x8000"
    assert register.field("N").get(0xA12) == 0xA
    with pytest.raises(KeyError):
        register["NOPE"]


def test_register_writes_follow_access() -> None:
    register = Register(
        "R",
        0,
        1,
        "rw",
        Field("RW", 1, 0),
        Field("RO", 2, access="r"),
        Field("C", 4, 3, "w1c"),
        Field("WO", 5, access="w"),
    )
    assert register.written(0b011100, 0b101010) == 0b110110
    assert Register("PLAIN", 0, 1, "rw").written(0x12, 0xFE) == 0xFE
    assert Register("FIXED", 0, 1, "r").written(0x12, 0xFE) == 0x12


@given(st.integers(0, 255), st.integers(0, 255))
def test_writing_back_what_was_read_only_clears(old: int, value: int) -> None:
    register = Register("R", 0, 1, "rw", Field("A", 3, 0), Field("C", 6, 4, "w1c"), Field("RO", 7, access="r"))
    new = register.written(old, value)
    assert new & 0x0F == value & 0x0F
    assert new & 0x70 == old & 0x70 & ~value
    assert new & 0x80 == old & 0x80


@pytest.mark.parametrize(
    "fields", [(Field("A", 3, 0), Field("B", 3)), (Field("A", 8),), (Field("A", 0), Field("A", 1))]
)
def test_bad_declarations_are_refused(fields: tuple[Field, ...]) -> None:
    with pytest.raises(ValueError, match="register R: "):
        Register("R", 0, 1, "rw", *fields)


def test_bad_words_in_declarations_are_refused() -> None:
    with pytest.raises(ValueError, match="access"):
        Register("R", 0, 1, "rx")
    with pytest.raises(ValueError, match="access"):
        Field("F", 0, access="rx")
    with pytest.raises(ValueError, match="no range"):
        Field("F", 0, 3)
    with pytest.raises(ValueError, match="share"):
        RegisterMap(Register("R", 0, 1, "r"), Register("R", 1, 1, "r"))


def test_registers_are_found_by_direction_and_bank() -> None:
    regs = RegisterMap(
        Register("IN", 0, 1, "r", bank="a"),
        Register("OUT", 0, 1, "w", bank="a"),
        Register("OTHER", 0, 1, "rw", bank="b"),
    )
    assert regs.find(0, bank="a") is regs["IN"]
    assert regs.find(0, write=True, bank="a") is regs["OUT"]
    assert regs.find(0, write=True, bank="b") is regs["OTHER"]
    assert regs.describe(7, 0x60) == "+0x7=0x60"
    assert regs.dump({"OTHER": 1, "IN": 2}) == "IN=0x02\nOTHER=0x01"
    assert [register.name for register in regs] == ["IN", "OUT", "OTHER"]


# Debug console, POST port, debug exit


def test_debug_console() -> None:
    sent = bytearray()
    device = DebugCon(sent.extend)
    assert device.read(0, 1) == 0xE9
    device.write(0, 1, ord("a"))
    device.write(0, 2, 0x6362)
    assert sent == b"abc"


def test_post_codes() -> None:
    device = PostCode()
    for code in [0, 0, 1, 1, 2, 1]:
        device.write(0, 1, code)
    assert (device.code, device.count, list(device.history)) == (1, 6, [0, 1, 2, 1])
    for code in range(256):
        device.write(0, 1, code)
    assert list(device.history) == list(range(192, 256))
    assert device.read(0, 1) == 0xFF


@pytest.mark.parametrize(("size", "value"), [(1, 0), (2, 0x1234), (4, 0xDEADBEEF)])
def test_debug_exit(size: int, value: int) -> None:
    assert DebugExitPort().write(0, size, value) == DebugExit(value)
    assert DebugExitPort().read(0, size) == 0


# CMOS


class Wall:
    def __init__(self, *utc: int) -> None:
        self.now = float(calendar.timegm((*utc, 0, 0, 0)))

    def __call__(self) -> float:
        return self.now


def cell(device: Cmos, index: int) -> int:
    device.write(0, 1, index)
    return device.read(1, 1)


def put(device: Cmos, index: int, value: int) -> None:
    device.write(0, 1, index)
    device.write(1, 1, value)


CLOCK = (0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00)  # century, year, month, day, hours, minutes, seconds


def test_clock_reads_bcd_and_binary_and_12_hours() -> None:
    device = Cmos(64 * MIB, clock=Wall(2026, 11, 20, 23, 45, 59))
    assert [cell(device, c) for c in CLOCK] == [0x20, 0x26, 0x11, 0x20, 0x23, 0x45, 0x59]
    assert cell(device, 0x06) == 6  # a Friday
    put(device, 0x0B, 0x06)
    assert [cell(device, c) for c in CLOCK] == [20, 26, 11, 20, 23, 45, 59]
    put(device, 0x0B, 0x00)
    assert cell(device, 0x04) == 0x91
    for hour, shown in ((0, 0x12), (11, 0x11), (12, 0x92), (13, 0x81)):
        device = Cmos(64 * MIB, clock=Wall(2026, 1, 1, hour, 0, 0))
        put(device, 0x0B, 0x00)
        assert cell(device, 0x04) == shown


def test_update_is_never_in_progress() -> None:
    device = Cmos(64 * MIB, clock=Wall(2026, 1, 1, 0, 0, 0))
    put(device, 0x0A, 0xFF)
    assert cell(device, 0x0A) == 0x7F
    assert cell(device, 0x0D) == 0x80


def test_register_c_flags_an_update_once() -> None:
    wall = Wall(2026, 1, 1, 0, 0, 0)
    device = Cmos(64 * MIB, clock=wall)
    assert cell(device, 0x0C) == 0
    wall.now += 1
    assert cell(device, 0x0C) == 0x10
    assert cell(device, 0x0C) == 0
    put(device, 0x0C, 0xFF)
    assert cell(device, 0x0C) == 0


@given(
    st.integers(0, 4_102_444_799),
    st.integers(0, 4_102_444_799),
    st.booleans(),
    st.booleans(),
    st.integers(0, 100_000),
)
def test_clock_can_be_set_and_goes_on(host: int, guest: int, binary: bool, full_day: bool, later: int) -> None:
    clock = {"now": float(host)}
    device = Cmos(64 * MIB, clock=lambda: clock["now"])
    mode = 4 * binary | 2 * full_day
    shown = Cmos(64 * MIB, clock=lambda: guest)
    put(shown, 0x0B, mode)
    put(device, 0x0B, mode | 0x80)
    for index in CLOCK:
        put(device, index, cell(shown, index))
        clock["now"] += 0.3
        assert cell(device, index) == cell(shown, index)  # held, whatever the time
    put(device, 0x0B, mode)
    clock["now"] += later
    expected = time.gmtime(guest + int(clock["now"]) - int(clock["now"] - later))
    put(device, 0x0B, 0x06)
    century, year, *rest = (cell(device, index) for index in CLOCK)
    assert (century * 100 + year, *rest) == expected[:6]


@given(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255))))
def test_nonsense_in_the_clock_is_survived(writes: list[tuple[int, int]]) -> None:
    device = Cmos(64 * MIB, clock=lambda: 1.7e9)
    for index, value in writes:
        put(device, index, value)
        assert all(0 <= cell(device, c) <= 0xFF for c in range(128))


def test_held_clock_shows_the_time_it_was_held_at() -> None:
    wall = Wall(2026, 11, 20, 23, 45, 59)
    device = Cmos(64 * MIB, clock=wall)
    put(device, 0x0B, 0x82)
    wall.now += 100
    assert [cell(device, c) for c in CLOCK] == [0x20, 0x26, 0x11, 0x20, 0x23, 0x45, 0x59]
    put(device, 0x0D, 0x00)
    assert cell(device, 0x0D) == 0x80
    device.reset()
    assert cell(device, 0x0B) == 0x02
    wall.now += 1
    assert [cell(device, c) for c in CLOCK] == [0x20, 0x26, 0x11, 0x20, 0x23, 0x46, 0x00]


def test_clock_runs_when_it_is_set_a_byte_at_a_time() -> None:
    device = Cmos(64 * MIB, clock=Wall(2026, 11, 20, 23, 45, 59))
    put(device, 0x04, 0x05)
    assert [cell(device, c) for c in CLOCK] == [0x20, 0x26, 0x11, 0x20, 0x05, 0x45, 0x59]


@pytest.mark.parametrize(
    ("low", "high", "extended_kib", "above_16m", "above_4g"),
    [
        (MIB, 0, 0, 0, 0),
        (64 * MIB, 0, 63 * 1024, 48 * 16, 0),
        (128 * MIB, 0, 65535, 112 * 16, 0),
        (3 * GIB, 0, 65535, 49152 - 256, 0),
        (3 * GIB, 5 * GIB, 65535, 49152 - 256, 5 * 16384),
        (4 * GIB, 1 << 44, 65535, 65535 - 255, 0xFFFFFF),
    ],
)
def test_memory_sizes(low: int, high: int, extended_kib: int, above_16m: int, above_4g: int) -> None:
    device = Cmos(low, high)

    def number(at: int, size: int) -> int:
        return sum(cell(device, at + i) << 8 * i for i in range(size))

    assert number(0x15, 2) == 640
    assert number(0x17, 2) == number(0x30, 2) == extended_kib
    assert number(0x34, 2) == above_16m
    assert number(0x5B, 3) == above_4g


def test_nvram_index_mask_reset_and_words() -> None:
    device = Cmos(64 * MIB)
    device.write(0, 2, 0x0A8F)  # index and data in one 16-bit write; bit 7 masks NMIs
    assert device.read(1, 1) == 0x0A
    device.reset()
    assert cell(device, 0x0F) == 0x0A
    assert device.read(0, 1) == 0xFF
    put(device, 0x0B, 0x82)
    assert device.describe(1, 1, 0x82, True) == "REG_B=0x82 24H SET"
    device.write(0, 1, 0x0F)
    assert device.describe(1, 1, 0x0A, False) == "CELL[0x0f]=0x0a"
    assert device.describe(0, 1, 0x8F, True) == "INDEX=0x8f CELL=0xf NMI_OFF"


# Keyboard controller


class Kbd:
    """The controller at its ports, with the helpers that a driver has."""

    def __init__(self) -> None:
        self.line = Line()
        self.chip = I8042(self.line)
        self.bus = pio()
        self.chip.attach_to(self.bus)

    @property
    def status(self) -> int:
        return self.bus.read(0x64, 1)

    def command(self, *values: int) -> Action | None:
        action = self.bus.write(0x64, 1, values[0])
        for value in values[1:]:
            action = self.bus.write(0x60, 1, value)
        return action

    def answer(self) -> int:
        assert self.status & 0x01, "no answer"
        return self.bus.read(0x60, 1)


@pytest.fixture
def kbd() -> Kbd:
    return Kbd()


def test_controller_leaves_the_ports_between_alone(kbd: Kbd) -> None:
    assert [(m.base, m.size) for m in kbd.bus.mappings] == [(0x60, 1), (0x64, 1)]
    assert kbd.bus.mappings[1].device.describe(0, 1, 0x1C, False) == "STATUS=0x1c SYS CMD UNLOCKED"


@pytest.mark.parametrize(("command", "answer"), [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x01), (0x20, 0x65), (0xD0, 0x03)])
def test_controller_answers_at_once(kbd: Kbd, command: int, answer: int) -> None:
    kbd.command(command)
    assert kbd.status & 0x02 == 0
    assert kbd.answer() == answer
    assert kbd.status & 0x01 == 0
    assert kbd.line.levels == []


@pytest.mark.parametrize("pulse", range(0xF0, 0x100))
def test_pulses_of_the_reset_line(kbd: Kbd, pulse: int) -> None:
    assert kbd.command(pulse) == (None if pulse & 1 else Reset())


def test_reset_and_a20_through_the_output_port(kbd: Kbd) -> None:
    assert kbd.chip.a20
    assert kbd.command(0xD1, 0x01) is None
    assert not kbd.chip.a20
    assert kbd.command(0xDF) is None
    assert kbd.chip.a20
    assert kbd.command(0xDD) is None
    assert not kbd.chip.a20
    assert kbd.command(0xD1, 0x02) == Reset()


def test_command_byte_and_ram(kbd: Kbd) -> None:
    kbd.command(0x60, 0x44)
    kbd.command(0x20)
    assert kbd.answer() == 0x64  # the absent port stays disabled
    kbd.command(0xAD)
    kbd.command(0x20)
    assert kbd.answer() == 0x74
    kbd.command(0xAE)
    kbd.command(0x7F, 0x99)
    kbd.command(0x3F)
    assert kbd.answer() == 0x99


def test_linux_probe_of_the_auxiliary_port_ends_at_once(kbd: Kbd) -> None:
    """Linux's i8042_check_aux: loop test, which must not look like a port's answer, then interface test."""
    kbd.command(0xD3, 0x5A)
    assert kbd.status & 0x21 == 0x01
    kbd.command(0xA9)
    assert kbd.answer() not in (0x00, 0xFA, 0xFF)
    assert kbd.status & 0x01 == 0
    kbd.command(0xD4, 0xF2)
    assert kbd.status & 0x61 == 0x61
    assert kbd.answer() == 0xFE


def test_keyboard_says_that_it_is_not_there(kbd: Kbd) -> None:
    kbd.command(0x60, 0x75)
    kbd.bus.write(0x60, 1, 0xFF)
    assert kbd.line.level
    assert kbd.status & 0x41 == 0x41
    assert kbd.answer() == 0xFE
    assert not kbd.line.level
    kbd.command(0x20)
    assert kbd.answer() == 0x65  # and talking to it has enabled its interface
    kbd.command(0x60, 0x64)
    kbd.bus.write(0x60, 1, 0xFF)
    assert not kbd.line.level
    kbd.answer()
    assert kbd.status & 0x41 == 0


def test_each_queued_byte_has_its_edge(kbd: Kbd) -> None:
    kbd.command(0xD2, 0x1C)
    kbd.command(0xD2, 0x9C)
    assert kbd.line.levels == [True]
    assert kbd.answer() == 0x1C
    assert kbd.line.levels == [True, False, True]
    assert kbd.answer() == 0x9C
    assert kbd.line.levels == [True, False, True, False]
    assert kbd.bus.read(0x60, 1) == 0x9C


def test_flood_is_bounded_and_an_answer_comes_first(kbd: Kbd) -> None:
    for _ in range(100):
        kbd.bus.write(0x60, 1, 0xED)
    assert len(kbd.chip.state()["queue"]) == 16
    kbd.command(0xAA)
    assert kbd.answer() == 0x55


# Reset registers, PCI configuration ports


@pytest.mark.parametrize("value", range(16))
def test_reset_control(value: int) -> None:
    device = ResetControl()
    assert device.write(0, 1, value) == (Reset() if value & 4 else None)
    assert device.read(0, 1) == value & 0x0E
    assert device.write(0, 1, value) is None  # no edge, no reset


def test_system_control_a() -> None:
    device = SystemControlA()
    assert device.read(0, 1) == 0x02
    assert device.write(0, 1, 0x02) is None
    assert device.write(0, 1, 0x03) == Reset()


def test_pci_finds_the_mechanism_and_a_host_bridge_alone() -> None:
    bus, device = pio(), PciConfigPorts()
    bus.attach(0xCF8, 8, device)
    bus.write(0xCFB, 1, 0x01)  # Linux's pci_check_type1
    bus.write(0xCF8, 4, 0x80000000)
    assert bus.read(0xCF8, 4) == 0x80000000
    assert bus.read(0xCFC, 4) == 0x00081B36
    assert bus.read(0xCFE, 2) == 0x0008
    bus.write(0xCFC, 4, 0)
    bus.write(0xCF8, 4, 0x80000008)
    assert bus.read(0xCFE, 2) == 0x0600, "the class of a host bridge"
    assert bus.read(0xCFF, 1) == 0x06
    for other in (0x80000100, 0x80000800, 0x80010000):
        bus.write(0xCF8, 4, other)
        assert bus.read(0xCFC, 4) == 0xFFFFFFFF
        assert bus.read(0xCFE, 2) == 0xFFFF
    bus.write(0xCF8, 4, 0xFFFFFFFF)
    assert bus.read(0xCF8, 4) == 0x80FFFFFC
    bus.write(0xCF8, 1, 0)
    assert (bus.read(0xCF8, 1), bus.read(0xCFA, 1)) == (0xFF, 0xFF)  # nor mechanism 2
    assert device.describe(0, 4, 0x80001804, True) == (
        "CONFIG_ADDRESS=0x80001804 REGISTER=0x1 FUNCTION=0x0 DEVICE=0x3 BUS=0x0 ENABLE"
    )


def test_pci_and_the_reset_register_share_a_window() -> None:
    bus = pio()
    bus.attach(0xCF8, 8, PciConfigPorts())
    bus.write(0xCF8, 4, 0x80000600)
    assert bus.write(0xCF9, 1, 0x02) is None
    assert bus.read(0xCF9, 1) == 0x02
    assert bus.write(0xCF9, 1, 0x06) == Reset()
    assert bus.read(0xCF8, 4) == 0x80000600


def test_pci_can_be_given_a_device() -> None:
    class Bridge(PciConfigPorts):
        written: tuple[int, ...] = ()

        def config_write(self, address: int, offset: int, size: int, value: int) -> None:
            self.written = (address, offset, size, value)

        def config_read(self, address: int, offset: int, size: int) -> int:
            return (0x12378086 if address == 0x80000000 else 0xFFFFFFFF) >> 8 * offset & (1 << 8 * size) - 1

    device = Bridge()
    device.write(0, 4, 0x00000000)
    assert device.read(4, 4) == 0xFFFFFFFF  # not enabled
    device.write(4, 4, 1)
    assert not device.written
    device.write(0, 4, 0x80000000)
    assert (device.read(4, 2), device.read(6, 2)) == (0x8086, 0x1237)
    device.write(6, 2, 0x1234)
    assert device.written == (0x80000000, 2, 2, 0x1234)
    device.write(1, 1, 0x02)
    device.reset()
    assert (device.read(0, 4), device.read(1, 1)) == (0, 0)


# Panic


@pytest.mark.parametrize(("value", "action"), [(0, None), (1, Panic()), (2, None), (3, Panic()), (0x80, None)])
def test_pvpanic(value: int, action: Action | None) -> None:
    device = PvPanic()
    assert device.read(0, 1) == 3
    assert device.write(0, 1, value) == action


# Firmware configuration


def fetch(device: FwCfg, key: int, size: int) -> bytes:
    device.write(0, 2, key)
    return bytes(device.read(1, 1) for _ in range(size))


def test_fw_cfg_has_what_is_asked_first() -> None:
    device = FwCfg(5 * GIB, 3)
    assert fetch(device, 0x00, 4) == b"QEMU"
    assert fetch(device, 0x01, 4) == b"\x01\0\0\0"
    assert fetch(device, 0x03, 8) == (5 * GIB).to_bytes(8, "little")
    assert fetch(device, 0x05, 2) == fetch(device, 0x0F, 2) == b"\x03\0"
    assert fetch(device, 0x19, 8) == bytes(8)
    assert fetch(device, 0x1234, 4) == bytes(4)


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=55), st.binary(), max_size=9
    )
)
def test_fw_cfg_files(files: dict[str, bytes]) -> None:
    device = FwCfg(MIB)
    for name, data in files.items():
        device.add_file(name, data)
    count = int.from_bytes(fetch(device, 0x19, 4), "big")
    assert count == len(files)
    directory = fetch(device, 0x19, 4 + 64 * count)[4:]
    for at in range(0, len(directory), 64):
        size, key = (int.from_bytes(directory[at + a : at + b], "big") for a, b in ((0, 4), (4, 6)))
        name = directory[at + 8 : at + 64].rstrip(b"\0").decode()
        assert fetch(device, key, size + 1) == files[name] + b"\0"


def test_fw_cfg_refuses_what_it_cannot_hold() -> None:
    device = FwCfg(MIB)
    device.add_file("a", b"")
    for bad in ("a", "x" * 56):
        with pytest.raises(DeviceError, match="fw_cfg: "):
            device.add_file(bad, b"")
    with pytest.raises(DeviceError, match="key"):
        device.add(0x4000, b"")
    device.add(0x8003, b"arch")
    assert fetch(device, 0x8003, 4) == b"arch"
    assert device.read(0, 2) == 0
    assert fetch(device, 0x00, 2) == b"QE"
    device.write(1, 1, 0xFF)  # writing data is not offered
    assert device.read(1, 1) == ord("M")
    device.reset()
    assert device.read(1, 1) == ord("Q")


# ACPI power management


@pytest.mark.parametrize("kind", range(8))
@pytest.mark.parametrize("size", [1, 2])
def test_sleep(kind: int, size: int) -> None:
    device = AcpiPm()
    value = 0x2000 | kind << 10
    action = device.write(4, 2, value) if size == 2 else device.write(5, 1, value >> 8)
    assert action == (PowerOff() if kind in (0, 5, 7) else None)
    assert device.read(4, 2) == kind << 10 | 1, "SCI_EN is always set"
    assert AcpiPm().write(4, 2, kind << 10) is None


def test_power_button_raises_the_sci_until_it_is_acknowledged() -> None:
    line = Line()
    device = AcpiPm(line)
    device.press()
    assert device.read(0, 2) == 0x0100
    device.write(4, 2, 0)
    assert not line.level
    device.write(2, 2, 0x0100)
    assert line.levels == [True]
    device.write(1, 1, 0x01)
    assert line.levels == [True, False]
    assert device.read(0, 4) == 0x01000000
    spare = Line()
    other = AcpiPm(spare)
    device.press()
    assert line.level
    other.from_state(device.state())
    assert spare.levels == [True]
    device.reset()
    assert not line.level
    assert device.read(0, 8) == 1 << 32


@pytest.mark.parametrize(("bits", "mask"), [(24, 0xFFFFFF), (32, 0xFFFFFFFF)])
def test_timer(bits: int, mask: int) -> None:
    clock = {"ns": 10**12}
    device = AcpiPm(clock=lambda: clock["ns"], timer_bits=bits)
    assert device.read(8, 4) == 0
    clock["ns"] += 10**9
    assert device.read(8, 4) == 3_579_545
    clock["ns"] += 3600 * 10**9
    assert device.read(8, 4) == 3_579_545 * 3601 & mask
    assert device.read(8, 1) | device.read(9, 1) << 8 == 3_579_545 * 3601 & 0xFFFF
    saved = device.timer
    device.from_state(device.state())
    assert device.timer == saved


# The test device


def test_loopback_and_lines_and_flush() -> None:
    lines, flushed = [Line() for _ in range(24)], list[int]()
    ports, memory = pio(), Bus("mmio", 1 << 52)
    device = TestDevice(lines, flushed.append)
    assert len(device.attach_to(ports, memory)) == 5
    ports.write(0xE0, 4, 0x12345678)
    ports.write(0xE1, 1, 0xAB)
    assert ports.read(0xE0, 4) == ports.read(0xE8, 4) == 0x1234AB78
    assert (ports.read(0xE0, 1), ports.read(0xE2, 2)) == (0x78, 0x1234)
    ports.write(0xE4, 4, 0x401234)
    ports.write(0xE4, 1, 0x40)
    assert flushed == [0x401000]
    ports.write(0x2017, 1, 2)
    ports.write(0x2017, 1, 0)
    assert [line.levels for line in lines] == [[]] * 23 + [[True, False]]
    assert memory.read(0xFF00FFF8, 8) == 0
    memory.write(0xFF00FFF8, 8, 0x1122334455667788)
    assert memory.read(0xFF00FFFA, 2) == 0x5566
    other = TestDevice()
    other.memory.from_state(json.loads(json.dumps(device.memory.state())))
    assert other.memory.read(0xFFF8, 8) == 0x1122334455667788
    device.reset()
    assert ports.read(0xE0, 4) == memory.read(0xFF00FFF8, 8) == 0


def test_test_device_makes_room_for_a_debug_console() -> None:
    ports, memory = pio(), Bus("mmio", 1 << 52)
    ports.attach(0xE9, 1, DebugCon())
    assert len(TestDevice().attach_to(ports, memory)) == 4
    ports.write(0x2000, 1, 1)  # no line behind it
    with pytest.raises(DeviceError, match="25 interrupt lines"):
        TestDevice([Line() for _ in range(25)])
