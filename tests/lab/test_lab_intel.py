"""The Intel lab for real: what its commands see, say and leave behind, and that it repeats itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyvmm
from pyvmm.host.lab import Lab, LabError

pytestmark = pytest.mark.lab

PARAMETERS = "/sys/module/kvm_intel/parameters"
SENT = "sent by the host\n"


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share") / "with 'quote, and comma"
    folder.mkdir()
    (folder / "sent").write_text(SENT)
    return folder


@pytest.fixture(scope="module")
def lab(share: Path) -> Iterator[Lab]:
    """One lab for all that does not end it, with EPT off."""
    with Lab("intel", ept=False, vpid=False, memory="1G", share=str(share), timeout=600) as lab:
        yield lab


def text(lab: Lab, *argv: str) -> str:
    result = lab.run(argv)
    assert result.status == 0, result
    return result.stdout.decode()


def test_ept_is_off_in_the_real_module(lab: Lab) -> None:
    assert lab.parameters["kvm_intel"]["ept"] == lab.parameters["kvm_intel"]["vpid"] == "N"
    assert text(lab, "cat", f"{PARAMETERS}/ept", f"{PARAMETERS}/unrestricted_guest") == "N\nN\n"
    assert text(lab, "uname", "-r").strip() == lab.release


def test_status_and_separate_streams(lab: Lab) -> None:
    result = lab.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.status, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert lab.run(["sh", "-c", "kill -TERM $$"]).status == 143
    missing = lab.run(["no-such-program-at-all"])
    assert missing.status == 127 and b"no-such-program-at-all" in missing.stderr


def test_input_arrives_whole(lab: Lab) -> None:
    data = bytes(range(256)) * 40
    assert lab.run(["md5sum"], input=data).stdout == subprocess.run(["md5sum"], input=data, capture_output=True).stdout
    assert lab.run(["cat"], input=data).stdout == data


def test_the_same_python_and_the_same_project(lab: Lab) -> None:
    code = "import sys, pyvmm; print(sys.executable, sys.prefix, sys.base_prefix, pyvmm.__file__, sys.flags.hash_randomization)"
    said = text(lab, sys.executable, "-c", code).split()
    assert said == [sys.executable, sys.prefix, sys.base_prefix, str(pyvmm.__file__), "0"]
    assert text(lab, "pwd").strip() == os.getcwd()


def test_the_share_goes_there_and_comes_back(lab: Lab, share: Path) -> None:
    assert text(lab, "cat", str(share / "sent")) == SENT
    (share / "sub").mkdir()
    result = lab.run(["sh", "-c", "mkdir -p new; echo back >new/file; echo more >>sent; exit 5"], cwd=str(share))
    assert result.status == 5
    assert (share / "new" / "file").read_text() == "back\n"
    assert (share / "sent").read_text() == SENT + "more\n"


def test_a_command_that_takes_too_long(lab: Lab, share: Path) -> None:
    result = lab.run(["sh", "-c", "echo begun >begun; while :; do :; done"], cwd=str(share), timeout=3)
    assert result.status == 124
    assert (share / "begun").read_text() == "begun\n"
    assert text(lab, "echo", "alive") == "alive\n"


def test_a_guest_runs_without_ept(lab: Lab) -> None:
    assert text(lab, sys.executable, "-m", "pyvmm", "boot", "guest:hello-elf64") == "Hello from ELF64 long mode\n"


def run_of_a_guest() -> dict[str, Any]:
    """Start a lab, boot one fixed guest in it, and return all that was counted and measured there, and what the clock said."""
    boot = f"{sys.executable} -m pyvmm boot -q --stats /tmp/stats.json guest:mode-tour >/dev/null"
    with Lab("intel", memory="1G", timeout=600) as lab:
        result = lab.run(["sh", "-c", f"{boot} && cat /tmp/stats.json && cat /proc/uptime"])
    assert result.status == 0, result
    document, _, uptime = result.stdout.decode().rstrip().rpartition("\n")
    return {"stats": json.loads(document), "uptime": uptime}


def test_three_runs_are_the_same_to_the_last_exit() -> None:
    first, second, third = run_of_a_guest(), run_of_a_guest(), run_of_a_guest()
    assert first == second == third
    assert first["stats"]["statistics"]["total"] > 0


def test_a_kernel_panic_ends_the_lab_at_once() -> None:
    with Lab("intel", memory="1G", timeout=600) as lab:
        began = time.monotonic()
        with pytest.raises(LabError, match="Kernel panic") as caught:
            lab.run(["sh", "-c", "echo c >/proc/sysrq-trigger"])
        assert "\n" not in str(caught.value)
        assert time.monotonic() - began < 60
        with pytest.raises(LabError):
            lab.run(["true"])
