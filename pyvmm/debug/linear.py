"""Guest memory seen through the guest's own page tables, as far as they lead anywhere.

RAM comes in whole pages: of a page, either everything can be read or nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.engine.state import CpuState
from pyvmm.errors import GuestMemoryError
from pyvmm.paging.result import Walk
from pyvmm.paging.state import READ, Access, AccessKind, PagingState
from pyvmm.paging.walk import walk

_PAGE = 0x1000
# A debugger's read: no right but presence matters, so the supervisor reads with SMAP lifted.
_PEEK = Access(AccessKind.READ, ac=True)

PhysicalRead = Callable[[int, int], bytes]
"""Returns `size` bytes at a GPA, or raises GuestMemoryError."""


class LinearMemory:
    """Linear (guest-virtual) memory of one vCPU state.

    Attributes:
        paging: the control state that the walks use.
        mask: what a linear address is cut to: 64 bits in long mode, else 32.
    """

    def __init__(self, state: CpuState, read: PhysicalRead, maxphyaddr: int = 52) -> None:
        """Look through the tables that `state` names, with `read` for physical memory."""
        self.paging = PagingState(state.cr0, state.cr3, state.cr4, state.efer, maxphyaddr)
        self.mask = (1 << 64) - 1 if state.mode == "long" else (1 << 32) - 1
        self._read = read

    def walk(self, gva: int, access: Access = READ) -> Walk:
        """Walk the page tables for a linear address."""
        return walk(self.paging, self, gva, access)

    def translate(self, gva: int) -> int | None:
        """Return the GPA behind a linear address, whatever its rights, or None."""
        return self.walk(gva, _PEEK).gpa

    def read(self, gva: int, size: int) -> bytes:
        """Return the bytes from `gva` on: `size` of them, or fewer where mapped RAM ends."""
        found = bytearray()
        while len(found) < size:
            here = (gva + len(found)) & self.mask
            chunk = self._page(here, min(size - len(found), _PAGE - here % _PAGE))
            if chunk is None:
                break
            found += chunk
        return bytes(found)

    def read_before(self, gva: int, size: int) -> bytes:
        """Return the bytes that end just before `gva`: `size` of them, or fewer where mapped RAM begins."""
        found = b""
        while len(found) < size and gva - len(found) > 0:
            end = gva - len(found)
            length = min(size - len(found), (end - 1) % _PAGE + 1)
            chunk = self._page((end - length) & self.mask, length)
            if chunk is None:
                break
            found = chunk + found
        return found

    def read_u32(self, gpa: int, /) -> int:
        """Read a 32-bit word of physical memory (for the walker)."""
        return int.from_bytes(self._physical(gpa, 4), "little")

    def read_u64(self, gpa: int, /) -> int:
        """Read a 64-bit word of physical memory (for the walker)."""
        return int.from_bytes(self._physical(gpa, 8), "little")

    def in_ram(self, gpa: int) -> bool:
        """Tell whether there is RAM at a GPA."""
        try:
            self._physical(gpa, 1)
        except GuestMemoryError:
            return False
        return True

    def _physical(self, gpa: int, size: int) -> bytes:
        data = bytes(self._read(gpa, size))
        if len(data) != size:
            raise GuestMemoryError(gpa, size, "read")
        return data

    def _page(self, gva: int, size: int) -> bytes | None:
        gpa = self.translate(gva)
        if gpa is None:
            return None
        try:
            return self._physical(gpa, size)
        except GuestMemoryError:
            return None
