"""Why a run ended, and what the process's exit status says of it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pyvmm.debug.report import FailureReport

STATUS_OK = 0
STATUS_CRASH = 1
STATUS_USAGE = 2
STATUS_TIMEOUT = 124


class EndReason(StrEnum):
    """Everything that ends `Machine.run`."""

    POWER_OFF = "power-off"
    RESET = "reset"
    HALT = "halt"
    DEBUG_EXIT = "debug-exit"
    TRIPLE_FAULT = "triple-fault"
    INTERNAL_ERROR = "internal-error"
    FAILED_ENTRY = "failed-entry"
    GUEST_CRASH = "guest-crash"
    PANIC = "panic"
    UNKNOWN_EXIT = "unknown-exit"
    DEBUG = "debug"
    TIMEOUT = "timeout"
    USER = "user"
    ERROR = "error"
    UNTIL = "until"
    MAX_EXITS = "max-exits"


CRASHES = frozenset(
    {
        EndReason.TRIPLE_FAULT,
        EndReason.INTERNAL_ERROR,
        EndReason.FAILED_ENTRY,
        EndReason.GUEST_CRASH,
        EndReason.PANIC,
        EndReason.UNKNOWN_EXIT,
    }
)
"""The ends that nobody chose: exit status 1, and a failure report, but where the guest itself has said why."""

_MEANING = {
    EndReason.POWER_OFF: "the guest switched the machine off",
    EndReason.RESET: "the guest reset the machine",
    EndReason.HALT: "the guest halted with interrupts off",
    EndReason.DEBUG_EXIT: "the guest ended the run through the debug-exit port",
    EndReason.TRIPLE_FAULT: "the guest crashed: triple fault",
    EndReason.INTERNAL_ERROR: "the guest crashed: KVM internal error",
    EndReason.FAILED_ENTRY: "the guest crashed: the CPU refused to enter it",
    EndReason.GUEST_CRASH: "the guest reported that it crashed",
    EndReason.PANIC: "the guest kernel panicked",
    EndReason.UNKNOWN_EXIT: "the guest crashed: unknown exit",
    EndReason.DEBUG: "a breakpoint or single step was hit",
    EndReason.TIMEOUT: "the time limit passed",
    EndReason.USER: "stopped by the user",
    EndReason.ERROR: "an exception in the VMM ended the run",
    EndReason.UNTIL: "the condition of until= became true",
    EndReason.MAX_EXITS: "the limit of exits was reached",
}


class Result(NamedTuple):
    """What `Machine.run` returns.

    Attributes:
        reason: why the run ended.
        detail: one more word on it, or "".
        vcpu: number of the vCPU that ended it; 0 where none did.
        value: what the guest wrote to the debug-exit port, else None.
        seconds: wall time of this run.
        exits: exits of all vCPUs during this run.
        report: the failure report of a crash, else None.
    """

    reason: EndReason
    detail: str = ""
    vcpu: int = 0
    value: int | None = None
    seconds: float = 0.0
    exits: int = 0
    report: FailureReport | None = None

    @property
    def crashed(self) -> bool:
        """Tell whether the guest ended in a way that nobody chose."""
        return self.reason in CRASHES

    @property
    def status(self) -> int:
        """Tell the exit status: 0 by choice, 1 crash, 2 error, 124 timeout, debug-exit `(value << 1) | 1` as QEMU's."""
        if self.reason is EndReason.DEBUG_EXIT:
            return ((self.value or 0) << 1 | 1) & 0xFF
        if self.crashed:
            return STATUS_CRASH
        if self.reason is EndReason.ERROR:
            return STATUS_USAGE
        return STATUS_TIMEOUT if self.reason is EndReason.TIMEOUT else STATUS_OK

    def __str__(self) -> str:
        """Say in one sentence why the run ended."""
        value = "" if self.value is None else f" with value {self.value:#x}"
        if self.reason is EndReason.PANIC and self.detail:
            return f"{_MEANING[self.reason]}: {self.detail}"
        detail = f" ({self.detail})" if self.detail else ""
        return f"{_MEANING[self.reason]}{value}{detail}"

    def to_dict(self) -> dict[str, Any]:
        """Return the result in JSON's types."""
        return {
            "reason": str(self.reason),
            "detail": self.detail,
            "vcpu": self.vcpu,
            "value": self.value,
            "crashed": self.crashed,
            "status": self.status,
            "seconds": round(self.seconds, 6),
            "exits": self.exits,
            "report": None if self.report is None else self.report.to_dict(),
        }
