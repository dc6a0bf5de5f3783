"""How long `pyvmm boot` takes from the shell's prompt to the guest's end, against the import of NumPy alone."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from pyvmm.errors import HostError


@dataclass(frozen=True, slots=True)
class StartCost:
    """Wall times in seconds, one a round, NumPy and pyvmm measured in turn."""

    numpy: tuple[float, ...]
    pyvmm: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Tell how many times the import of NumPy a boot takes: ratio of the medians."""
        return statistics.median(self.pyvmm) / statistics.median(self.numpy)


def measure_start(image: str, rounds: int = 15) -> StartCost:
    """Time `python -m pyvmm boot IMAGE` and `python -c "import numpy"` in turn, both with their bytecode cached.

    The first start of either writes the cache and is not counted; where the environment forbids that
    (PYTHONDONTWRITEBYTECODE), these processes do it all the same, as an installation does.

    Raises:
        HostError: the guest did not end with status 0.
    """
    boot = [sys.executable, "-m", "pyvmm", "boot", image, "--quiet"]
    numpy = [sys.executable, "-c", "import numpy"]
    _time(boot), _time(numpy)  # fill the page cache, write the .pyc files
    pairs = [(_time(numpy), _time(boot)) for _ in range(rounds)]
    return StartCost(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


def _time(command: list[str]) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment
    )
    took = time.perf_counter() - began
    if done.returncode:
        words = (done.stderr.strip() or "no message").splitlines()[-1]
        raise HostError(f"{' '.join(command[1:])} ended with status {done.returncode}: {words}")
    return took
