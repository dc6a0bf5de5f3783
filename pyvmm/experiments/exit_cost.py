"""What an exit costs through pyvmm's device API, and in a C program that does nothing else, side by side."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from dataclasses import dataclass

from pyvmm.devices.device import Device
from pyvmm.errors import HostError
from pyvmm.experiments.compiler import compile_c
from pyvmm.machine import EndReason, Machine

KINDS = ("pio", "mmio")
_PORT = 0x10
_GPA = 16 << 20
_LOOPS = {"pio": bytes.fromhex("e610 ebfc"), "mmio": bytes.fromhex("a20000 ebfb")}
_WARM_UP = 1000


class _Sink(Device):
    """The least that a device can be."""

    name = "sink"

    def write(self, offset: int, size: int, value: int) -> None:
        """Take the write."""


@dataclass(frozen=True, slots=True)
class ExitCost:
    """Costs of one kind of exit, round by round.

    Attributes:
        kind: `pio` or `mmio`.
        floor_us: microseconds an exit of the C loop, one figure a round.
        pyvmm_us: of pyvmm, measured right after it.
    """

    kind: str
    floor_us: tuple[float, ...]
    pyvmm_us: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Tell how many times the floor an exit costs: the median over the rounds, so that drift of the host cancels."""
        return statistics.median(ours / floor for ours, floor in zip(self.pyvmm_us, self.floor_us, strict=True))


def measure_exits(rounds: int = 9, exits: int = 20_000) -> list[ExitCost]:
    """Measure PIO and MMIO exits, C and pyvmm in turn, `exits` exits a round.

    Raises:
        HostError: no KVM, or no C compiler.
    """
    costs = []
    with tempfile.TemporaryDirectory(prefix="pyvmm-bench-") as folder:
        program = compile_c("exit_floor", folder)
        for kind in KINDS:
            floor, ours = [], []
            with _machine(kind) as vm:
                vm.run(max_exits=_WARM_UP)
                for _ in range(rounds):
                    floor.append(_run_floor(program, kind, exits) / exits * 1e6)
                    result = vm.run(max_exits=exits)
                    if result.reason is not EndReason.MAX_EXITS:
                        raise HostError(f"the measuring guest ended early: {result}")
                    ours.append(result.seconds / exits * 1e6)
            costs.append(ExitCost(kind, tuple(floor), tuple(ours)))
    return costs


def _machine(kind: str) -> Machine:
    vm = Machine("1M")
    vm.load(_LOOPS[kind], format="flat", mode="real")
    if kind == "pio":
        vm.attach(_Sink(), pio=_PORT)
    else:
        vm.attach(_Sink(), mmio=_GPA, size=4096)
        state = vm.state()
        state.ds.base = _GPA
        vm.set_state(state)
    return vm


def _run_floor(program: str, kind: str, exits: int) -> float:
    done = subprocess.run([program, kind, str(exits)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"the C loop failed: {done.stderr.strip() or f'status {done.returncode}'}")
    return float(done.stdout)
