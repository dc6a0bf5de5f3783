"""The examples, and the code in the README, run as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.kvm, pytest.mark.local]


def run(*command: str, cwd: Path = ROOT) -> str:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ten_line_device() -> None:
    assert run("examples/ten_line_device.py").splitlines()[-1] == "the guest read 42"


def test_guest_from_bytes() -> None:
    assert f"guest: {sum(range(1000))}  NumPy: {sum(range(1000))}" in run("examples/guest_from_bytes.py")


def test_exit_statistics(guests: Path) -> None:
    table = run("examples/exit_statistics.py")
    assert "com1" in table and "0x3f8" in table and "KVM's own counters: exits" in table


def test_the_program_on_pykvm(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "pykvm.md").read_text(), re.DOTALL)
    (tmp_path / "raw.py").write_text(program)
    assert run("raw.py", cwd=tmp_path).startswith("16 b'*'\n")


def test_the_readmes_program(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "dice.py").write_text(program)
    said = run("dice.py", cwd=tmp_path).splitlines()
    assert said[0] == "the guest halted with interrupts off"
    assert re.fullmatch("rolled [1-6]", said[1])
