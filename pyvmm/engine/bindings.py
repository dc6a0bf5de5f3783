"""The bindings of one vCPU: from the raw words of an exit in `kvm_run` to a device's method, ready to call.

A device's time is sampled. Two readings of the clock around each call would cost 2 to 3 % of an exit on a host where that
takes 7 us, so the first `FIRST_SAMPLES` calls of each binding are timed, then `SAMPLES` in each `SAMPLE_PERIOD` exits. A
timed binding has a method that reads the clock and, when it is done, puts the plain binding in its own place.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, Literal

from pyvmm.engine.dispatch import Cell, Dispatcher, Tally
from pyvmm.pykvm import Vcpu
from pyvmm.pykvm.run_area import BYTE_MMIO_DATA, EXIT_OFFSET, QUAD_IO_DATA_OFFSET, QUAD_MMIO_ADDR, WORD_MMIO_LEN

QUAD_ACCESS = EXIT_OFFSET // 8
"""Index of the 64-bit word that holds direction, size, port and count of a port access; the GPA of an MMIO access."""
QUAD_MMIO_META = WORD_MMIO_LEN // 2
"""Index of the 64-bit word with the length of an MMIO access and its direction."""
assert QUAD_ACCESS == QUAD_MMIO_ADDR

FIRST_SAMPLES = 256
SAMPLES = 64
SAMPLE_PERIOD = 1 << 14

_LIMIT = 8192
"""Bindings kept: a hostile guest touches every address there is."""
_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


Operation = tuple[bool, Callable[..., Any], int, int, Tally, memoryview, Cell]
"""(is a write, device method, offset, size, tally, where the data lies in `kvm_run`, cell).

A plain tuple, because the interpreter unpacks those in one step, and instances of a named one through an iterator.
"""


class Bindings:
    """What the exit loop looks accesses up in.

    Attributes:
        pio: operations by the word `QUAD_ACCESS`.
        mmio: operations by address, then by the word `QUAD_MMIO_META`: two look-ups are cheaper than one by a tuple that
            has to be made first.
    """

    def __init__(self, vcpu: Vcpu, dispatcher: Dispatcher) -> None:
        self._vcpu = vcpu
        self._dispatcher = dispatcher
        self.pio: dict[int, Operation] = {}
        self.mmio: dict[int, dict[int, Operation]] = {}
        self._plain: list[tuple[dict[int, Operation], int, Operation]] = []

    def port(self) -> Operation:
        """Bind the port access in `kvm_run`, and remember it unless it is a string instruction's."""
        vcpu = self._vcpu
        key, start = vcpu.quads[QUAD_ACCESS], vcpu.quads[QUAD_IO_DATA_OFFSET]
        if len(self._plain) >= _LIMIT:
            self.forget()
        is_write, size, port, count = bool(key & 0xFF), key >> 8 & 0xFF, key >> 16 & 0xFFFF, key >> 32
        _, method, offset, _, cell = self._dispatcher.port(port, size, is_write)
        data = vcpu.run_view[start : start + size * count].cast(_FORMATS[size])
        if count != 1:  # REP INS or REP OUTS: the elements follow one another in kvm_run's data page
            sequence = _sequence([(method, offset, size)] * count, is_write, data)
            return _once((is_write, sequence, offset, size, Tally(), data, cell))
        return self._remember(self.pio, key, (is_write, method, offset, size, cell.tally(), data, cell))

    def memory(self) -> Operation:
        """Bind the MMIO access in `kvm_run`, and remember it."""
        vcpu = self._vcpu
        gpa, meta = vcpu.quads[QUAD_ACCESS], vcpu.quads[QUAD_MMIO_META]
        size, is_write = meta & 0xFFFFFFFF, bool(meta >> 32 & 0xFF)
        if size not in _FORMATS:  # KVM splits an access at page borders: what is left may have an odd length
            data = vcpu.run_view[BYTE_MMIO_DATA : BYTE_MMIO_DATA + size]
            parts = [self._dispatcher.memory(gpa + index, 1, is_write) for index in range(size)]
            sequence = _sequence([(method, offset, 1) for _, method, offset, _, _ in parts], is_write, data)
            return _once((is_write, sequence, parts[0][2], size, Tally(), data, parts[0][4]))
        _, method, offset, _, cell = self._dispatcher.memory(gpa, size, is_write)
        data = vcpu.run_view[BYTE_MMIO_DATA : BYTE_MMIO_DATA + size].cast(_FORMATS[size])
        if len(self._plain) >= _LIMIT:
            self.forget()
        table = self.mmio.setdefault(gpa, {})
        return self._remember(table, meta, (is_write, method, offset, size, cell.tally(), data, cell))

    def _remember(self, table: dict[int, Operation], key: int, plain: Operation) -> Operation:
        self._plain.append((table, key, plain))
        return _sample(table, key, plain, FIRST_SAMPLES)

    def sample(self) -> None:
        """Time the next calls of every binding again."""
        for table, key, plain in self._plain:
            _sample(table, key, plain, SAMPLES)

    def forget(self) -> None:
        """Drop all bindings: the devices on a bus have changed."""
        self.pio.clear()
        for table in self.mmio.values():
            table.clear()
        self.mmio.clear()
        for _, _, plain in self._plain:
            plain[6].fold(plain[4])
        self._plain.clear()

    def close(self) -> None:
        """Drop all bindings and their views of `kvm_run`, which a traceback may keep alive, so that it can be unmapped."""
        for _, _, plain in self._plain:
            plain[5].release()
        self.forget()


def _sample(table: dict[int, Operation], key: int, plain: Operation, samples: int) -> Operation:
    """Put a timed form of `plain` into the table, which gives way to `plain` after `samples` calls."""
    is_write, method, offset, size, tally, data, cell = plain
    left = samples

    def call(*arguments: int) -> Any:
        nonlocal left
        began = perf_counter()
        result = method(*arguments)
        tally.sampled_seconds += perf_counter() - began
        tally.sampled += 1
        left -= 1
        if left == 0 and key in table:  # it may have been forgotten since
            table[key] = plain
        return result

    table[key] = timed = (is_write, call, offset, size, tally, data, cell)
    return timed


def _once(operation: Operation) -> Operation:
    """Make an operation for one exit, whose time goes into the cell as it is."""
    is_write, method, offset, size, tally, data, cell = operation

    def call(*arguments: int) -> Any:
        began = perf_counter()
        result = method(*arguments)
        cell.add(1, perf_counter() - began)
        return result

    return is_write, call, offset, size, tally, data, cell


def _sequence(calls: list[tuple[Callable[..., Any], int, int]], is_write: bool, data: memoryview) -> Callable[..., Any]:
    """Make one method of several accesses, one for each item of `data`; the last action of a write counts."""

    def write(_offset: int, _size: int, _first: int) -> Any:
        action = None
        for value, (method, offset, size) in zip(data, calls, strict=True):
            action = method(offset, size, value) or action
        return action

    def read(_offset: int, _size: int) -> int:
        for index, (method, offset, size) in enumerate(calls):
            data[index] = method(offset, size)
        return data[0]

    return write if is_write else read
