"""Decoding of KVM's statistics, on files made for it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import HostError
from pyvmm.pykvm import StatsFd, layout
from pyvmm.pykvm.errors import ClosedError

KINDS = ("cumulative", "instant", "peak", "linear-hist", "log-hist")
UNITS = ("none", "bytes", "seconds", "cycles", "boolean")
NAME_SIZE = 48


@dataclass(frozen=True)
class Counted:
    """One counter of a made-up file, fields as KVM encodes them."""

    name: str = "x"
    kind: int = 0
    unit: int = 0
    base: int = 0
    exponent: int = 0
    bucket_size: int = 0
    values: tuple[int, ...] = (1,)


counters = st.builds(
    Counted,
    name=st.from_regex(r"[a-z][a-z0-9_]{0,40}", fullmatch=True),
    kind=st.integers(0, 4),
    unit=st.integers(0, 4),
    base=st.integers(0, 1),
    exponent=st.integers(-20, 20),
    bucket_size=st.integers(0, 2**32 - 1),
    values=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12).map(tuple),
)


def make_file(counted: list[Counted], gap: int = 0) -> int:
    """Write a statistics file as KVM lays it out, with `gap` bytes between its parts, and return its descriptor."""
    entry = np.dtype([("desc", layout.STATS_DESC), ("name", f"S{NAME_SIZE}")])
    table = np.zeros(len(counted), entry)
    data: list[int] = []
    for at, one in enumerate(counted):
        flags = one.kind | one.unit << 4 | one.base << 8
        desc = (flags, one.exponent, len(one.values), 8 * len(data), one.bucket_size)
        table[at] = (desc, one.name.encode())
        data += one.values
    id_offset = layout.STATS_HEADER.itemsize + gap
    desc_offset = id_offset + NAME_SIZE + gap
    data_offset = desc_offset + table.nbytes + gap
    head = np.array((0, NAME_SIZE, len(counted), id_offset, desc_offset, data_offset), layout.STATS_HEADER)
    fd = os.memfd_create("stats")
    os.pwrite(fd, head.tobytes(), 0)
    os.pwrite(fd, b"kvm-1/vcpu-0".ljust(NAME_SIZE, b"\0"), id_offset)
    os.pwrite(fd, table.tobytes(), desc_offset)
    os.pwrite(fd, np.array(data, np.uint64).tobytes(), data_offset)
    return fd


@given(counted=st.lists(counters, max_size=8, unique_by=lambda one: one.name), gap=st.integers(0, 3))
def test_every_counter_comes_back(counted: list[Counted], gap: int) -> None:
    with StatsFd(make_file(counted, gap), "test") as stats:
        assert stats.id == "kvm-1/vcpu-0"
        read = stats.read()
        assert list(read) == [one.name for one in counted]
        for one in counted:
            stat = read[one.name]
            assert stat.values == one.values
            assert stat.value == sum(one.values)
            about = stat.descriptor
            assert (about.kind, about.unit) == (KINDS[one.kind], UNITS[one.unit])
            assert about.base == (2 if one.base else 10)
            assert (about.exponent, about.bucket_size) == (one.exponent, one.bucket_size)
        assert stats.read_values() == {one.name: one.values[0] for one in counted if len(one.values) == 1}


@pytest.mark.parametrize(
    ("unit", "base", "exponent", "text"),
    [(0, 0, 0, "none"), (2, 0, -9, "10^-9 seconds"), (1, 1, 10, "2^10 bytes"), (3, 0, 0, "cycles")],
)
def test_unit_text(unit: int, base: int, exponent: int, text: str) -> None:
    with StatsFd(make_file([Counted(unit=unit, base=base, exponent=exponent)]), "test") as stats:
        assert stats.descriptors[0].unit_text == text


def test_kinds_and_units_of_the_future_are_named_by_number() -> None:
    with StatsFd(make_file([Counted(kind=9, unit=11)]), "test") as stats:
        assert (stats.descriptors[0].kind, stats.descriptors[0].unit) == ("unknown-9", "unknown-11")


def test_a_short_file_is_an_error_and_leaks_nothing() -> None:
    fd = make_file([Counted()])
    os.ftruncate(fd, 30)
    with pytest.raises(HostError, match="early"):
        StatsFd(fd, "test")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_closed() -> None:
    stats = StatsFd(make_file([Counted()]), "vCPU 0 statistics")
    stats.close()
    stats.close()
    with pytest.raises(ClosedError, match="vCPU 0 statistics is closed"):
        stats.read()
