"""What the run loop needs of an engine."""

from __future__ import annotations

from typing import Protocol

from pyvmm.engine.dispatch import Dispatcher
from pyvmm.engine.exits import Exit
from pyvmm.engine.state import CpuState


class Engine(Protocol):
    """Runs one vCPU.

    Attributes:
        index: number of the vCPU, from 0.
        dispatcher: its buses and exit counts.
        run_seconds: time spent in `run` so far; less what the cells hold, that is the guest, KVM, and the exit loop itself.
        unspent: what the last `run` left of its budget.
    """

    index: int
    dispatcher: Dispatcher
    run_seconds: float
    unspent: int

    def run(self, budget: int | None = None) -> Exit:
        """Run until an exit that devices cannot serve, or for `budget` exits; exceptions of devices pass through."""

    def settle(self) -> None:
        """Finish the access that the last exit left half done, so that the state is at an instruction boundary."""

    def kick(self) -> None:
        """Make `run` return `Interrupted` soon; callable from any thread."""

    def state(self) -> CpuState:
        """Read the vCPU's registers."""

    def set_state(self, state: CpuState) -> None:
        """Replace the vCPU's registers."""

    def idle(self) -> str | None:
        """Tell why only another vCPU could wake this one: `halted` (HLT, IF=0), `waiting` (for SIPI), or None."""

    def close(self) -> None:
        """Release the vCPU."""
