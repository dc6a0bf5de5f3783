"""`pyvmm bench`: pyvmm's own costs on this host, as ratios to a floor taken in the same run."""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from pyvmm.host.info import brief_host


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmarks and their options."""
    parser.add_argument(
        "what",
        choices=("exits", "start"),
        help="exits: an exit through the device API against a C loop; start: `pyvmm boot` against importing NumPy",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--rounds", type=_rounds, metavar="N", help="rounds to take the median of")


def _rounds(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rounds: use 1 to 1000")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    host = brief_host()
    figures, lines = _exits(options.rounds or 30) if options.what == "exits" else _start(options.rounds or 15)
    if options.json:
        print(json.dumps({**figures, "host": host}, indent=1))
        return 0
    print(f"host: {host['module']}, paging {host['paging']}, {host['cpu']}, Linux {host['kernel']}")
    print("\n".join(lines))
    return 0


def _exits(rounds: int) -> tuple[dict[str, Any], list[str]]:
    from pyvmm.experiments.exit_cost import measure_exits

    figures: dict[str, Any] = {"rounds": rounds}
    lines = ["exit      C loop     pyvmm     ratio   (medians, us of CPU time an exit)"]
    for cost in measure_exits(rounds):
        floor, ours = statistics.median(cost.floor_us), statistics.median(cost.pyvmm_us)
        figures[f"{cost.kind}_ratio"] = round(cost.ratio, 4)
        figures[f"{cost.kind}_floor_us"] = [round(value, 4) for value in cost.floor_us]
        figures[f"{cost.kind}_us"] = [round(value, 4) for value in cost.pyvmm_us]
        lines.append(f"{cost.kind:6} {floor:9.3f} {ours:9.3f} {cost.ratio:9.3f}")
    return figures, lines


def _start(rounds: int) -> tuple[dict[str, Any], list[str]]:
    from pyvmm.experiments.startup import measure_start
    from pyvmm.machine.guests import guest_path

    cost = measure_start(guest_path("guest:hello-elf64"), rounds)
    numpy, ours = statistics.median(cost.numpy), statistics.median(cost.pyvmm)
    figures = {
        "rounds": rounds,
        "ratio": round(cost.ratio, 4),
        "numpy_s": [round(value, 4) for value in cost.numpy],
        "pyvmm_s": [round(value, 4) for value in cost.pyvmm],
    }
    return figures, [
        f"import numpy                   {numpy * 1e3:7.1f} ms",
        f"pyvmm boot guest:hello-elf64   {ours * 1e3:7.1f} ms",
        f"ratio                          {cost.ratio:7.2f}",
    ]
