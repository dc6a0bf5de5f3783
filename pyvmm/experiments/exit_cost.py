"""What an exit costs through pyvmm's device API, and in a C program that does nothing else, side by side."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
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


def measure_exits(rounds: int = 30, exits: int = 20_000) -> list[ExitCost]:
    """Measure PIO and MMIO exits, C and pyvmm in turn and on the same CPU, `exits` exits a round.

    The time is the CPU time of the whole process, guest, kernel and all threads: what else runs on the host does not count.

    Raises:
        HostError: no KVM, or no C compiler.
    """
    costs = []
    cpus = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="pyvmm-bench-") as folder:
        program = compile_c("exit_floor", folder)
        os.sched_setaffinity(0, {max(cpus)})  # two CPUs of a busy host may differ by more than what is measured
        try:
            for kind in KINDS:
                with _machine(kind) as vm, _Floor(program, kind, exits) as floor:
                    vm.run(max_exits=_WARM_UP)
                    pairs = [(floor.take(), _take(vm, exits)) for _ in range(rounds)]
                costs.append(
                    ExitCost(kind, *(tuple(time / exits * 1e6 for time in times) for times in zip(*pairs, strict=True)))
                )
        finally:
            os.sched_setaffinity(0, cpus)
    return costs


def _take(vm: Machine, exits: int) -> float:
    began = time.process_time()
    result = vm.run(max_exits=exits)
    took = time.process_time() - began
    if result.reason is not EndReason.MAX_EXITS:
        raise HostError(f"the measuring guest ended early: {result}")
    return took


class _Floor:
    """The C program, which takes a batch of exits whenever it is told to."""

    def __init__(self, program: str, kind: str, exits: int) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([program, kind, str(exits)], stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def take(self) -> float:
        """Return the seconds that a batch took."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            return float(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            _, errors = self._process.communicate()
            raise HostError(f"the C loop failed: {errors.strip() or 'no message'}") from None

    def __enter__(self) -> _Floor:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


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
