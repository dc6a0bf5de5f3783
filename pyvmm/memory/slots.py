"""Memory slots: which region KVM knows under which number, with which flags, and its dirty log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyvmm.errors import UsageError
from pyvmm.memory.region import PAGE_SIZE, Region
from pyvmm.pykvm import MemFlag, Vm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from pyvmm.pykvm.lazy import np


class Slot:
    """One registered memory slot (KVM API, KVM_SET_USER_MEMORY_REGION)."""

    __slots__ = ("flags", "number", "region")

    def __init__(self, number: int, region: Region, flags: int = 0) -> None:
        self.number = number
        self.region = region
        self.flags = flags

    @property
    def pages(self) -> int:
        """Tell the number of 4 KiB pages."""
        return self.region.size // PAGE_SIZE


class SlotTable:
    """The memory slots of one VM. A range that is not in the table exits as MMIO when the guest touches it."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._slots: dict[int, Slot] = {}

    def __iter__(self) -> Iterator[Slot]:
        return iter(tuple(self._slots.values()))

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, region: Region, *, readonly: bool = False, log_dirty: bool = False) -> Slot:
        """Register a region under the lowest free number.

        A guest write to a read-only slot exits as MMIO; `log_dirty` makes KVM record written pages for `dirty`.

        Raises:
            UsageError: the range overlaps a registered one.
            KvmError: KVM refuses the slot.
        """
        for other in self._slots.values():
            if region.gpa < other.region.end and other.region.gpa < region.end:
                raise UsageError(
                    f"memory slot {region.gpa:#x}-{region.end - 1:#x} overlaps slot {other.number} "
                    f"at {other.region.gpa:#x}-{other.region.end - 1:#x}"
                )
        number = next(n for n in range(len(self._slots) + 1) if n not in self._slots)
        slot = Slot(number, region, MemFlag.READONLY * readonly | MemFlag.LOG_DIRTY_PAGES * log_dirty)
        self._register(slot)
        self._slots[number] = slot
        return slot

    def set_log_dirty(self, slot: Slot, on: bool) -> None:
        """Start or stop the dirty log of a slot; starting clears it."""
        changed = Slot(slot.number, slot.region, slot.flags & ~MemFlag.LOG_DIRTY_PAGES | MemFlag.LOG_DIRTY_PAGES * on)
        self._register(changed)
        slot.flags = changed.flags

    def remove(self, slot: Slot) -> None:
        """Take a slot away from the guest; its region stays mapped in this process."""
        self._vm.set_user_memory_region(slot.number, slot.region.gpa, 0, slot.region.hva)
        del self._slots[slot.number]

    def dirty(self, slot: Slot) -> NDArray[np.bool_]:
        """Return which pages the guest wrote since the last call, as a mask of shape (pages,); the log restarts empty."""
        if not slot.flags & MemFlag.LOG_DIRTY_PAGES:
            raise UsageError(f"memory slot {slot.number} keeps no dirty log: set_log_dirty(slot, True) first")
        return self._vm.get_dirty_log(slot.number, slot.pages)

    def _register(self, slot: Slot) -> None:
        self._vm.set_user_memory_region(slot.number, slot.region.gpa, slot.region.size, slot.region.hva, slot.flags)
