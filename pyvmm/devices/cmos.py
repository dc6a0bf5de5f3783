"""The real-time clock and its CMOS memory (Motorola MC146818A data sheet), ports 0x70 and 0x71.

The time is the host's plus what the guest set. It is computed when it is read, so an update is never in progress (UIP
is always clear). Interrupts are not modelled: neither alarm nor periodic nor update-ended; in register C only the
update-ended flag moves, for guests that poll it. The weekday follows from the date whatever the guest writes there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pyvmm.devices.device import Action, ByteDevice, StateError, take, take_bytes, take_int
from pyvmm.devices.registers import Field, Register, RegisterMap, bits

PORT = 0x70
SIZE = 2

REG_A = Register("REG_A", 0x0A, 1, "rw", Field("RS", 3, 0), Field("DV", 6, 4), Field("UIP", 7, access="r"))
REG_B = Register("REG_B", 0x0B, 1, "rw", *bits("DSE", "24H", "BINARY", "SQWE", "UIE", "AIE", "PIE", "SET"))
REG_C = Register("REG_C", 0x0C, 1, "r", *bits("UF", "AF", "PF", "IRQF", start=4))
REG_D = Register("REG_D", 0x0D, 1, "r", Field("VRT", 7))
CELLS = RegisterMap(REG_A, REG_B, REG_C, REG_D)

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY = 0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32
_CLOCK_CELLS = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)
SHUTDOWN = 0x0F
EQUIPMENT = 0x14
_EQUIPMENT_FPU = 0x02
_MIB = 1 << 20
_PM = 0x80  # bit of the hours cell in 12-hour mode


def days_from_civil(year: int, month: int, day: int) -> int:
    """Return the days from 1970-01-01 to a Gregorian date; a day past the month's end counts into the next month."""
    year -= month <= 2
    since_march = (month + 9) % 12
    day_of_year = (153 * since_march + 2) // 5 + day - 1
    return year * 365 + year // 4 - year // 100 + year // 400 + day_of_year - 719468


