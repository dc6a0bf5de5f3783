"""cpio archives, read back by the cpio program and by a reader of our own."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot.cpio import CpioArchive, busybox_initrd
from pyvmm.errors import HostError, UsageError

Entry = tuple[str, int, bytes]


def _read(archive: bytes) -> list[Entry]:
    """Read a newc archive, strictly."""
    entries: list[Entry] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        assert archive[at + 110 + name_size - 1] == 0
        at = (at + 110 + name_size + 3) & ~3
        content = archive[at : at + size]
        assert len(content) == size
        at = (at + size + 3) & ~3
        if name == "TRAILER!!!":
            assert at == len(archive)
            return entries
        entries.append((name, mode, content))


_names = st.text(st.characters(categories=("L", "N"), max_codepoint=0x2FF), min_size=1, max_size=40)


@given(st.lists(st.tuples(_names, st.binary(max_size=50), st.integers(0, 0o7777))))
def test_what_went_in_comes_out(files: list[tuple[str, bytes, int]]) -> None:
    archive = CpioArchive()
    for name, content, mode in files:
        archive.file(name, content, mode)
    expected = [(name, stat.S_IFREG | mode, content) for name, content, mode in files]
    assert _read(archive.to_bytes()) == expected


def test_the_cpio_program_unpacks_it(tmp_path: Path) -> None:
    archive = CpioArchive()
    archive.directory("folder", 0o750)
    archive.file("folder/odd", b"12345", 0o640)
    archive.symlink("link", "folder/odd")
    done = subprocess.run(
        ["cpio", "-i", "--quiet"], cwd=tmp_path, input=archive.to_bytes(), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "link").read_bytes() == b"12345"
    assert os.readlink(tmp_path / "link") == "folder/odd"
    assert stat.S_IMODE((tmp_path / "folder/odd").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["", "/", "a\0b"])
def test_impossible_names(name: str) -> None:
    with pytest.raises(UsageError, match="name of a file"):
        CpioArchive().file(name, b"")


def test_busybox_archive(tmp_path: Path) -> None:
    program = tmp_path / "busybox"
    program.write_bytes(b"\x7fELF static")
    entries = {name: (mode, content) for name, mode, content in _read(busybox_initrd("#!/bin/sh\n", str(program)))}
    assert entries["init"] == (stat.S_IFREG | 0o755, b"#!/bin/sh\n")
    assert entries["bin/busybox"][1] == b"\x7fELF static"
    assert stat.S_ISCHR(entries["dev/console"][0])


def test_a_busybox_that_needs_libraries_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "busybox"
    program.write_bytes(b"\x7fELF....../lib64/ld-linux-x86-64.so.2\0")
    with pytest.raises(HostError, match="busybox-static"):
        busybox_initrd(busybox=str(program))


def test_no_busybox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="busybox-static"):
        busybox_initrd()
    with pytest.raises(HostError, match="No such file"):
        busybox_initrd(busybox=str(tmp_path / "none"))
