"""The watchdog of a run: its time limit, and the guest that has halted for good.

With the in-kernel interrupt controller a HLT with interrupts off never leaves KVM_RUN. The watchdog looks at the CPU time of
the vCPU threads, which costs the guest nothing, and asks the vCPUs only when none of them has used any since the last look.
"""

from __future__ import annotations

import threading
import time

from pyvmm.machine.control import Control
from pyvmm.machine.result import EndReason

_FIRST_LOOK = 0.005
_LONGEST_LOOK = 0.1


class Watchdog:
    """Thread that ends a run at its deadline or when no vCPU can wake any more; a context manager around the run."""

    def __init__(self, control: Control, timeout: float | None, *, detect_halt: bool) -> None:
        self._control = control
        self._timeout = timeout
        self._detect_halt = detect_halt
        self._done = threading.Event()
        self._clocks: list[int] = []
        self._thread = threading.Thread(target=self._watch, name="pyvmm-watchdog", daemon=True)

    def watch(self, thread: int) -> None:
        """Watch the CPU time of one more vCPU thread, given by its `threading.get_ident()`."""
        self._clocks.append(time.pthread_getcpuclockid(thread))

    def __enter__(self) -> Watchdog:
        if self._timeout is not None or self._detect_halt:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        look = _FIRST_LOOK if self._detect_halt else _LONGEST_LOOK
        used: list[float] = []
        asked: list[float] | None = None
        while True:
            left = look if deadline is None else min(look, max(deadline - time.monotonic(), 0.0))
            if self._done.wait(left):
                return
            if deadline is not None and time.monotonic() >= deadline:
                self._control.stop(EndReason.TIMEOUT, f"{self._timeout:g} s")
                return
            if not self._detect_halt:
                continue
            before, used = used, self._cpu_times()
            if not used or len(before) != len(used):
                continue  # vCPU threads are still starting, or ending
            spent = _most(used, before)
            if spent > 0:
                # Each look costs the guest a little, so look rarely at one that is busy, soon again at one that may have halted.
                look = min(look * 2, _LONGEST_LOOK) if spent > look / 2 else _FIRST_LOOK
                continue
            if asked is not None and _most(used, asked) < _FIRST_LOOK / 2:
                # All that ran since the last question was the answer to it: an idle guest that a timer will wake.
                look = min(look * 2, _LONGEST_LOOK)
            else:
                look = _FIRST_LOOK
            asked = used
            self._control.ask_idle()

    def _cpu_times(self) -> list[float]:
        try:
            return [time.clock_gettime(clock) for clock in self._clocks]
        except OSError:
            return []  # a vCPU thread has just ended: the run is over


def _most(now: list[float], then: list[float]) -> float:
    """Return the CPU time of the vCPU that used most between two readings."""
    return max((after - before for after, before in zip(now, then, strict=True)), default=0.0)
