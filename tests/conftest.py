"""What all tests share: the built guests, and a closing table of what ran where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.pykvm.module import kvm_module

ROOT = Path(__file__).resolve().parent.parent
_results: Counter[tuple[str, str]] = Counter()


_NEEDS_KVM = ("kvm", "linux", "switch")


def _place(item: pytest.Item) -> str:
    if item.get_closest_marker("lab") is not None:
        return "labs started by tests"
    if not _needs_kvm(item):
        return "no KVM needed"
    module = kvm_module()
    host = f"{lab} lab" if (lab := os.environ.get("PYVMM_LAB")) else "this host's /dev/kvm"
    return f"{host} ({module.name}, paging {module.paging})"


def _needs_kvm(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(marker) is not None for marker in _NEEDS_KVM)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties.append(("place", _place(item)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
        place = dict(report.user_properties).get("place", "?")
        _results[str(place), report.outcome] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("what ran where")
    for place in sorted({place for place, _ in _results}):
        counts = ", ".join(
            f"{count} {outcome}" for (where, outcome), count in sorted(_results.items()) if where == place
        )
        terminalreporter.write_line(f"{place}: {counts}")
    if path := os.environ.get("PYVMM_TEST_RESULTS"):
        table: dict[str, dict[str, int]] = {}
        for (place, outcome), count in sorted(_results.items()):
            table.setdefault(place, {})[outcome] = count
        Path(path).write_text(json.dumps(table))


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A KVM test never skips: a run without KVM must not look like one that passed.
    if _needs_kvm(item) and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.fail("this test needs /dev/kvm, readable and writable; there is none here", pytrace=False)


@pytest.fixture(autouse=True)
def _default_interrupt() -> Iterator[None]:
    """Give SIGINT its usual meaning: a job that a shell put into the background starts with the signal ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.fixture(scope="session")
def guests() -> Path:
    """Build the guests of the source tree and return their folder; a lab has them built."""
    if "PYVMM_LAB" in os.environ:
        return ROOT / "guests" / "build"
    done = subprocess.run(["make", "-s", "-C", str(ROOT / "guests")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"make -C guests failed:\n{done.stderr}"
    return ROOT / "guests" / "build"


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Check that a test leaves no file descriptor and no thread behind."""
    import gc
    import threading

    before = set(os.listdir("/proc/self/fd"))
    threads = set(threading.enumerate())
    yield
    gc.collect()
    left = [thread for thread in threading.enumerate() if thread not in threads]
    assert not left, f"threads left: {left}"
    after = set(os.listdir("/proc/self/fd"))
    assert len(after) <= len(before), f"descriptors left: {[_target(fd) for fd in after - before]}"


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return fd
