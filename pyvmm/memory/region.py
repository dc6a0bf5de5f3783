"""A region: one contiguous range of guest-physical memory, backed by a memfd and seen as a NumPy array."""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvmm.errors import HostError, UsageError

PAGE_SIZE = 4096
HUGE_PAGE_SIZE = 2 << 20
HUGEPAGE_MODES = ("none", "thp", "2M")

_THP_SHMEM = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
_MAP_NORESERVE = 0x4000  # <asm-generic/mman.h>; Python's mmap names it from 3.13 on


class Region:
    """Guest-physical range `[gpa, gpa + size)` on a memfd: shareable, zero-filled, populated on first touch.

    Attributes:
        gpa: first guest-physical address, a multiple of 4 KiB.
        size: length in bytes, a multiple of 4 KiB (of 2 MiB with hugepages "2M").
        hva: host-virtual address of the mapping.
        fd: the memfd, open until `close`.
        view: writable memoryview of all bytes.
    """

    def __init__(self, gpa: int, size: int, *, hugepages: str = "none", name: str = "pyvmm-ram") -> None:
        """Map a new region.

        Args:
            hugepages: "none", "thp" (ask for transparent huge pages) or "2M" (hugetlbfs pages, reserved by the administrator).

        Raises:
            UsageError: misaligned or empty range, unknown `hugepages`.
            HostError: the host has not enough memory, address space or huge pages.
        """
        if hugepages not in HUGEPAGE_MODES:
            raise UsageError(f"hugepages={hugepages!r}: use one of {', '.join(HUGEPAGE_MODES)}")
        if hugepages == "thp" and _thp_policy() in ("never", "deny"):
            raise HostError(
                f"transparent huge pages are off for shared memory here: as root, echo advise > {_THP_SHMEM}, or use 2M"
            )
        unit = HUGE_PAGE_SIZE if hugepages == "2M" else PAGE_SIZE
        if size <= 0 or size % unit or gpa < 0 or gpa % PAGE_SIZE:
            raise UsageError(f"a region of {size:#x} bytes at {gpa:#x} is not made of whole {unit >> 10} KiB pages")
        self.gpa = gpa
        self.size = size
        self.fd = -1
        flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB | os.MFD_HUGE_2MB if hugepages == "2M" else 0)
        try:
            self.fd = os.memfd_create(name, flags)
            os.ftruncate(self.fd, size)
            # Without a reservation a guest larger than the free memory starts, and pays for the pages that it touches.
            self._mapping = mmap.mmap(self.fd, size, mmap.MAP_SHARED | (0 if hugepages == "2M" else _MAP_NORESERVE))
        except (OSError, ValueError, OverflowError) as error:
            if self.fd >= 0:
                os.close(self.fd)
            raise HostError(_no_memory(size, hugepages, error)) from None
        if hugepages == "thp":
            try:
                self._mapping.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                os.close(self.fd)
                raise HostError("this host's kernel has no transparent huge pages: use hugepages none or 2M") from None
        self.view = memoryview(self._mapping)
        self.hva: int = int(np.frombuffer(self._mapping, np.uint8).__array_interface__["data"][0])

    @property
    def end(self) -> int:
        """Tell the guest-physical address just past the region."""
        return self.gpa + self.size

    def array(self, offset: int = 0, count: int = -1, dtype: Any = np.uint8) -> NDArray[Any]:
        """View `count` items (all that fit by default) from byte `offset` on as a writable array that shares the guest's memory."""
        return np.frombuffer(self._mapping, dtype, count, offset)

    def discard(self) -> None:
        """Give every page back to the host: the region reads as zeros again, as after power-on."""
        self._mapping.madvise(mmap.MADV_REMOVE)

    def unmap(self, offset: int, size: int) -> None:
        """Take whole pages out of this process's page tables, and so out of KVM's; the contents stay, the next touch faults."""
        self._mapping.madvise(mmap.MADV_DONTNEED, offset, size)

    def close(self) -> None:
        """Unmap the region. Arrays that a caller still holds stay valid: the memory then goes when the last of them does."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self.view.release()
        try:
            self._mapping.close()
        except BufferError:
            return  # a live view keeps the mapping; its last reference unmaps it


def _thp_policy() -> str:
    """Return the kernel's choice for transparent huge pages in shared memory, "" where it cannot be read."""
    try:
        with open(_THP_SHMEM, encoding="ascii") as file:
            return file.read().partition("[")[2].partition("]")[0]
    except OSError:
        return ""


def _no_memory(size: int, hugepages: str, error: Exception) -> str:
    if hugepages == "2M":
        need = size // HUGE_PAGE_SIZE
        return f"{need} huge pages of 2 MiB are not free on this host: as root, echo {need} > /proc/sys/vm/nr_hugepages"
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return f"this host cannot map {size >> 20} MiB of guest memory ({reason}): ask for less"
