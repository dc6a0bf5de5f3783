"""Guest RAM: where it lies, bounds-checked typed access, and GPA to HVA to HPA."""

from __future__ import annotations

import os
from struct import Struct
from typing import TYPE_CHECKING, Any

from pyvmm.errors import GuestMemoryError, HostError, UsageError
from pyvmm.memory.region import HUGE_PAGE_SIZE, PAGE_SIZE, Region
from pyvmm.memory.size import format_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer
else:
    from pyvmm.pykvm.lazy import np

HOLE_START = 3 << 30
"""RAM below 4 GiB ends here: the last GiB belongs to devices (IOAPIC, LAPIC, PCI windows, firmware), as on a PC."""
HOLE_END = 4 << 30

_MINIMUM = 64 << 10
_U8, _U16, _U32, _U64 = (Struct(code) for code in ("<B", "<H", "<I", "<Q"))
_PAGEMAP_PRESENT = 1 << 63
_PAGEMAP_PFN = (1 << 55) - 1


class GuestMemory:
    """All RAM of one guest, as regions in ascending GPA order.

    Every access names a guest-physical address and must lie inside one region, else `GuestMemoryError` (with `gpa` and `size`)
    is raised and nothing is read or written.
    """

    def __init__(self, size: int, *, hugepages: str = "none") -> None:
        """Map `size` bytes of RAM: from GPA 0 to at most 3 GiB, the rest from 4 GiB on.

        Raises:
            UsageError: the size is no whole number of pages, below 64 KiB, or more than this host has.
            HostError: the host cannot map it.
        """
        unit = HUGE_PAGE_SIZE if hugepages == "2M" else PAGE_SIZE
        if size < _MINIMUM or size % unit:
            least = max(_MINIMUM, unit)
            raise UsageError(
                f"guest memory of {format_size(size)}: use a multiple of {unit >> 10} KiB, at least {format_size(least)}"
            )
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > host:
            raise UsageError(f"guest memory of {format_size(size)}: this host has {format_size(host)}, ask for less")
        self.size = size
        low = min(size, HOLE_START)
        self.regions: tuple[Region, ...] = (Region(0, low, hugepages=hugepages),)
        if size > low:
            try:
                self.regions += (Region(HOLE_END, size - low, hugepages=hugepages),)
            except HostError:
                self.close()
                raise

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """List the RAM ranges as (GPA, size in bytes), ascending."""
        return tuple((region.gpa, region.size) for region in self.regions)

    def find(self, gpa: int, size: int = 1, what: str = "access") -> Region:
        """Return the region that holds all of `[gpa, gpa + size)`; raise `GuestMemoryError` if none does."""
        for region in self.regions:
            if region.gpa <= gpa and gpa + size <= region.gpa + region.size and size >= 0:
                return region
        raise GuestMemoryError(gpa, size, what)

    def contains(self, gpa: int, size: int = 1) -> bool:
        """Tell whether `[gpa, gpa + size)` is RAM of one region."""
        return any(region.gpa <= gpa and gpa + size <= region.end for region in self.regions) and size >= 0

    def view(self, gpa: int, size: int) -> memoryview:
        """View `size` bytes at `gpa` in place, writable."""
        region = self.find(gpa, size, "view")
        offset = gpa - region.gpa
        return region.view[offset : offset + size]

    def array(self, gpa: int, count: int, dtype: Any = "u1") -> NDArray[Any]:
        """View `count` items of `dtype` at `gpa` in place, as a writable NumPy array of shape (count,)."""
        region = self.find(gpa, count * np.dtype(dtype).itemsize, "array")
        return region.array(gpa - region.gpa, count, dtype)

    def read(self, gpa: int, size: int) -> bytes:
        """Copy `size` bytes out of guest memory."""
        region = self.find(gpa, size, "read")
        offset = gpa - region.gpa
        return bytes(region.view[offset : offset + size])

    def write(self, gpa: int, data: Buffer) -> None:
        """Copy bytes into guest memory."""
        source = memoryview(data).cast("B")
        region = self.find(gpa, len(source), "write")
        offset = gpa - region.gpa
        region.view[offset : offset + len(source)] = source

    def _read_int(self, gpa: int, layout: Struct) -> int:
        region = self.find(gpa, layout.size, "read")
        value: int = layout.unpack_from(region.view, gpa - region.gpa)[0]
        return value

    def _write_int(self, gpa: int, value: int, layout: Struct) -> None:
        region = self.find(gpa, layout.size, "write")
        layout.pack_into(region.view, gpa - region.gpa, value & ((1 << 8 * layout.size) - 1))

    def read_u8(self, gpa: int) -> int:
        """Read one byte."""
        return self._read_int(gpa, _U8)

    def read_u16(self, gpa: int) -> int:
        """Read a little-endian 16-bit value, aligned or not."""
        return self._read_int(gpa, _U16)

    def read_u32(self, gpa: int) -> int:
        """Read a little-endian 32-bit value, aligned or not."""
        return self._read_int(gpa, _U32)

    def read_u64(self, gpa: int) -> int:
        """Read a little-endian 64-bit value, aligned or not."""
        return self._read_int(gpa, _U64)

    def write_u8(self, gpa: int, value: int) -> None:
        """Write the low 8 bits of `value`."""
        self._write_int(gpa, value, _U8)

    def write_u16(self, gpa: int, value: int) -> None:
        """Write the low 16 bits of `value`, little-endian."""
        self._write_int(gpa, value, _U16)

    def write_u32(self, gpa: int, value: int) -> None:
        """Write the low 32 bits of `value`, little-endian."""
        self._write_int(gpa, value, _U32)

    def write_u64(self, gpa: int, value: int) -> None:
        """Write the low 64 bits of `value`, little-endian."""
        self._write_int(gpa, value, _U64)

    def hva(self, gpa: int) -> int:
        """Translate a guest-physical address to the host-virtual address that backs it."""
        region = self.find(gpa, 1, "translation")
        return region.hva + gpa - region.gpa

    def hpa(self, gpa: int) -> int | None:
        """Translate a guest-physical address to the host-physical one that backs it now, by /proc/self/pagemap.

        Returns None where the page is not populated, or where the host hides frame numbers (they need CAP_SYS_ADMIN).
        The host may move the page at any time after.
        """
        hva = self.hva(gpa)
        try:
            fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            entry = int.from_bytes(os.pread(fd, 8, (hva // PAGE_SIZE) * 8), "little")
        finally:
            os.close(fd)
        frame = entry & _PAGEMAP_PFN
        return frame * PAGE_SIZE + hva % PAGE_SIZE if entry & _PAGEMAP_PRESENT and frame else None

    def unmap(self, gpa: int, size: int = PAGE_SIZE) -> None:
        """Drop the host's mapping of whole pages: their contents stay, the guest's next access to them faults in the host."""
        region = self.find(gpa, size, "unmapping")
        region.unmap(gpa - region.gpa, size)

    def clear(self) -> None:
        """Give every page back to the host: all RAM reads as zeros again, as after power-on."""
        for region in self.regions:
            region.discard()

    def close(self) -> None:
        """Unmap all regions; arrays that a caller still holds stay valid."""
        regions, self.regions = self.regions, ()
        for region in regions:
            region.close()
