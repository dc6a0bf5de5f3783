"""Killing whoever started a lab, at any moment, leaves no process and no file, and changes nothing of the project."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 120


def processes(folder: Path) -> list[str]:
    """Return the command lines that speak of a folder: keeper, virtme-run and emulator all do."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found


def files(project: Path) -> dict[str, bytes]:
    """Return every file of the project with its content; bytecode that this host's Python caches does not count."""
    found = [path for path in project.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path): path.read_bytes() for path in found}


def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def emulated(folder: Path) -> bool:
    return any("qemu-system" in line or "bochs" in line for line in processes(folder))


def reached(moment: str, folder: Path, output: Path) -> bool:
    """Tell whether a lab with its temporary folder below `folder` has come so far."""
    if moment == "folder made":
        return bool(os.listdir(folder))
    if moment == "command running":
        return b"running" in output.read_bytes()
    return moment == "python started" or emulated(folder)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files with a short name: a longer one is not used for labs."""
    folder = Path(tempfile.mkdtemp(prefix="pyvmm-test-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    "moment", ["python started", "folder made", "emulator started", "kernel booting", "command running"]
)
def test_killed(tmp_path: Path, temporary: Path, moment: str, number: signal.Signals) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "pyvmm", project / "pyvmm", ignore=shutil.ignore_patterns("__pycache__"))
    before = files(project)
    output = tmp_path / "output"
    script = "echo x >new; echo x >pyvmm/__init__.py; rm pyvmm/errors.py; echo running; while :; do sleep 1; done"
    with open(output, "wb") as file:
        outer = subprocess.Popen(
            [sys.executable, "-m", "pyvmm", "lab", "run", "--", "sh", "-c", script],
            cwd=project,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
    try:
        time.sleep(0.3)  # Python's own start is not ours to keep quiet
        until(lambda: reached(moment, temporary, output), f"it does not come to this: {moment}", LIMIT)
        if moment == "kernel booting":
            time.sleep(2)
        outer.send_signal(number)
        status = outer.wait(20)
    finally:
        outer.kill()
        outer.wait()
    assert status in (-number, 128 + number)
    until(lambda: not processes(temporary), "processes are left", 10)
    until(lambda: not os.listdir(temporary), "files are left", 10)
    assert files(project) == before
    said = output.read_text()
    assert "Traceback" not in said
    assert ("running" in said) is (moment == "command running")
