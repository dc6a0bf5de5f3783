"""The KVM tests again and again: none may be flaky. Run with `make soak`; PYVMM_SOAK_RUNS sets how often (200)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.kvm
@pytest.mark.soak
@pytest.mark.parametrize("run", range(int(os.environ.get("PYVMM_SOAK_RUNS", "200"))))
def test_no_flake(guests: Path, run: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "kvm and not soak", "tests/kvm"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
