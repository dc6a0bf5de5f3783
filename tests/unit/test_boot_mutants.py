"""Thousands of damaged images of every format: an error of ours in one line, or a start inside RAM; nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.boot import FORMATS, BootOptions, load
from pyvmm.errors import ImageError, UsageError
from pyvmm.memory import GuestMemory
from tests.unit.boot_images import (
    CODE,
    PT_NOTE,
    Part,
    make_bzimage,
    make_elf,
    make_multiboot_elf,
    make_multiboot_flat,
    make_note,
    make_pvh,
)

SEEDS = {
    "elf64": make_elf([Part(0x100000, CODE * 4, memsz=0x1000), Part(0x102000, CODE)]),
    "elf32": make_elf([Part(0x100000, CODE * 4, memsz=0x1000), Part(0x102000, CODE)], bits=32),
    "multiboot": make_multiboot_elf(flags=3),
    "multiboot-flat": make_multiboot_flat(bss_end=0x101000),
    "pvh": make_pvh(),
    "pvh-aligned-8": make_elf(
        [Part(0, make_note(b"Xen", 18, (0x100000).to_bytes(8, "little")), kind=PT_NOTE, align=8), Part(0x100000)],
        entry=0x100000,
    ),
    "bzimage": make_bzimage(),
    "bzimage-32": make_bzimage(xloadflags=0, version=0x206),
    "flat": CODE * 200,
}
EXTREMES = sorted(
    {
        value + delta
        for bits in (0, 7, 8, 12, 15, 16, 20, 31, 32, 40, 60, 63, 64)
        for value in (1 << bits,)
        for delta in (-1, 0, 1)
    }
)


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(4 << 20)
    yield memory
    memory.close()


@st.composite
def mutants(draw: st.DrawFn, seed: bytes) -> bytes:
    """Damage `seed` by up to five edits, mostly in its headers."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 5))):
        if not data:
            break
        reach = len(data) - 1 if draw(st.integers(0, 3)) == 0 else min(len(data) - 1, 0x268)
        at = draw(st.integers(0, reach))
        edit = draw(st.sampled_from(["bit", "field", "field", "field", "cut", "extend", "copy"]))
        if edit == "bit":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif edit == "field":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            at = at // width * width if draw(st.booleans()) else at
            value = draw(st.sampled_from(EXTREMES)) & ((1 << 8 * width) - 1)
            data[at : at + width] = value.to_bytes(width, "little")[: len(data) - at]
        elif edit == "cut":
            del data[at:]
        elif edit == "extend":
            data += bytes(draw(st.integers(1, 64)))
        else:
            source = draw(st.integers(0, len(data) - 1))
            piece = data[source : source + draw(st.integers(1, 64))]
            data[at : at + len(piece)] = piece
    return bytes(data)


def _check(image: bytes, memory: GuestMemory, options: BootOptions) -> None:
    try:
        result = load(image, memory, options)
    except (ImageError, UsageError) as error:
        assert str(error).isprintable()
        assert len(str(error)) < 400
        return
    assert memory.contains(result.entry, 1)
    ends = [(segment.gpa, segment.gpa + segment.size) for segment in result.segments]
    assert all(first[1] <= second[0] for first, second in pairwise(ends))
    assert all(memory.contains(segment.gpa, segment.size) for segment in result.segments)
    assert any(start <= result.entry < end for start, end in ends)
    assert result.describe()


_options = st.builds(
    BootOptions,
    format=st.none() | st.sampled_from(FORMATS),
    cmdline=st.sampled_from(["", "console=ttyS0", "x" * 300]),
    initrd=st.sampled_from([None, b"initrd", bytes(0x8000)]),
    mode=st.sampled_from([None, None, None, "real", "protected", "long"]),
    load_addr=st.none() | st.none() | st.sampled_from(EXTREMES),
    entry=st.none() | st.none() | st.sampled_from(EXTREMES),
)


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_load(name: str, memory: GuestMemory) -> None:
    assert memory.contains(load(SEEDS[name], memory).entry, 1)


@pytest.mark.parametrize("name", SEEDS)
def test_mutants_with_default_options(name: str, memory: GuestMemory) -> None:
    @settings(max_examples=300, deadline=None)
    @given(mutants(SEEDS[name]))
    def run(image: bytes) -> None:
        _check(image, memory, BootOptions())

    run()


@given(st.sampled_from(sorted(SEEDS)).flatmap(lambda name: mutants(SEEDS[name])), _options)
@settings(max_examples=1000, deadline=None)
def test_mutants_with_any_options(memory: GuestMemory, image: bytes, options: BootOptions) -> None:
    _check(image, memory, options)


@given(st.binary(min_size=1, max_size=3000), _options)
@settings(max_examples=300, deadline=None)
def test_random_bytes(memory: GuestMemory, image: bytes, options: BootOptions) -> None:
    _check(image, memory, options)
