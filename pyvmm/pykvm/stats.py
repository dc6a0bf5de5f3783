"""KVM's own counters, read from the descriptor that KVM_GET_STATS_FD returns."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import HostError
from pyvmm.pykvm.errors import ClosedError
from pyvmm.pykvm.handle import Handle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyvmm.pykvm import layout
else:
    from pyvmm.pykvm.lazy import layout, np

_KINDS = ("cumulative", "instant", "peak", "linear-hist", "log-hist")
_UNITS = ("none", "bytes", "seconds", "cycles", "boolean")
_BASES = (10, 2)


def _name(table: tuple[str, ...], at: int) -> str:
    return table[at] if at < len(table) else f"unknown-{at}"


class StatDescriptor(NamedTuple):
    """What KVM says about one counter.

    Attributes:
        name: KVM's name for it.
        kind: cumulative, instant, peak, linear-hist or log-hist.
        unit: none, bytes, seconds, cycles or boolean.
        base, exponent: a raw value times base**exponent is in `unit`.
        size: how many values it has: 1, or a histogram's buckets.
        bucket_size: width of a bucket of a linear histogram, else 0.
        offset: byte offset of its first value in the data block.
    """

    name: str
    kind: str
    unit: str
    base: int
    exponent: int
    size: int
    bucket_size: int
    offset: int

    @property
    def unit_text(self) -> str:
        """The unit with its scale, such as ``10^-9 seconds``."""
        return self.unit if self.exponent == 0 else f"{self.base}^{self.exponent} {self.unit}"


class Stat(NamedTuple):
    """One counter at one moment: its raw values, unscaled, and what they mean."""

    descriptor: StatDescriptor
    values: tuple[int, ...]

    @property
    def value(self) -> int:
        """The raw value; a histogram's is the sum of its buckets."""
        return self.values[0] if len(self.values) == 1 else sum(self.values)


class StatsFd(Handle):
    """A statistics descriptor. The descriptors never change, so they are decoded once; reading is one pread.

    Attributes:
        id: KVM's name for the VM or vCPU.
        descriptors: every counter, in KVM's order.
    """

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        try:
            self._decode()
        except BaseException:
            self.close()
            raise

    def _decode(self) -> None:
        head = np.frombuffer(self._pread(layout.STATS_HEADER.itemsize, 0), layout.STATS_HEADER)[0]
        count, name_size = int(head["num_desc"]), int(head["name_size"])
        entry = np.dtype([("desc", layout.STATS_DESC), ("name", f"S{name_size}")])
        table = np.frombuffer(self._pread(entry.itemsize * count, int(head["desc_offset"])), entry)
        self.id = self._pread(name_size, int(head["id_offset"])).split(b"\0")[0].decode()
        self.descriptors = tuple(self._describe(one["desc"], one["name"]) for one in table)
        self._data_offset = int(head["data_offset"])
        self._data_size = max((one.offset + 8 * one.size for one in self.descriptors), default=0)

    @staticmethod
    def _describe(desc: np.void, name: bytes) -> StatDescriptor:
        flags = int(desc["flags"])
        base = flags >> 8 & 0xF
        return StatDescriptor(
            name=name.decode(),
            kind=_name(_KINDS, flags & 0xF),
            unit=_name(_UNITS, flags >> 4 & 0xF),
            base=_BASES[base] if base < len(_BASES) else 10,
            exponent=int(desc["exponent"]),
            size=int(desc["size"]),
            bucket_size=int(desc["bucket_size"]),
            offset=int(desc["offset"]),
        )

    def _pread(self, size: int, offset: int) -> bytes:
        if self.fd < 0:
            raise ClosedError(self.name)
        data = b""
        while len(data) < size:
            part = os.pread(self.fd, size - len(data), offset + len(data))
            if not part:
                raise HostError(f"{self.name}: KVM ended them {size - len(data)} bytes early; use a newer kernel")
            data += part
        return data

    def _data(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._pread(self._data_size, self._data_offset), np.uint64)

    def read(self) -> dict[str, Stat]:
        """Return every counter, raw values with their descriptors, by name."""
        data = self._data().tolist()
        return {
            one.name: Stat(one, tuple(data[one.offset // 8 : one.offset // 8 + one.size])) for one in self.descriptors
        }

    def read_values(self) -> dict[str, int]:
        """Return every counter that is a single number, raw, by name: the quick way to take differences."""
        data = self._data().tolist()
        return {one.name: data[one.offset // 8] for one in self.descriptors if one.size == 1}
