"""Exits that an engine hands to the run loop: the same kinds whichever engine runs the vCPU.

Port and MMIO exits that a device (or nobody) answers never come this far: the engine serves them through its
`Dispatcher`. These are plain classes, as a dozen dataclasses would cost 5 ms of every start.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Exit:
    """Base of all exits.

    Attributes:
        kind: the name that statistics and JSON use.
    """

    __slots__: tuple[str, ...] = ()
    kind: ClassVar[str] = "exit"

    def fields(self) -> dict[str, Any]:
        """Return what the exit tells besides its kind."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.fields().items())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Exit) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash((type(self), *self.fields().values()))


class BudgetSpent(Exit):
    """As many exits as `run` was allowed were taken; nothing is wrong."""

    __slots__ = ()
    kind = "budget-spent"


class Interrupted(Exit):
    """A kick or a signal made KVM_RUN return (EINTR); the vCPU can go on."""

    __slots__ = ()
    kind = "interrupted"


class DeviceAction(Exit):
    """A device asked the machine for something; `action` is what its `write` returned."""

    __slots__ = ("action",)
    kind = "device-action"

    def __init__(self, action: Any) -> None:
        self.action = action


class Halt(Exit):
    """HLT with no in-kernel interrupt controller that could end it."""

    __slots__ = ()
    kind = "halt"


class Shutdown(Exit):
    """Triple fault: the CPU gave up."""

    __slots__ = ()
    kind = "shutdown"


class Debug(Exit):
    """A debug exception that guest debugging asked for: vector 1 or 3, at linear address `pc`, with DR6 and DR7."""

    __slots__ = ("dr6", "dr7", "exception", "pc")
    kind = "debug"

    def __init__(self, exception: int, pc: int, dr6: int, dr7: int) -> None:
        self.exception = exception
        self.pc = pc
        self.dr6 = dr6
        self.dr7 = dr7


class InternalError(Exit):
    """KVM cannot go on: `suberror` and its data words (KVM API, KVM_EXIT_INTERNAL_ERROR)."""

    __slots__ = ("data", "suberror")
    kind = "internal-error"

    def __init__(self, suberror: int, data: tuple[int, ...]) -> None:
        self.suberror = suberror
        self.data = data


class FailEntry(Exit):
    """The hardware refused to enter the guest, for `reason` (KVM API, KVM_EXIT_FAIL_ENTRY)."""

    __slots__ = ("cpu", "reason")
    kind = "fail-entry"

    def __init__(self, reason: int, cpu: int) -> None:
        self.reason = reason
        self.cpu = cpu


class SystemEvent(Exit):
    """The guest asked KVM itself for shutdown (1), reset (2) or reported a crash (3)."""

    __slots__ = ("type",)
    kind = "system-event"

    def __init__(self, type: int) -> None:
        self.type = type


class UnknownExit(Exit):
    """An exit that this engine has no meaning for: its KVM_EXIT number and, if any, the hardware's reason."""

    __slots__ = ("hardware", "reason")
    kind = "unknown-exit"

    def __init__(self, reason: int, hardware: int) -> None:
        self.reason = reason
        self.hardware = hardware
