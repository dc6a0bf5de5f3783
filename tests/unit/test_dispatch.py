"""The dispatcher: bindings and cells for exits, without KVM."""

from __future__ import annotations

import threading

from pyvmm.devices.bus import Bus
from pyvmm.devices.device import Device
from pyvmm.engine.dispatch import Dispatcher


class Recorder(Device):
    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append((offset, size))
        return offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append((offset, size, value))


def make(lock: object = None) -> tuple[Dispatcher, Recorder, Recorder]:
    pio, mmio = Bus("pio", 1 << 16), Bus("mmio", 1 << 52)
    port, window = Recorder("port"), Recorder("window")
    pio.attach(0x10, 4, port)
    mmio.attach(0x1000, 0x100, window)
    return Dispatcher(pio, mmio, lock), port, window


def test_a_binding_calls_the_device_at_its_offset() -> None:
    dispatcher, port, _ = make()
    is_write, method, offset, size, cell = dispatcher.port(0x12, 2, True)
    method(offset, size, 7)
    assert (is_write, port.calls) == (True, [(2, 2, 7)])
    assert (cell.kind, cell.base, cell.device) == ("pio-out", 0x12, "port")
    is_write, method, offset, size, cell = dispatcher.memory(0x1080, 8, False)
    assert (is_write, method(offset, size)) == (False, 0x80)
    assert (cell.kind, cell.base, cell.size, cell.device) == ("mmio-read", 0x1000, 0x100, "window")


def test_nobody_reads_ones_and_drops_writes() -> None:
    dispatcher, port, _ = make()
    for size in (1, 2, 4):
        _, method, offset, _, cell = dispatcher.port(0x80, size, False)
        assert method(offset, size) == (1 << 8 * size) - 1
        assert cell.device == "-"
    _, method, offset, size, _ = dispatcher.port(0x13, 2, True)  # straddles the end of the device
    assert method(offset, size, 1) is None
    assert port.calls == []


def test_one_cell_for_each_kind_and_place() -> None:
    dispatcher, _, _ = make()
    cells = [dispatcher.port(0x10, 1, True)[4], dispatcher.port(0x10, 1, True)[4], dispatcher.port(0x10, 1, False)[4]]
    assert cells[0] is cells[1] is not cells[2]
    # a window's addresses share a cell, nobody's addresses share one for each page
    assert dispatcher.memory(0x1000, 1, True)[4] is dispatcher.memory(0x10FF, 1, True)[4]
    assert dispatcher.memory(0x5000, 1, True)[4] is dispatcher.memory(0x5FFF, 1, True)[4]
    assert dispatcher.memory(0x5000, 1, True)[4] is not dispatcher.memory(0x6000, 1, True)[4]


def test_a_guest_that_touches_everything_does_not_grow_us_without_bound() -> None:
    dispatcher, _, _ = make()
    for page in range(100_000):
        dispatcher.memory(page << 12 | 1 << 40, 1, False)
    assert len(dispatcher.cells) < 10_000
    assert dispatcher.memory(0x1000, 1, True)[4].device == "window"  # devices are still counted by name


def test_the_lock_is_held_around_calls() -> None:
    lock = threading.RLock()
    held: list[bool] = []

    class Asking(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            taken: list[bool] = []

            def attempt() -> None:
                if lock.acquire(blocking=False):
                    lock.release()
                    taken.append(True)

            other = threading.Thread(target=attempt)
            other.start()
            other.join()
            held.append(not taken)

    pio = Bus("pio", 1 << 16)
    pio.attach(0, 1, Asking())
    _, method, offset, size, _ = Dispatcher(pio, Bus("mmio", 1), lock).port(0, 1, True)
    method(offset, size, 1)
    assert held == [True]