class Cmos(ByteDevice):
    """Index and data ports, clock, and 128 bytes of memory with the sizes that firmware leaves there.

    The two places for extended memory in KiB (0x17, 0x30) hold at most 65535, as does 0x34 (64 KiB units above 16 MiB);
    0x5b to 0x5d hold RAM above 4 GiB in 64 KiB units. QEMU and Bochs use the same layout.

    Attributes:
        memory: the cells; those of the clock are only used while register B's SET bit holds it.
    """

    name = "cmos"
    registers = RegisterMap(
        Register("INDEX", 0, 1, "w", Field("CELL", 6, 0), Field("NMI_OFF", 7)), Register("DATA", 1, 1, "rw")
    )

    def __init__(self, low_ram: int, high_ram: int = 0, clock: Callable[[], float] = time.time) -> None:
        """Describe `low_ram` bytes below and `high_ram` above 4 GiB; `clock` gives seconds since 1970, UTC."""
        self._clock = clock
        self._ram = (low_ram, high_ram)
        self._offset = 0  # seconds that the guest's clock is ahead of the host's
        self._shown: tuple[int, int, dict[int, int]] = (0, -1, {})  # second, register B, and the cells made of them
        self._power_on()

    def _power_on(self) -> None:
        self._index = 0
        self._flag_second = self._now()
        self.memory = bytearray(128)
        self.memory[REG_A.offset] = 0x26  # 32.768 kHz time base, 1024 Hz rate
        self.memory[REG_B.offset] = REG_B["24H"]
        self.memory[REG_D.offset] = REG_D["VRT"]
        self.memory[EQUIPMENT] = _EQUIPMENT_FPU
        low_ram, high_ram = self._ram
        self._store(0x15, 2, 640)
        extended = min(max(low_ram - _MIB, 0) >> 10, 0xFFFF)
        self._store(0x17, 2, extended)
        self._store(0x30, 2, extended)
        self._store(0x34, 2, min(max(low_ram - 16 * _MIB, 0) >> 16, 0xFFFF))
        self._store(0x5B, 3, min(high_ram >> 16, 0xFFFFFF))

    def _store(self, cell: int, size: int, value: int) -> None:
        self.memory[cell : cell + size] = value.to_bytes(size, "little")

    def reset(self) -> None:
        """Release the clock and select cell 0; a battery keeps memory and time over a reset."""
        if self.memory[REG_B.offset] & REG_B["SET"]:
            self._write_cell(REG_B.offset, self.memory[REG_B.offset] & ~REG_B["SET"])
        self._index = 0

    def _now(self) -> int:
        return int(self._clock()) + self._offset

    # The ports

    def read_byte(self, offset: int) -> int:
        """Return the selected cell; the index port is write-only and reads all ones."""
        return self._read_cell(self._index) if offset == 1 else 0xFF

    def write_byte(self, offset: int, value: int) -> Action | None:
        """Select a cell (its bit 7, the NMI mask, has no effect here) or write the selected one."""
        if offset == 0:
            self._index = value & 0x7F
        else:
            self._write_cell(self._index, value)
        return None

    def describe(self, offset: int, size: int, value: int, write: bool) -> str:
        """Return an access in words; data accesses name the selected cell."""
        if offset == 1 and size == 1:
            if CELLS.find(self._index) is not None:
                return CELLS.describe(self._index, value)
            return f"CELL[{self._index:#04x}]={value:#04x}"
        return super().describe(offset, size, value, write)

    def _read_cell(self, cell: int) -> int:
        if cell in _CLOCK_CELLS and not self.memory[REG_B.offset] & REG_B["SET"]:
            return self._clock_cells()[cell]
        if cell == REG_C.offset:
            now = self._now()
            flags = REG_C["UF"] if now != self._flag_second else 0
            self._flag_second = now
            return flags
        return self.memory[cell]

    def _write_cell(self, cell: int, value: int) -> None:
        held = self.memory[REG_B.offset] & REG_B["SET"]
        if cell == REG_A.offset:
            self.memory[cell] = REG_A.written(self.memory[cell], value)
        elif cell == REG_B.offset:
            if value & REG_B["SET"] and not held:
                self._hold()
            self.memory[cell] = value
            if held and not value & REG_B["SET"]:
                self._take_over()
        elif cell in (REG_C.offset, REG_D.offset):
            return
        elif cell in _CLOCK_CELLS and not held:
            # A write to a running clock sets that part of it and leaves the rest.
            self._hold()
            self.memory[cell] = value
            self._take_over()
        else:
            self.memory[cell] = value

    # The clock

    def _hold(self) -> None:
        for cell, value in self._clock_cells().items():
            self.memory[cell] = value

    def _take_over(self) -> None:
        cells = self.memory
        year = self._decode(cells[CENTURY]) * 100 + self._decode(cells[YEAR])
        # Nonsense in a cell must not keep the others from being set, so months wrap instead of failing.
        days = days_from_civil(year, (self._decode(cells[MONTH]) - 1) % 12 + 1, self._decode(cells[DAY]))
        seconds = (days * 24 + self._decode_hour(cells[HOURS])) * 60 + self._decode(cells[MINUTES])
        self._offset = seconds * 60 + self._decode(cells[SECONDS]) - int(self._clock())

    def _clock_cells(self) -> dict[int, int]:
        # A guest reads one cell after the other, all in the same second.
        second, mode = self._now(), self.memory[REG_B.offset]
        if (second, mode) != self._shown[:2]:
            self._shown = (second, mode, self._make_cells(second))
        return self._shown[2]

    def _make_cells(self, second: int) -> dict[int, int]:
        now = time.gmtime(second)
        hour = now.tm_hour
        marker = 0
        if not self.memory[REG_B.offset] & REG_B["24H"]:
            marker = _PM if hour >= 12 else 0
            hour = hour % 12 or 12
        encode = self._encode
        return {
            SECONDS: encode(min(now.tm_sec, 59)),
            MINUTES: encode(now.tm_min),
            HOURS: encode(hour) | marker,
            WEEKDAY: encode((now.tm_wday + 1) % 7 + 1),  # the chip's week starts on Sunday, with 1
            DAY: encode(now.tm_mday),
            MONTH: encode(now.tm_mon),
            YEAR: encode(now.tm_year % 100),
            CENTURY: encode(now.tm_year // 100 % 100),
        }

    def _encode(self, number: int) -> int:
        return number if self.memory[REG_B.offset] & REG_B["BINARY"] else number // 10 << 4 | number % 10

    def _decode(self, cell: int) -> int:
        return cell if self.memory[REG_B.offset] & REG_B["BINARY"] else (cell >> 4) * 10 + (cell & 0x0F)

    def _decode_hour(self, cell: int) -> int:
        if self.memory[REG_B.offset] & REG_B["24H"]:
            return self._decode(cell)
        return self._decode(cell & ~_PM) % 12 + (12 if cell & _PM else 0)

    def state(self) -> dict[str, Any]:
        """Return memory, index, and the guest's time relative to the host's."""
        return {
            "index": self._index,
            "memory": self.memory.hex(),
            "offset": self._offset,
            "flag_second": self._flag_second,
        }

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; the clock has gone on meanwhile, as one with a battery does."""
        index, memory = take_int(state, "index", 7), take_bytes(state, "memory")
        offset, flag_second = take(state, "offset", int), take(state, "flag_second", int)
        if len(memory) != len(self.memory):
            raise StateError("memory", f"has {len(memory)} bytes, not {len(self.memory)}")
        for key, seconds in (("offset", offset), ("flag_second", flag_second)):
            if abs(seconds) >> 40:
                raise StateError(key, f"is {seconds} s, more than a clock can show")
        self._index, self._offset, self._flag_second = index, offset, flag_second
        self.memory = bytearray(memory)
