"""The device that kvm-unit-tests' x86 kernels expect (QEMU's pc-testdev): loopback ports and memory, interrupt lines.

| window | size | what |
|---|---|---|
| port 0xe0 | 4 | loopback register of 32 bits, any access size |
| port 0xe4 | 4 | a 32-bit write asks the host to drop its mapping of that guest page |
| port 0xe8 | 4 | the same loopback register |
| port 0x2000 | 24 | a byte written sets interrupt line 0 to 23 |
| memory 0xff000000 | 64 KiB | loopback memory |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyvmm.devices.bus import Bus, Mapping
from pyvmm.devices.device import Action, Device, IrqLine, StateError, take_bytes, take_int
from pyvmm.errors import DeviceError

LOOPBACK, FLUSH, LOOPBACK_ALIAS, LINES, MEMORY = 0xE0, 0xE4, 0xE8, 0x2000, 0xFF000000
LINE_COUNT = 24
MEMORY_SIZE = 0x10000


class _Flush(Device):
    name = "testdev-flush"

    def __init__(self, flush: Callable[[int], object]) -> None:
        self._flush = flush

    def write(self, offset: int, size: int, value: int) -> Action | None:
        if size == 4:
            self._flush(value & ~0xFFF)
        return None


class _Lines(Device):
    name = "testdev-lines"

    def __init__(self, lines: Sequence[IrqLine]) -> None:
        self._lines = lines

    def write(self, offset: int, size: int, value: int) -> Action | None:
        # The tests also use 32-bit writes, which name one line all the same.
        if offset < len(self._lines):
            self._lines[offset].set(value != 0)
        return None


class _Memory(Device):
    name = "testdev-memory"

    def __init__(self) -> None:
        self.data = bytearray()

    def reset(self) -> None:
        self.data = bytearray()

    def _grow(self) -> bytearray:
        # Few guests touch it; the others need not pay for 64 KiB.
        if not self.data:
            self.data = bytearray(MEMORY_SIZE)
        return self.data

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> Action | None:
        self._grow()[offset : offset + size] = value.to_bytes(size, "little")
        return None

    def state(self) -> dict[str, Any]:
        return {"data": bytes(self.data).rstrip(b"\0").hex()}

    def from_state(self, state: dict[str, Any]) -> None:
        data = take_bytes(state, "data")
        if len(data) > MEMORY_SIZE:
            raise StateError("data", f"is longer than {MEMORY_SIZE} bytes")
        self.data = bytearray(data.ljust(MEMORY_SIZE, b"\0")) if data else bytearray()


class TestDevice(Device):
    """The loopback register, and by `attach_to` the rest of the test device around it.

    Attributes:
        memory, lines, flush: the devices behind the other windows.
    """

    __test__ = False  # to pytest, a name that starts with Test is a test
    name = "testdev"

    def __init__(self, lines: Sequence[IrqLine] = (), flush: Callable[[int], object] = lambda gpa: None) -> None:
        """Use up to 24 interrupt `lines`; `flush` gets the GPA of a page whose host mapping is to be dropped.

        Raises `DeviceError` for more lines than there are ports.
        """
        if len(lines) > LINE_COUNT:
            raise DeviceError(f"testdev: {len(lines)} interrupt lines given; it has ports for {LINE_COUNT}")
        self.data = 0
        self.lines: Device = _Lines(lines)
        self.flush: Device = _Flush(flush)
        self.memory: Device = _Memory()

    def attach_to(self, ports: Bus, memory: Bus) -> list[Mapping]:
        """Claim all windows and return them; the alias at 0xe8 is left out where a debug console sits at 0xe9."""
        windows = [
            ports.attach(LOOPBACK, 4, self),
            ports.attach(FLUSH, 4, self.flush),
            ports.attach(LINES, LINE_COUNT, self.lines),
            memory.attach(MEMORY, MEMORY_SIZE, self.memory),
        ]
        if not any(m.base < LOOPBACK_ALIAS + 4 and m.end > LOOPBACK_ALIAS for m in ports.mappings):
            windows.append(ports.attach(LOOPBACK_ALIAS, 4, self))
        return windows

    def reset(self) -> None:
        """Clear the loopback register and memory."""
        self.data = 0
        self.memory.reset()

    def read(self, offset: int, size: int) -> int:
        """Return bytes of the loopback register."""
        return self.data >> (offset * 8) & (1 << (size * 8)) - 1

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Set bytes of the loopback register."""
        mask = ((1 << (size * 8)) - 1) << (offset * 8)
        self.data = self.data & ~mask | value << (offset * 8) & mask
        return None

    def state(self) -> dict[str, Any]:
        """Return the loopback register; `memory` is a device with a state of its own."""
        return {"data": self.data}

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.data = take_int(state, "data", 32)
