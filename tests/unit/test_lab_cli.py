"""`pyvmm lab`: what cannot be is refused in one line, with status 2, before anything starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pyvmm(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pyvmm", *arguments]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60, cwd=ROOT
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lab"], "ACTION"),
        (["lab", "run"], "no command"),
        (["lab", "run", "--"], "no command"),
        (["lab", "run", "--cpu", "arm", "--", "true"], "--cpu"),
        (["lab", "run", "--set", "npt", "--", "true"], "NAME=VALUE"),
        (["lab", "run", "--set", "ept=off", "--", "true"], "kvm_intel"),
        (["lab", "run", "--mem", "much", "--", "true"], "much"),
        (["lab", "run", "--mem", "1M", "--", "true"], "too small"),
        (["lab", "run", "--cpus", "0", "--", "true"], "CPUs"),
        (["lab", "run", "--timeout", "0", "--", "true"], "seconds above 0"),
        (["lab", "run", "--share", "/nowhere/at/all", "--", "true"], "no folder"),
        (["lab", "shell"], "terminal"),
        (["lab", "check", "--cpu", "arm"], "--cpu"),
    ],
)
def test_refused(arguments: list[str], words: str) -> None:
    done = pyvmm(*arguments)
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""


def test_the_other_commands_do_not_pay_for_the_lab() -> None:
    program = "import sys, pyvmm.cli.boot, pyvmm.cli.host; print([name for name in sys.modules if 'host.lab' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
