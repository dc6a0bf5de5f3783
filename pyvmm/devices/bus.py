"""An address space of devices: port I/O and memory-mapped I/O are each one `Bus`.

Attaching refuses overlaps, so an address has one device or none. An access must fit whole into one device or touch
none; what straddles a border is a `StraddleError`, never a guess about who gets which byte.
"""

from __future__ import annotations

from bisect import bisect_right

from pyvmm.devices.device import Action, Device
from pyvmm.errors import DeviceError

_MEMO_LIMIT = 4096  # addresses remembered; a guest that scans a large window must not grow us without bound


class StraddleError(DeviceError):
    """An access lies partly inside a device and partly outside.

    Attributes:
        bus: name of the bus.
        addr: first address of the access.
        size: its length in bytes.
        mapping: the device window that it cuts.
    """

    def __init__(self, bus: str, addr: int, size: int, mapping: Mapping) -> None:
        super().__init__(f"{bus}: access of {size} bytes at {addr:#x} straddles the border of {mapping}")
        self.bus = bus
        self.addr = addr
        self.size = size
        self.mapping = mapping


class Mapping:
    """A window of a bus and the device behind it.

    Attributes:
        base: first address.
        size: length in bytes.
        end: first address past the window.
        device: gets accesses as offsets from `base`.
    """

    __slots__ = ("base", "device", "end", "size")

    def __init__(self, base: int, size: int, device: Device) -> None:
        self.base = base
        self.size = size
        self.end = base + size
        self.device = device

    def __str__(self) -> str:
        return f"{self.device.name} [{self.base:#x}, {self.end:#x})"

    def __repr__(self) -> str:
        return f"<Mapping {self}>"


class Bus:
    """An address space in which devices claim windows.

    Attributes:
        name: for messages and traces, as "pio" or "mmio".
        size: number of addresses; valid ones are 0 to size - 1.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._bases: list[int] = []
        self._mappings: list[Mapping] = []
        # Exits hit the same few addresses again and again: one dictionary look-up answers most of them.
        self._memo: dict[int, Mapping] = {}

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """All windows, by ascending address."""
        return tuple(self._mappings)

    def attach(self, base: int, size: int, device: Device) -> Mapping:
        """Give the window of `size` bytes at `base` to `device`; a device may own several windows.

        Raises `DeviceError` if the window is empty, leaves the bus, or overlaps another one (both are named).
        """
        new = Mapping(base, size, device)
        if size <= 0:
            raise DeviceError(f"{self.name}: {device.name} at {base:#x} has size {size}; it needs at least one byte")
        if base < 0 or new.end > self.size:
            raise DeviceError(f"{self.name}: {new} leaves the bus, which ends at {self.size:#x}")
        index = bisect_right(self._bases, base)
        for near in self._mappings[max(index - 1, 0) : index + 1]:
            if near.base < new.end and base < near.end:
                raise DeviceError(f"{self.name}: {new} overlaps {near}; attach one of them elsewhere")
        self._bases.insert(index, base)
        self._mappings.insert(index, new)
        self._memo.clear()
        return new

    def detach(self, mapping: Mapping) -> None:
        """Take a window away; raises `DeviceError` if `mapping` is not attached here."""
        for index, present in enumerate(self._mappings):
            if present is mapping:
                del self._bases[index], self._mappings[index]
                self._memo.clear()
                return
        raise DeviceError(f"{self.name}: {mapping} is not attached to this bus")

    def find(self, addr: int, size: int) -> Mapping | None:
        """Return the window that holds all `size` bytes at `addr`, None if no device claims any of them.

        Raises `StraddleError` if a device claims some of them.
        """
        mapping = self._memo.get(addr)
        if mapping is not None and addr + size <= mapping.end:
            return mapping
        return self._search(addr, size)

    def _search(self, addr: int, size: int) -> Mapping | None:
        index = bisect_right(self._bases, addr)
        if index:
            mapping = self._mappings[index - 1]
            if addr < mapping.end:
                if addr + size > mapping.end:
                    raise StraddleError(self.name, addr, size, mapping)
                if len(self._memo) >= _MEMO_LIMIT:
                    self._memo.clear()
                self._memo[addr] = mapping
                return mapping
        if index < len(self._bases) and self._bases[index] < addr + size:
            raise StraddleError(self.name, addr, size, self._mappings[index])
        return None

    def read(self, addr: int, size: int) -> int:
        """Read `size` bytes at `addr`, little-endian; unclaimed addresses read all ones. May raise `StraddleError`."""
        mapping = self._memo.get(addr)
        if mapping is None or addr + size > mapping.end:
            mapping = self._search(addr, size)
            if mapping is None:
                return (1 << (size * 8)) - 1
        return mapping.device.read(addr - mapping.base, size)

    def write(self, addr: int, size: int, value: int) -> Action | None:
        """Write `size` bytes at `addr`, return the device's wish; dropped if unclaimed. May raise `StraddleError`."""
        mapping = self._memo.get(addr)
        if mapping is None or addr + size > mapping.end:
            mapping = self._search(addr, size)
            if mapping is None:
                return None
        return mapping.device.write(addr - mapping.base, size, value)
