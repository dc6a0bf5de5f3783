"""What `pyvmm lab check` finds and says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.host.lab import packages
from pyvmm.host.lab.packages import Part, find_tool, install_hint, lab_parts, require


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with nothing on PATH, no system folders and no kernel."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYVMM_LAB_KERNEL", raising=False)
    monkeypatch.setattr(packages, "_SYSTEM_FOLDERS", ())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    return tmp_path


def tool(path: Path, content: bytes = b"#!/bin/sh\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def test_every_part_names_its_package(bare: Path) -> None:
    for part in lab_parts():
        assert part.package.startswith(("Debian: ", "PyPI: ")) and part.purpose and part.labs
    assert {part.name for part in lab_parts("amd") if part.path is None} >= {
        "qemu-system-x86_64",
        "virtme-run",
        "busybox",
    }
    assert "bochs" not in {part.name for part in lab_parts("amd")}
    assert "virtme-run" not in {part.name for part in lab_parts("intel")}


def test_what_is_missing_is_one_line_with_the_way_out(bare: Path) -> None:
    with pytest.raises(HostError) as caught:
        require("amd")
    message = str(caught.value)
    assert "\n" not in message
    assert "qemu-system-x86_64" in message and "apt-get install" in message and "pip install virtme-ng" in message


def test_tools_beside_python_come_first(bare: Path) -> None:
    on_path = tool(bare / "virtme-run")
    assert find_tool("virtme-run") == str(on_path)
    beside = tool(bare / "venv" / "virtme-run")
    assert find_tool("virtme-run") == str(beside)


def test_busybox_has_to_be_static(bare: Path) -> None:
    def path() -> str | None:
        return next(part.path for part in lab_parts("amd") if part.name == "busybox")

    tool(bare / "busybox", b"\x7fELF" + bytes(600) + b"/lib64/ld-linux-x86-64.so.2\0")
    assert path() is None
    static = tool(bare / "busybox", b"\x7fELF" + bytes(6000))
    assert path() == str(static)


def test_install_hint_joins_the_tools() -> None:
    parts = [
        Part(name, ("amd",), package, "", None)
        for name, package in (("a", "Debian: x y"), ("b", "PyPI: z"), ("c", "Debian: x y"))
    ]
    assert install_hint(parts) == "apt-get install x y && pip install z"
    assert install_hint([]) == ""


def test_check_ends_with_status_2_where_something_is_missing(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    argv = [sys.executable, "-m", "pyvmm", "lab", "check", "--cpu", "amd"]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env=environment, cwd=Path(__file__).parents[2]
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("amd lab: ")
    missing = [line for line in lines if line.startswith("  missing")]
    assert (done.returncode == 2) is bool(missing)
    assert any("qemu-system-x86_64" in line and "Debian: qemu-system-x86" in line for line in missing)
    assert lines[-1].startswith("To install what is missing: ")
