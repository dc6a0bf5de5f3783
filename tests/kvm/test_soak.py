"""The KVM tests again and again: none may be flaky. Run with `make soak`; PYVMM_SOAK_RUNS sets how often (200)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

RUNS = int(os.environ.get("PYVMM_SOAK_RUNS", "200"))


@pytest.mark.kvm
@pytest.mark.soak
def test_no_flake(guests: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "kvm and not soak", "tests/kvm"]
    failed = []
    for run in range(RUNS):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            failed.append(f"run {run}:\n{done.stdout[-4000:]}")
    assert not failed, f"{len(failed)} of {RUNS} runs failed\n" + "\n".join(failed)
