"""The E820 memory map: what a PC's firmware tells an operating system about its memory (ACPI 6.5, section 15)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pyvmm.boot import layout

RAM = 1
RESERVED = 2

_NAMES = {RAM: "usable", RESERVED: "reserved"}


class E820Entry(NamedTuple):
    """A range of the memory map: first GPA, size in bytes, type (`RAM` or `RESERVED`)."""

    base: int
    size: int
    type: int

    def __str__(self) -> str:
        return f"{self.base:#012x}-{self.base + self.size:#012x} {_NAMES.get(self.type, f'type {self.type}')}"


def memory_map(ranges: Iterable[tuple[int, int]]) -> list[E820Entry]:
    """Build the map for RAM in `ranges`, (GPA, size) pairs in ascending order.

    Conventional memory ends at 0x9fc00, where a PC has its extended BIOS data area; from 640 KiB to 1 MiB lie video
    memory and firmware, of which the part from 0xf0000 on is listed as reserved, as firmware does; the pages that KVM
    needs on VT-x are reserved below 4 GiB.
    """
    entries: list[E820Entry] = []
    for base, size in ranges:
        end = base + size
        for start, stop, kind in (
            (0, layout.EBDA, RAM),
            (layout.EBDA, layout.VIDEO, RESERVED),
            (layout.BIOS, layout.HIGH_MEMORY, RESERVED),
            (layout.HIGH_MEMORY, end, RAM),
        ):
            first, last = max(base, start), min(end, stop)
            if first < last:
                entries.append(E820Entry(first, last - first, kind))
    entries.append(E820Entry(layout.KVM_IDENTITY_MAP, layout.KVM_RESERVED_SIZE, RESERVED))
    return sorted(entries)


def lower_upper_kib(ranges: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Return the KiB of conventional memory, and from 1 MiB to the first hole (Multiboot 0.6.96, section 3.3)."""
    low_end = next(iter(ranges))[1]
    return min(low_end, layout.EBDA) // 1024, max(0, low_end - layout.HIGH_MEMORY) // 1024
