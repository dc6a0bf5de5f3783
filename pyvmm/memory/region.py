"""A region: one contiguous range of guest-physical memory, seen as a memoryview or a NumPy array.

With small pages, or those of hugetlbfs, it is a memfd, which can be shared. With transparent huge pages it is private
memory, for distributions allow them to that alone. What a page costs is a fault in the host, an exit and, where the
CPU walks two dimensions, a longer walk: a kernel that starts touches some 25,000 of 4 KiB, or 50 of 2 MiB.
"""

from __future__ import annotations

import mmap
import os
from itertools import count
from typing import TYPE_CHECKING, Any

from pyvmm.errors import HostError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from pyvmm.pykvm.lazy import np

PAGE_SIZE = 4096
HUGE_PAGE_SIZE = 2 << 20
HUGEPAGE_MODES = ("auto", "none", "thp", "2M")

_THP = "/sys/kernel/mm/transparent_hugepage/enabled"
_MAP_NORESERVE = 0x4000  # <asm-generic/mman.h>; Python's mmap names it from 3.13 on
_ZERO = "/dev/zero"
_zero_offsets = count(1)
_ZERO_UNIT = 1 << 44


class Region:
    """Guest-physical range `[gpa, gpa + size)`: zero-filled, populated on first touch.

    Attributes:
        gpa: first guest-physical address, a multiple of 4 KiB.
        size: length in bytes, a multiple of 4 KiB (of 2 MiB with hugepages "2M").
        hva: host-virtual address of the mapping, aligned as the guest-physical one is.
        fd: the memfd, open until `close`; -1 for private memory.
        view: writable memoryview of all bytes.
    """

    def __init__(self, gpa: int, size: int, *, hugepages: str = "none", name: str = "pyvmm-ram") -> None:
        """Map a new region.

        Args:
            hugepages: "none", "thp" (transparent huge pages), "auto" (those if the host allows them) or "2M" (hugetlbfs
                pages, reserved by the administrator).

        Raises:
            UsageError: misaligned or empty range, unknown `hugepages`.
            HostError: the host has not enough memory, address space or huge pages.
        """
        if hugepages not in HUGEPAGE_MODES:
            raise UsageError(f"hugepages={hugepages!r}: use one of {', '.join(HUGEPAGE_MODES)}")
        transparent = hugepages in ("auto", "thp") and _thp_policy() not in ("never", "")
        if hugepages == "thp" and not transparent:
            raise HostError(f"transparent huge pages are off here: as root, echo madvise > {_THP}, or use 2M")
        unit = HUGE_PAGE_SIZE if hugepages == "2M" else PAGE_SIZE
        if size <= 0 or size % unit or gpa < 0 or gpa % PAGE_SIZE:
            raise UsageError(f"a region of {size:#x} bytes at {gpa:#x} is not made of whole {unit >> 10} KiB pages")
        self.gpa = gpa
        self.size = size
        self.fd = -1
        self._closed = True  # until there is something to close
        self._offset = 0
        try:
            if transparent and size >= HUGE_PAGE_SIZE:
                self._map_private()
            else:
                self._map_memfd(name, hugepages == "2M")
        except (OSError, ValueError, OverflowError) as error:
            if self.fd >= 0:
                os.close(self.fd)
            raise HostError(_no_memory(size, hugepages, error)) from None
        self._closed = False
        self.view = memoryview(self._mapping)[self._offset : self._offset + size]

    def _map_memfd(self, name: str, huge: bool) -> None:
        flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB | os.MFD_HUGE_2MB if huge else 0)
        self.fd = os.memfd_create(name, flags)
        os.ftruncate(self.fd, self.size)
        # Without a reservation a guest larger than the free memory starts, and pays for the pages that it touches.
        self._mapping = mmap.mmap(self.fd, self.size, mmap.MAP_SHARED | (0 if huge else _MAP_NORESERVE))
        self.hva = _address(self._mapping, os.fstat(self.fd).st_ino, 0)

    def _map_private(self) -> None:
        # A private mapping of /dev/zero is anonymous memory (drivers/char/mem.c) that still has an offset, by which it can
        # be told from others in /proc/self/maps. The room to align it to huge pages is never touched.
        zero = os.open(_ZERO, os.O_RDWR | os.O_CLOEXEC)
        try:
            offset = next(_zero_offsets) * _ZERO_UNIT
            flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
            self._mapping = mmap.mmap(zero, self.size + HUGE_PAGE_SIZE, flags, offset=offset)
            start = _address(self._mapping, os.fstat(zero).st_ino, offset)
        finally:
            os.close(zero)
        self._offset = (self.gpa - start) % HUGE_PAGE_SIZE
        self.hva = start + self._offset
        self._mapping.madvise(mmap.MADV_HUGEPAGE, self._offset, self.size)

    @property
    def end(self) -> int:
        """Tell the guest-physical address just past the region."""
        return self.gpa + self.size

    def array(self, offset: int = 0, count: int = -1, dtype: Any = "u1") -> NDArray[Any]:
        """View `count` items (all that fit by default) from byte `offset` on as a writable array that shares the guest's memory."""
        if count < 0:
            count = (self.size - offset) // np.dtype(dtype).itemsize
        return np.frombuffer(self._mapping, dtype, count, self._offset + offset)

    def discard(self) -> None:
        """Give every page back to the host: the region reads as zeros again, as after power-on."""
        if self.fd >= 0:
            self._mapping.madvise(mmap.MADV_REMOVE)
        else:
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def unmap(self, offset: int, size: int) -> None:
        """Take whole pages out of this process's page tables, and so out of KVM's; the contents stay, the next touch faults.

        The pages of private memory have no other place: they are written anew, and what another thread or vCPU writes to
        them meanwhile is lost.
        """
        if self.fd >= 0:
            self._mapping.madvise(mmap.MADV_DONTNEED, offset, size)
            return
        contents = bytes(self.view[offset : offset + size])
        self._mapping.madvise(mmap.MADV_DONTNEED, self._offset + offset, size)
        self.view[offset : offset + size] = contents

    def close(self) -> None:
        """Unmap the region. Arrays that a caller still holds stay valid: the memory then goes when the last of them does."""
        if self._closed:
            return
        self._closed = True
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.view.release()
        try:
            self._mapping.close()
        except BufferError:
            return  # a live view keeps the mapping; its last reference unmaps it


def _address(mapping: mmap.mmap, inode: int, offset: int) -> int:
    """Return the address of a mapping by the file behind it, as /proc/self/maps has it; NumPy knows it too, but slowly."""
    try:
        with open("/proc/self/maps", "rb") as file:
            for line in file:
                span, _, at, _, number = line.split(None, 5)[:5]
                if int(number) == inode and int(at, 16) == offset:
                    return int(span.partition(b"-")[0], 16)
    except OSError:
        pass  # no /proc here
    address: int = np.frombuffer(mapping, "u1").__array_interface__["data"][0]
    return address


def _thp_policy() -> str:
    """Return the kernel's choice for transparent huge pages, "" where it has none."""
    try:
        with open(_THP, encoding="ascii") as file:
            return file.read().partition("[")[2].partition("]")[0]
    except OSError:
        return ""


def _no_memory(size: int, hugepages: str, error: Exception) -> str:
    if hugepages == "2M":
        need = size // HUGE_PAGE_SIZE
        return f"{need} huge pages of 2 MiB are not free on this host: as root, echo {need} > /proc/sys/vm/nr_hugepages"
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return f"this host cannot map {size >> 20} MiB of guest memory ({reason}): ask for less"
