"""Initial RAM disks: what Linux takes is let through, all else is refused in one line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot import BootOptions, load
from pyvmm.boot.cpio import CpioArchive
from pyvmm.boot.initrd import check_initrd
from pyvmm.boot.source import Source
from pyvmm.errors import ImageError
from pyvmm.memory import GuestMemory
from tests.unit.boot_images import PT_NOTE, Part, make_bzimage, make_elf

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..", "TRAILER!!!")
)
ARCHIVES = st.dictionaries(NAMES, st.binary(max_size=300), max_size=5)


def archive(files: dict[str, bytes]) -> bytes:
    made = CpioArchive()
    for name, content in files.items():
        made.file(name, content)
    return made.to_bytes()


def check(data: bytes) -> None:
    with Source(data, "initrd") as source:
        check_initrd(source)


GOOD = archive({"init": b"#!/bin/sh\n", "bin/sh": b"x" * 5000})


def disk(offset: int, magic: bytes) -> bytes:
    return b"\xeb".ljust(offset, b"\xaa") + magic + bytes(5000)


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        bytes(512) + GOOD,
        GOOD + bytes(300) + GOOD,
        GOOD + gzip.compress(GOOD),
        gzip.compress(GOOD),
        bz2.compress(GOOD),
        lzma.compress(GOOD),
        lzma.compress(GOOD, format=lzma.FORMAT_ALONE),
        lzma.compress(GOOD, format=lzma.FORMAT_ALONE, filters=[{"id": lzma.FILTER_LZMA1, "dict_size": 4096}]),
        b"\x89LZO\0\x0d\x0a\x1a\x0a" + bytes(50),
        b"\x02\x21\x4c\x18" + bytes(50),
        b"\x28\xb5\x2f\xfd" + bytes(50),
        disk(0x438, b"\x53\xef"),
        b"-rom1fs-" + bytes(5000),
        disk(0x200, b"\x45\x3d\xcd\x28"),
        b"hsqs" + bytes(5000),
        disk(0x410, b"\x8f\x13"),
        GOOD.replace(b"070701", b"070702"),
        GOOD[: GOOD.index(b"TRAILER") - 110],  # Linux does not miss the trailer
    ],
)
def test_what_linux_takes_is_let_through(data: bytes) -> None:
    check(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello\nworld\n", "looks like a text file: pack one with cpio -o -H newc"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "it starts with 89 50 4e 47 0d 0a 1a 0a"),
        (b"\x7fELF" + bytes(100), "an ELF file"),
        (b"070707" + bytes(200), "old portable format"),
        (b"\x04\x22\x4d\x18" + bytes(100), "lz4 frame"),
        (b"#!/bin/sh\n", "a script"),
        (bytes(0x101) + b"ustar" + bytes(500), "a tar archive"),
        (bytes(10000), "nothing but zero bytes"),
        (GOOD[:200], "truncated initrd: the cpio entry at byte"),
        (GOOD[:50], "truncated initrd: the cpio entry at byte 0x0 reaches past"),
        (archive({"a": b"x" * 5000, "b": b"y" * 5000}).replace(b"x" * 5000, b"x" * 4000), "no cpio header at byte"),
        (GOOD + b"what is this?", "behind a cpio archive"),
        (GOOD + GOOD + b"\xff" * 9, "behind 2 cpio archives"),
        (b"\0" + GOOD, "nothing known"),  # a header that is not aligned is none for Linux either
        (b"070701" + b"zzzzzzzz" * 13, "bad cpio header"),
    ],
)
def test_what_linux_does_not_take_is_refused_in_one_line(data: bytes, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        check(data)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@given(first=ARCHIVES, second=ARCHIVES, before=st.integers(0, 40), between=st.integers(0, 40))
def test_archives_with_zeros_around_them(
    first: dict[str, bytes], second: dict[str, bytes], before: int, between: int
) -> None:
    check(bytes(4 * before) + archive(first) + bytes(4 * between) + archive(second))
    check(bytes(4 * before) + archive(first) + bytes(between) + gzip.compress(archive(second)))


@given(files=ARCHIVES.filter(bool), data=st.data())
def test_a_cut_in_an_entry_is_found(files: dict[str, bytes], data: st.DataObject) -> None:
    whole = archive(files)
    # Where each entry ends, as the format says: header, name and content, each padded to four bytes.
    ends, at = [0], 0
    for name, content in files.items():
        at += -(-(110 + len(name.encode()) + 1) // 4) * 4 + len(content)
        ends.append(at)
        at = -(-at // 4) * 4
        ends.append(at)
    cut = data.draw(st.integers(1, at))
    if any(end <= cut <= -(-end // 4) * 4 for end in ends):
        check(whole[:cut])
    else:
        # Less than a magic number is no archive at all.
        with pytest.raises(ImageError, match="truncated" if cut >= 6 else None):
            check(whole[:cut])


@given(st.binary(min_size=1, max_size=3000))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    try:
        check(data)
    except ImageError as error:
        assert "\n" not in str(error)


def test_the_loaders_of_linux_ask(memory: GuestMemory, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\xde\xad" * 500)
    with pytest.raises(ImageError, match="no initrd that Linux can use") as caught:
        load(make_bzimage(), memory, BootOptions(initrd=garbage))
    assert caught.value.path == str(garbage)
    (tmp_path / "empty").touch()
    with pytest.raises(ImageError, match="the initrd is empty: give a cpio archive"):
        load(make_bzimage(), memory, BootOptions(initrd=tmp_path / "empty"))


@pytest.mark.parametrize("pvh", [False, True])
def test_only_kernels_that_are_linux_are_picky(memory: GuestMemory, pvh: bool) -> None:
    def note(owner: bytes, kind: int, value: bytes) -> bytes:
        return struct.pack("<III", len(owner) + 1, len(value), kind) + owner + b"\0" * (4 - len(owner) % 4) + value

    xen = note(b"Xen", 18, struct.pack("<I", 0x100000)) if pvh else b""
    for linux in (b"", note(b"Linux", 0x101, bytes(4)), note(b"Xen", 6, b"linux\0\0\0")):
        kernel = make_elf([Part(0x100000), Part(0, xen + linux + note(b"GNU", 3, bytes(20)), kind=PT_NOTE)])
        memory.clear()
        if linux:
            with pytest.raises(ImageError, match="no initrd that Linux can use"):
                load(kernel, memory, BootOptions(initrd=b"\xde\xad" * 500))
        else:
            load(kernel, memory, BootOptions(initrd=b"\xde\xad" * 500))
