"""Guest memory while an image is loaded: what is taken, and where there is room for the loader's own structures."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from pyvmm.boot import layout
from pyvmm.boot.options import BootSegment
from pyvmm.errors import ImageError

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory


class LoadSpace:
    """Allotment of guest memory: the kernel claims fixed places first, the loader's structures go around it.

    Nothing here touches a page; the order of calls is all that decides who gets a place.
    """

    def __init__(self, memory: GuestMemory) -> None:
        """Start with all RAM of `memory` free."""
        self.memory = memory
        self._taken: list[tuple[int, int, str]] = []

    @property
    def segments(self) -> list[BootSegment]:
        """List what was claimed and placed, ascending."""
        return [BootSegment(name, start, end - start) for start, end, name in self._taken]

    def blocker(self, gpa: int, size: int) -> tuple[int, int, str] | None:
        """Return (start, end, name) of a piece that overlaps `[gpa, gpa + size)`, or None."""
        index = bisect_left(self._taken, (gpa,))
        if index and self._taken[index - 1][1] > gpa:
            return self._taken[index - 1]
        if index < len(self._taken) and self._taken[index][0] < gpa + size:
            return self._taken[index]
        return None

    def claim(self, name: str, gpa: int, size: int) -> None:
        """Take `[gpa, gpa + size)`, which the image demands.

        Raises:
            ImageError: not RAM, or taken.
        """
        if not self.memory.contains(gpa, size):
            raise ImageError(
                f"{name} at {gpa:#x}, {size:#x} bytes, lies outside the guest's RAM ({self.ram()}): "
                "give the guest more memory or link the kernel elsewhere"
            )
        other = self.blocker(gpa, size)
        if other:
            raise ImageError(f"{name} at {gpa:#x}, {size:#x} bytes, overlaps {other[2]} at {other[0]:#x}")
        self._take(name, gpa, size)

    def _take(self, name: str, gpa: int, size: int) -> None:
        if size:
            insort(self._taken, (gpa, gpa + size, name))

    def ram(self) -> str:
        """Describe where RAM lies, for messages."""
        return ", ".join(f"{gpa:#x}-{gpa + size:#x}" for gpa, size in self.memory.ranges)

    def free(self, gpa: int, size: int) -> bool:
        """Tell whether `[gpa, gpa + size)` is RAM and not taken."""
        return self.memory.contains(gpa, size) and self.blocker(gpa, size) is None

    def place(
        self,
        name: str,
        size: int,
        *,
        preferred: int | None = None,
        align: int = 16,
        low: int = layout.LOW_START,
        high: int = layout.LOW_END,
    ) -> int:
        """Take room for a structure of the loader: `preferred` if that is free, else the lowest fit in `[low, high)`.

        Raises:
            ImageError: there is no room.
        """
        if preferred is not None and self.free(preferred, size):
            self._take(name, preferred, size)
            return preferred
        for base, length in self.memory.ranges:
            gpa = _up(max(low, base), align)
            end = min(high, base + length)
            while gpa + size <= end:
                other = self.blocker(gpa, size)
                if other is None:
                    self._take(name, gpa, size)
                    return gpa
                gpa = _up(other[1], align)
        raise self._no_room(name, size, low, high)

    def place_high(self, name: str, size: int, *, low: int, high: int, align: int = layout.PAGE_SIZE) -> int:
        """Take room as high as possible in `[low, high)`.

        Raises:
            ImageError: there is no room.
        """
        for base, length in reversed(self.memory.ranges):
            start = max(low, base)
            gpa = (min(high, base + length) - size) // align * align
            while gpa >= start:
                other = self.blocker(gpa, size)
                if other is None:
                    self._take(name, gpa, size)
                    return gpa
                gpa = (other[0] - size) // align * align
        raise self._no_room(name, size, low, high)

    def _no_room(self, name: str, size: int, low: int, high: int) -> ImageError:
        return ImageError(
            f"no room for the {name}: {size:#x} bytes between {low:#x} and {high:#x} (RAM: {self.ram()}): "
            "give the guest more memory or a smaller image"
        )


def _up(value: int, align: int) -> int:
    return -(-value // align) * align
