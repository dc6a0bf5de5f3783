"""What a run's vCPU threads share: the first reason to stop, work posted to them, and the kicks that make them look."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from pyvmm.engine.direct import DirectEngine
from pyvmm.machine.result import EndReason

_AFTER_PANIC = frozenset(
    {
        EndReason.RESET,
        EndReason.POWER_OFF,
        EndReason.HALT,
        EndReason.TRIPLE_FAULT,
        EndReason.GUEST_CRASH,
        EndReason.PANIC,
    }
)
"""Ways in which a guest ends whose kernel has panicked: what it was told to do then, which tells less than the panic."""


class Control:
    """Coordinates the vCPUs of one machine; every method is safe to call from any thread and from signal handlers.

    Attributes:
        stopping: set once a run shall end.
        end: the reason, its detail, vCPU number and value; the first one given wins.
        error: an exception that ended the run, to be raised again where `Machine.run` was called.
        panic: why the guest's kernel panicked, or None if it has not.
    """

    def __init__(self, engines: list[DirectEngine]) -> None:
        self._engines = engines
        self.panic: str | None = None
        self._inbox: deque[Callable[[], Any]] = deque()
        self._round = 0
        self._idle: list[tuple[int, str | None]] = [(0, None)] * len(engines)
        self.begin()

    def begin(self) -> None:
        """Forget the end of the former run; posted work stays."""
        self.stopping = False
        self.end: tuple[EndReason, str, int, int | None] | None = None
        self.error: BaseException | None = None

    def stop(self, reason: EndReason, detail: str = "", vcpu: int = 0, value: int | None = None) -> bool:
        """End the run for `reason`, unless it is ending already; tell whether it was this call that ended it."""
        first = self.end is None
        if first:
            if self.panic is not None and reason in _AFTER_PANIC:
                reason, detail = EndReason.PANIC, self.panic
            self.end = (reason, detail, vcpu, value)
        self.stopping = True
        self.kick()
        return first

    def fail(self, error: BaseException) -> None:
        """End the run with an exception; the first one is raised again, whatever else ends the run."""
        if self.error is None:
            self.error = error
        self.stopping = True
        self.kick()

    def kick(self) -> None:
        """Make every vCPU leave the guest."""
        for engine in self._engines:
            engine.kick()

    def post(self, work: Callable[[], Any]) -> None:
        """Have `work` called on vCPU 0's thread, between two of its exits: the way into a device from another thread."""
        self._inbox.append(work)
        self._engines[0].kick()

    def work(self) -> None:
        """Do the posted work."""
        while self._inbox:
            self._inbox.popleft()()

    def ask_idle(self) -> None:
        """Ask every vCPU whether it could ever wake by itself; they answer when next kicked."""
        self._round += 1
        self.kick()

    def answer_idle(self, index: int) -> None:
        """Answer the last `ask_idle` for one vCPU; the run ends as a halt once all have said that they cannot wake."""
        current = self._round
        if self._idle[index][0] == current:
            return
        self._idle[index] = (current, self._engines[index].idle())
        answers = [why for asked, why in self._idle if asked == current and why]
        if len(answers) == len(self._engines) and "halted" in answers:
            self.stop(EndReason.HALT, vcpu=index)
