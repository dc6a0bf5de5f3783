"""Stock kernels come to their shell every time: `make boots` runs this in the labs; PYVMM_BOOTS sets how often (10)."""

from __future__ import annotations

import os

import pytest

from pyvmm import EndReason
from tests.linux.dialog import KERNELS, booted

pytestmark = [pytest.mark.linux, pytest.mark.soak]

_GUESTS = [
    pytest.param(kernel, cpus, id=f"{kernel}-{cpus}", marks=pytest.mark.intel if cpus == 1 else ())
    for kernel in KERNELS
    for cpus in (1, 2)
]


@pytest.mark.parametrize("boot", range(int(os.environ.get("PYVMM_BOOTS", "10"))))
@pytest.mark.parametrize(("kernel", "cpus"), _GUESTS)
def test_a_shell_every_time(kernel: str, cpus: int, boot: int) -> None:
    with booted(kernel, cpus, cmdline="console=ttyS0 quiet") as shell:
        shell.wait()
        assert shell("nproc") == str(cpus)
        shell.type("poweroff -f")
        assert shell.end().reason is EndReason.POWER_OFF
