"""From a port or MMIO exit to a device's method, in one dictionary look-up.

A guest repeats a few accesses millions of times. The first of each kind is resolved on the bus and bound: device method,
offset, size, the place of the data in `kvm_run`, and the cell that counts it. All later ones find that binding by
the raw words of the exit, so the price of a public device API is one Python call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pyvmm.errors import DeviceError

_CELLS_LIMIT = 8192
"""A hostile guest touches every address there is: past this many distinct ones, unclaimed accesses share a cell."""


class IoDevice(Protocol):
    """What the dispatcher needs of a device; `pyvmm.devices.Device` is one."""

    name: str

    def read(self, offset: int, size: int) -> int:
        """Return `size` bytes at `offset` as an unsigned number."""

    def write(self, offset: int, size: int, value: int) -> object | None:
        """Take `size` bytes at `offset`; anything but None is an action for the machine."""


class IoWindow(Protocol):
    """A device's window on a bus; `pyvmm.devices.Mapping` is one."""

    base: int
    size: int
    device: Any


class IoBus(Protocol):
    """An address space of devices; `pyvmm.devices.Bus` is one."""

    def find(self, addr: int, size: int) -> IoWindow | None:
        """Return the window that holds the access, None if nobody claims it; `DeviceError` if it straddles a border."""


class Tally:
    """Exits of one binding, and the samples of its device's time.

    Attributes:
        count: exits.
        sampled: calls of the device that were timed.
        sampled_seconds: time that those took.
    """

    __slots__ = ("count", "sampled", "sampled_seconds")

    def __init__(self) -> None:
        self.count = 0
        self.sampled = 0
        self.sampled_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Estimate the time of all calls: exact while every call was timed, else scaled up."""
        return self.sampled_seconds * self.count / self.sampled if self.sampled else 0.0


class Cell:
    """How often one kind of exit came from one place, and how long its device took.

    It is the sum of tallies, one for each binding: a string instruction's and a single access's calls of one port differ
    in cost, and each is scaled by its own samples.

    Attributes:
        kind: `pio-in`, `pio-out`, `mmio-read`, `mmio-write`, or the kind of another exit.
        base: the port, or the first address of the device's window (of the page, where nobody claims it).
        size: length of the range in bytes.
        device: name of the device, `-` if nobody claims the address.
    """

    __slots__ = ("_count", "_seconds", "_tallies", "base", "device", "kind", "size")

    def __init__(self, kind: str, base: int = 0, size: int = 0, device: str = "-") -> None:
        self.kind = kind
        self.base = base
        self.size = size
        self.device = device
        self._tallies: list[Tally] = []
        self._count = 0
        self._seconds = 0.0

    def tally(self) -> Tally:
        """Start a tally that counts into this cell."""
        new = Tally()
        self._tallies.append(new)
        return new

    def fold(self, tally: Tally) -> None:
        """Take over what a tally has counted; it counts no more."""
        self._tallies.remove(tally)
        self.add(tally.count, tally.seconds)

    def add(self, count: int = 1, seconds: float = 0.0) -> None:
        """Count exits whose time is known."""
        self._count += count
        self._seconds += seconds

    @property
    def count(self) -> int:
        """Tell the number of exits."""
        return self._count + sum(tally.count for tally in self._tallies)

    @property
    def seconds(self) -> float:
        """Estimate the time of all calls of the device."""
        return self._seconds + sum(tally.seconds for tally in self._tallies)


Binding = tuple[bool, Callable[..., Any], int, int, Cell]
"""(is a write, device method, offset, size, cell)."""


def _floating(offset: int, size: int) -> int:
    """Read where nobody answers: the bus floats high."""
    return (1 << 8 * size) - 1


def _dropped(offset: int, size: int, value: int) -> None:
    """Write where nobody listens."""


class Dispatcher:
    """The PIO and MMIO buses as one vCPU sees them, with its exit counts.

    Attributes:
        cells: every cell so far, by kind, base and device.
    """

    def __init__(self, pio: IoBus, mmio: IoBus, lock: Any = None) -> None:
        """Serve accesses from two buses.

        Args:
            lock: held around each call of a device; needed with more than one vCPU.
        """
        self._pio = pio
        self._mmio = mmio
        self._lock = lock
        self.cells: dict[tuple[str, int, str], Cell] = {}

    @property
    def exits(self) -> int:
        """Count all exits so far, kicks left out: those depend on the clock, the others on the guest alone."""
        return sum(cell.count for cell in self.cells.values() if cell.kind != "interrupted")

    def port(self, port: int, size: int, is_write: bool) -> Binding:
        """Bind an access of `size` bytes to an I/O port."""
        window = self._find(self._pio, port, size)
        cell = self.cell("pio-out" if is_write else "pio-in", port, size, window)
        return self._bind(window, port, size, is_write, cell)

    def memory(self, gpa: int, size: int, is_write: bool) -> Binding:
        """Bind an access of `size` bytes to a GPA with no RAM behind it."""
        window = self._find(self._mmio, gpa, size)
        base, length = (gpa & ~0xFFF, 0x1000) if window is None else (window.base, window.size)
        cell = self.cell("mmio-write" if is_write else "mmio-read", base, length, window)
        return self._bind(window, gpa, size, is_write, cell)

    def cell(self, kind: str, base: int = 0, size: int = 0, window: IoWindow | None = None) -> Cell:
        """Return the cell that counts exits of `kind` at `base`."""
        if window is None and len(self.cells) >= _CELLS_LIMIT:
            base, size = 0, 0
        device = "-" if window is None else window.device.name
        cell = self.cells.get((kind, base, device))
        if cell is None:
            cell = self.cells[kind, base, device] = Cell(kind, base, size, device)
        return cell

    @staticmethod
    def _find(bus: IoBus, addr: int, size: int) -> IoWindow | None:
        try:
            return bus.find(addr, size)
        except DeviceError:
            return None  # an access across a device's border belongs to nobody: it floats, and counts as unclaimed

    def _bind(self, window: IoWindow | None, addr: int, size: int, is_write: bool, cell: Cell) -> Binding:
        if window is None:
            return is_write, _dropped if is_write else _floating, 0, size, cell
        method = window.device.write if is_write else window.device.read
        return is_write, method if self._lock is None else _locked(method, self._lock), addr - window.base, size, cell


def _locked(method: Callable[..., Any], lock: Any) -> Callable[..., Any]:
    def call(*arguments: int) -> Any:
        with lock:
            return method(*arguments)

    return call
