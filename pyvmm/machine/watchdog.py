"""The watchdog of a machine: the time limit of a run, and the guest that has halted for good.

With the in-kernel interrupt controller a HLT with interrupts off never leaves KVM_RUN. The watchdog looks at the CPU
time of the vCPU threads, which costs the guest nothing, and asks the vCPUs only when none of them has used much since the
last look.
"""

from __future__ import annotations

import threading
import time

from pyvmm.machine.control import Control
from pyvmm.machine.result import EndReason

_FIRST_LOOK = 0.005
_LONGEST_LOOK = 0.1
_BUSY = 0.1
"""Share of the time that a vCPU runs for if it is not halted: a timer that fires in vain costs its thread a little too."""


class Watchdog:
    """Thread that ends a run at its deadline, or when no vCPU can wake any more.

    It is started by the first run that needs it and sleeps between runs: a guest may be run for one exit at a time, and
    a thread for each of these would cost more than the exit.
    """

    def __init__(self, control: Control, *, detect_halt: bool) -> None:
        self._control = control
        self._detect_halt = detect_halt
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._closed = False
        # Of the present run:
        self._running = False
        self._deadline: float | None = None
        self._timeout = 0.0
        self._clocks: list[int] = []

    def begin(self, timeout: float | None) -> None:
        """Start to watch a run of at most `timeout` seconds."""
        if timeout is None and not self._detect_halt:
            return
        with self._changed:
            self._clocks = []
            self._deadline = None if timeout is None else time.monotonic() + timeout
            self._timeout = timeout or 0.0
            self._running = True
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="pyvmm-watchdog", daemon=True)
            self._thread.start()

    def watch(self, thread: int) -> None:
        """Watch the CPU time of one more vCPU thread, given by its `threading.get_ident()`."""
        self._clocks.append(time.pthread_getcpuclockid(thread))

    def end(self) -> None:
        """Stop watching: once this returns, the run is not ended from here any more."""
        with self._changed:
            self._running = False

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._running = False
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _serve(self) -> None:
        try:
            with self._changed:
                while not self._closed:
                    if self._running:
                        self._watch()
                    else:
                        self._changed.wait()
        except BaseException as error:  # without its watchdog a run has no limit any more: better to end it
            self._control.fail(error)

    def _watch(self) -> None:
        """Watch one run, or several that follow each other within one look; holds the lock but while it waits."""
        look = _FIRST_LOOK if self._detect_halt else _LONGEST_LOOK
        used: list[float] = []
        asked = False
        while True:
            deadline = self._deadline
            woken = self._changed.wait(look if deadline is None else min(look, max(deadline - time.monotonic(), 0.0)))
            if not self._running:
                return
            if woken:
                look, used, asked = _FIRST_LOOK if self._detect_halt else _LONGEST_LOOK, [], False
                continue  # another run has begun
            if deadline is not None and deadline == self._deadline and time.monotonic() >= deadline:
                self._control.stop(EndReason.TIMEOUT, f"{self._timeout:g} s")
                self._running = False
                return
            if not self._detect_halt:
                continue
            before, used = used, self._cpu_times()
            if not used or len(before) != len(used):
                continue  # vCPU threads are still starting, or ending
            spent = _most(used, before)
            if spent > look * _BUSY:
                # Each look costs the guest a little: look rarely at one that is busy, soon again at one that may have halted.
                look = min(look * 2, _LONGEST_LOOK) if spent > look / 2 else _FIRST_LOOK
                asked = False
                continue
            # A guest that sleeps until a timer wakes it looks the same, so ask it less and less often.
            look = min(look * 2, _LONGEST_LOOK) if asked else _FIRST_LOOK
            asked = True
            self._control.ask_idle()

    def _cpu_times(self) -> list[float]:
        try:
            return [time.clock_gettime(clock) for clock in self._clocks]
        except OSError:
            return []  # a vCPU thread has just ended: the run is over


def _most(now: list[float], then: list[float]) -> float:
    """Return the CPU time of the vCPU that used most between two readings."""
    return max((after - before for after, before in zip(now, then, strict=True)), default=0.0)
