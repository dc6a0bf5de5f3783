"""Ctrl-C, SIGTERM and SIGHUP during a run: stop every vCPU first, then let the signal have its usual effect."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from pyvmm.errors import Terminated

_Handler = Callable[[int, FrameType | None], Any] | int | None


class DeferredSignals:
    """Context in which SIGINT, SIGTERM and SIGHUP call `stop(signal name)`; what they would have done happens in `deliver`.

    In a thread other than the main one, Python runs no signal handlers, and this does nothing. A signal that the process ignores
    stays ignored.
    """

    def __init__(self, stop: Callable[[str], object]) -> None:
        self._stop = stop
        self._former: dict[int, _Handler] = {}
        self._caught: int | None = None

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                former = signal.getsignal(number)
                if former not in (signal.SIG_IGN, None):
                    self._former[number] = former
                    signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        self._caught = number
        self._stop(signal.Signals(number).name)

    def deliver(self) -> None:
        """Do what the caught signal asks for: call the program's own handler, or raise KeyboardInterrupt or `Terminated`."""
        if self._caught is None:
            return
        former = self._former[self._caught]
        if callable(former):
            former(self._caught, None)
        else:
            raise Terminated(self._caught)
