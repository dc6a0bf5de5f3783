"""Exits that an engine hands to the run loop: the same kinds whichever engine runs the vCPU.

Port and MMIO exits that a device (or nobody) answers never come this far: the engine serves them through its `Dispatcher`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, frozen=True)
class Exit:
    """Base of all exits."""

    @property
    def kind(self) -> str:
        """Name the kind as statistics and JSON do: `internal-error` for `InternalError`."""
        name = type(self).__name__
        return "".join("-" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))


@dataclass(slots=True, frozen=True)
class BudgetSpent(Exit):
    """As many exits as `run` was allowed were taken; nothing is wrong."""


@dataclass(slots=True, frozen=True)
class Interrupted(Exit):
    """A kick or a signal made KVM_RUN return (EINTR); the vCPU can go on."""


@dataclass(slots=True, frozen=True)
class DeviceAction(Exit):
    """A device asked the machine for something; `action` is what its `write` returned."""

    action: Any


@dataclass(slots=True, frozen=True)
class Halt(Exit):
    """HLT with no in-kernel interrupt controller that could end it."""


@dataclass(slots=True, frozen=True)
class Shutdown(Exit):
    """Triple fault: the CPU gave up."""


@dataclass(slots=True, frozen=True)
class Debug(Exit):
    """A debug exception that guest debugging asked for: `exception` 1 or 3, at linear address `pc`, with DR6 and DR7."""

    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(slots=True, frozen=True)
class InternalError(Exit):
    """KVM cannot go on: `suberror` and its data words (KVM API, KVM_EXIT_INTERNAL_ERROR)."""

    suberror: int
    data: tuple[int, ...]


@dataclass(slots=True, frozen=True)
class FailEntry(Exit):
    """The hardware refused to enter the guest, for `reason` (KVM API, KVM_EXIT_FAIL_ENTRY)."""

    reason: int
    cpu: int


@dataclass(slots=True, frozen=True)
class SystemEvent(Exit):
    """The guest asked KVM itself for shutdown (1), reset (2) or reported a crash (3)."""

    type: int


@dataclass(slots=True, frozen=True)
class UnknownExit(Exit):
    """An exit that this engine has no meaning for: its KVM_EXIT number and, if any, the hardware's reason."""

    reason: int
    hardware: int
