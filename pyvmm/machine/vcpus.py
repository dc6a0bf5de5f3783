"""Running all vCPUs of a machine: one thread each, the first on the caller's own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pyvmm.devices.device import DebugExit, Panic, PowerOff, Reset
from pyvmm.engine import exits
from pyvmm.engine.direct import DirectEngine
from pyvmm.machine.control import Control
from pyvmm.machine.result import CRASHES, EndReason
from pyvmm.machine.watchdog import Watchdog

_SYSTEM_EVENTS = {1: EndReason.POWER_OFF, 2: EndReason.RESET, 3: EndReason.GUEST_CRASH}
"""KVM_SYSTEM_EVENT_SHUTDOWN, _RESET and _CRASH (KVM API, KVM_EXIT_SYSTEM_EVENT)."""


class VcpuThreads:
    """One run of all engines, until their `Control` says stop.

    Attributes:
        crash: the exit of the vCPU that crashed, None if none did.
    """

    def __init__(
        self,
        engines: list[DirectEngine],
        control: Control,
        lock: threading.RLock,
        watchdog: Watchdog,
        *,
        until: Callable[[], bool] | None,
        max_exits: int | None,
    ) -> None:
        self._engines = engines
        self._control = control
        self._lock = lock
        self._watchdog = watchdog
        self.crash: exits.Exit | None = None
        self._until = until
        self._left = max_exits
        # Exits are counted together: with several vCPUs, or a condition to look at after each exit, take them one by one.
        self._stepwise = until is not None or (max_exits is not None and len(engines) > 1)

    def run(self) -> None:
        """Run every vCPU until the control stops them; all other threads have ended when this returns."""
        others = [
            threading.Thread(target=self._guarded, args=(engine,), name=f"pyvmm-vcpu{engine.index}", daemon=True)
            for engine in self._engines[1:]
        ]
        try:
            for thread in others:
                thread.start()
            self._guarded(self._engines[0])
        finally:
            # Whatever ended the first one ends the others; a kick can arrive while a thread is still starting, so repeat it.
            self._control.stopping = True
            for thread in others:
                while thread.is_alive():
                    self._control.kick()
                    thread.join(0.01)

    def _guarded(self, engine: DirectEngine) -> None:
        try:
            with engine.entered():
                self._watchdog.watch(threading.get_ident())
                self._loop(engine)
        except BaseException as error:
            # Whatever a device or a callback raises surfaces from Machine.run, whichever thread it was raised in.
            self._control.fail(error)

    def _loop(self, engine: DirectEngine) -> None:
        control = self._control
        crashed = False
        while not control.stopping:
            if engine.index == 0:
                with self._lock:
                    control.work()
            budget = 1 if self._stepwise else self._left
            left = engine.run(budget)
            if isinstance(left, exits.Interrupted):
                control.answer_idle(engine.index)
            elif not isinstance(left, exits.BudgetSpent):
                crashed = self._end(engine, left)
            if budget is not None:
                self._count(engine, budget - engine.unspent)
            if self._until is not None and not control.stopping:
                engine.settle()
                with self._lock:
                    if self._until():
                        control.stop(EndReason.UNTIL, vcpu=engine.index)
        if not crashed:
            engine.settle()

    def _count(self, engine: DirectEngine, taken: int) -> None:
        """Take exits from what is left for all vCPUs together; a vCPU that waits to be started takes none."""
        if self._left is not None:
            with self._lock:
                self._left -= taken
                if self._left <= 0:
                    self._control.stop(EndReason.MAX_EXITS, vcpu=engine.index)

    def _end(self, engine: DirectEngine, left: exits.Exit) -> bool:
        """End the run for an exit that devices could not serve; tell whether the vCPU crashed."""
        try:
            reason, detail, value = _meaning(left)
        except TypeError as error:
            error.add_note(f"pyvmm: it was a {engine.recent_exits()[-1]}")
            raise
        first = self._control.stop(reason, detail, engine.index, value)
        if reason not in CRASHES:
            return False
        if first and self._control.panic is None:  # a kernel that panicked has reported on itself
            self.crash = left
        return True


def _meaning(left: exits.Exit) -> tuple[EndReason, str, int | None]:
    """Tell reason, detail and debug-exit value of the end that an exit brings."""
    match left:
        case exits.DeviceAction(action=PowerOff()):
            return EndReason.POWER_OFF, "", None
        case exits.DeviceAction(action=Reset()):
            return EndReason.RESET, "", None
        case exits.DeviceAction(action=DebugExit(value=value)):
            return EndReason.DEBUG_EXIT, "", value
        case exits.DeviceAction(action=Panic()):
            return EndReason.PANIC, "reported through the pvpanic port", None
        case exits.DeviceAction(action=action):
            raise TypeError(f"a device's write returned {action!r}: return None or an Action")
        case exits.Halt():
            return EndReason.HALT, "the machine has no interrupt controller that could wake it", None
        case exits.Debug(pc=pc):
            return EndReason.DEBUG, f"at {pc:#x}", None
        case exits.SystemEvent(type=event):
            return _SYSTEM_EVENTS.get(event, EndReason.UNKNOWN_EXIT), f"system event {event}", None
        case exits.Shutdown():
            return EndReason.TRIPLE_FAULT, "", None
        case exits.InternalError(suberror=suberror):
            return EndReason.INTERNAL_ERROR, f"suberror {suberror}", None
        case exits.FailEntry(reason=reason):
            return EndReason.FAILED_ENTRY, f"hardware reason {reason:#x}", None
        case exits.UnknownExit(reason=reason):
            return EndReason.UNKNOWN_EXIT, f"exit reason {reason}", None
    raise AssertionError(f"the run loop has no meaning for {left!r}")
