"""The dirty log: which pages of a slot the guest wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.pykvm.constants import Cap
from pyvmm.pykvm.handle import Handle, address_of
from pyvmm.pykvm.ioctls import Ioctl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyvmm.pykvm import layout
else:
    from pyvmm.pykvm.lazy import layout, np

PAGE_SIZE = 4096


class DirtyLog(Handle):
    """The dirty-page side of a VM. Slots need MemFlag.LOG_DIRTY_PAGES."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self._slot_pages: dict[int, int] = {}

    def get_dirty_log(self, slot: int, pages: int) -> NDArray[np.bool_]:
        """Return which of a slot's pages were written since the last call: bool, shape (pages,) (KVM_GET_DIRTY_LOG).

        `pages` is the slot's size in 4 KiB pages; raises ValueError when it is another. The log is cleared, unless
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is enabled: then clear_dirty_log() does that. Raises KvmError ENOENT when the
        slot is not logged.
        """
        # KVM writes as many bits as the slot has pages, whatever room there is.
        if pages != (actual := self._slot_pages.get(slot, pages)):
            raise ValueError(f"slot {slot} has {actual} pages, not {pages}")
        bitmap = np.zeros((pages + 63) // 64, np.uint64)
        request = np.array((slot, 0, address_of(bitmap)), layout.DIRTY_LOG)
        self.exchange(Ioctl.GET_DIRTY_LOG, request)
        return np.unpackbits(bitmap.view(np.uint8), count=pages, bitorder="little").view(np.bool_)

    def clear_dirty_log(self, slot: int, mask: NDArray[np.bool_], first_page: int = 0) -> None:
        """Clear the log of the pages that `mask` marks and watch them for writes again.

        mask: bool, shape (pages,), for the slot's pages from `first_page` on. `first_page` must be a multiple of 64,
        and so must the count unless the mask reaches the slot's end. Needs KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 enabled.
        """
        self.require(Cap.MANUAL_DIRTY_LOG_PROTECT2)
        bitmap = np.zeros((len(mask) + 63) // 64, np.uint64)
        packed = np.packbits(mask, bitorder="little")
        bitmap.view(np.uint8)[: len(packed)] = packed
        request = np.array((slot, len(mask), first_page, address_of(bitmap)), layout.CLEAR_DIRTY_LOG)
        self.exchange(Ioctl.CLEAR_DIRTY_LOG, request)
