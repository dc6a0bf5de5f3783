"""Run the tests in every place that pyvmm is made for, two at a time, and print what ran where: `make test`.

The places: this host (unit tests, its own /dev/kvm, and the lab itself), the AMD lab with NPT on and off, the Intel lab
with EPT on and off. Each is a pytest run of its own, inside the lab where that is its place; its output goes to
build/tests/PLACE.log, its counts to PLACE/results.json beside it. `python -m tests.everywhere PLACE...` runs some of them.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "tests"
_TAIL = 60
"""Lines of a failed run's output that are shown."""


@dataclass(frozen=True, slots=True)
class Place:
    """One run of the tests.

    Attributes:
        name: what to call it, also on the command line.
        select: pytest's selection of tests.
        lab: options of `pyvmm lab run`, or none for this host.
        limit: seconds after which something hangs.
    """

    name: str
    select: tuple[str, ...]
    lab: tuple[str, ...] = ()
    limit: int = 1200


_AMD = ("-m", "(kvm or linux) and not (local or soak)", "tests/kvm", "tests/linux")
# The Intel lab is slow: there, what is marked for it, from the bytecode that it has. A guest that loops without an exit
# keeps its one CPU for ever, for a reason that is not known yet: the tests that stop such a guest are not among them.
_INTEL = ("--assert=plain", "-m", "intel and not soak", "tests/kvm")

PLACES = (
    Place("amd-npt-on", _AMD, ("--cpu", "amd", "--set", "npt=on", "--mem", "4G")),
    Place("amd-npt-off", _AMD, ("--cpu", "amd", "--set", "npt=off", "--mem", "4G")),
    Place("local", ("tests",), limit=900),
    Place("amd-switch", ("-m", "switch", "tests/switch"), ("--cpu", "amd", "--mem", "3G")),
    Place("intel-ept-on", _INTEL, ("--cpu", "intel", "--set", "ept=on", "--mem", "1G"), 600),
    Place("intel-ept-off", _INTEL, ("--cpu", "intel", "--set", "ept=off", "--mem", "1G"), 600),
    Place("lab", ("-m", "lab", "tests/lab")),
)
"""Longest first, so that two workers end at about the same time."""

_BOOTS = ("-m", "linux and soak", "tests/linux/test_boots.py")
_INTEL_BOOTS = ("-m", "linux and soak and intel", "tests/linux/test_boots.py")

SOAKS = (
    *(
        Place(
            f"linux-intel-ept-{ept}",
            ("-m", "linux and intel and not soak", "tests/linux"),
            ("--cpu", "intel", "--set", f"ept={ept}", "--mem", "1G"),
            3600,
        )
        for ept in ("on", "off")
    ),
    Place("boots-amd-npt-on", _BOOTS, ("--cpu", "amd", "--set", "npt=on", "--mem", "2G"), 5400),
    Place("boots-amd-npt-off", _BOOTS, ("--cpu", "amd", "--set", "npt=off", "--mem", "2G"), 5400),
    Place("boots-intel-ept-on", _INTEL_BOOTS, ("--cpu", "intel", "--set", "ept=on", "--mem", "1G"), 5400),
    Place("boots-intel-ept-off", _INTEL_BOOTS, ("--cpu", "intel", "--set", "ept=off", "--mem", "1G"), 5400),
)
"""Only run when named, for the time that they take; `boots` (`make boots`) is each kernel ten times under every setting."""


_running: list[subprocess.Popen[bytes]] = []


def command(place: Place, share: Path) -> list[str]:
    """Return what runs a place; its results go to the folder `share`."""
    variables = ["PYTHONUNBUFFERED=1", f"PYVMM_TEST_RESULTS={share}/results.json", f"PYVMM_LINUX={share}"]
    pytest = ["env", *variables, sys.executable, "-m", "pytest", "-v", "--durations=15", *place.select]
    if not place.lab:
        return pytest
    limit = ("--timeout", str(place.limit))
    return [sys.executable, "-m", "pyvmm", "lab", "run", *place.lab, *limit, "--share", str(share), "--", *pytest]


def run(place: Place) -> tuple[bool, float]:
    """Run the tests of one place; tell whether they passed, and the seconds that it took."""
    share = RESULTS / place.name
    shutil.rmtree(share, ignore_errors=True)
    share.mkdir(parents=True)
    if place.lab:
        _provide_linux(place, share)
    start = time.monotonic()
    with open(RESULTS / f"{place.name}.log", "wb") as log:
        process = subprocess.Popen(command(place, share), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _running.append(process)
        try:
            status = process.wait(place.limit + 120)
        except subprocess.TimeoutExpired:
            process.terminate()
            status = process.wait()
    return status == 0, time.monotonic() - start


def _provide_linux(place: Place, share: Path) -> None:
    """Put the kernels that the Linux tests boot where they are in a lab too."""
    from pyvmm.boot.cpio import busybox_initrd
    from pyvmm.host.lab.amd import unpacked_kernel
    from pyvmm.host.lab.kernel import lab_kernel

    for flavour in ("amd64", "cloud-amd64"):
        shutil.copy(lab_kernel(flavour).vmlinuz, share / f"vmlinuz-{flavour}")
    initrd = busybox_initrd()
    (share / "initrd.cpio").write_bytes(initrd)
    if "amd" in place.lab:
        (share / "broken.cpio.gz").write_bytes(gzip.compress(initrd)[:-100_000])
        shutil.copy(unpacked_kernel(lab_kernel("amd64")), share / "vmlinux-amd64")


def main(names: list[str]) -> int:
    """Run the places named, or all; print a table of what ran where, and what failed."""
    unknown = set(names) - {place.name for place in PLACES}
    if unknown:
        sys.stderr.write(
            f"no such place: {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in PLACES)}\n"
        )
        return 2
    chosen = [place for place in PLACES if not names or place.name in names]
    RESULTS.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        runs = {place.name: pool.submit(_announced, place) for place in chosen}
        try:
            for name, future in runs.items():
                outcomes[name] = future.result()
        except BaseException:
            # Ctrl-C or SIGTERM: what was started ends too, and its lab with it.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in _running:
                process.terminate()
            raise
    print("\nwhat ran where", flush=True)
    for place in chosen:
        passed, seconds = outcomes[place.name]
        print(f"  {place.name:14} {'passed' if passed else 'FAILED'}  {seconds:5.0f} s  {_counts(place)}")
    return 0 if all(passed for passed, _ in outcomes.values()) else 1


def _announced(place: Place) -> tuple[bool, float]:
    print(f"{place.name}: started", flush=True)
    passed, seconds = run(place)
    print(f"{place.name}: {'passed' if passed else 'FAILED'} after {seconds:.0f} s", flush=True)
    if not passed:
        lines = (RESULTS / f"{place.name}.log").read_text(errors="replace").splitlines()
        print("\n".join(f"  | {line}" for line in lines[-_TAIL:]), flush=True)
    return passed, seconds


def _counts(place: Place) -> str:
    try:
        results = json.loads((RESULTS / place.name / "results.json").read_text())
    except (OSError, ValueError):
        return "no results: see its log"
    return "; ".join(
        f"{where}: {', '.join(f'{n} {what}' for what, n in counts.items())}" for where, counts in results.items()
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
