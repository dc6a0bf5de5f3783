"""Signals around a change of the host: what would end the process waits until the change is complete, or undone."""

from __future__ import annotations

import signal
import threading
from types import CodeType, FrameType
from typing import Any

from pyvmm.errors import Terminated

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class SignalGuard:
    """Holds SIGINT, SIGTERM, SIGHUP and SIGQUIT back while `hold` is set; else they do as usual.

    Where the usual is the end of the process, `Terminated` is raised instead. A signal that the process ignores stays ignored.
    Python runs signal handlers in the main thread alone: in another one this does nothing.

    Attributes:
        hold: whether signals wait.
    """

    def __init__(self, enter_code: CodeType | None = None, exit_code: CodeType | None = None) -> None:
        """Guard nothing yet; signals are held.

        Args:
            enter_code: the function that calls `release`; once a signal has ended it, further ones wait.
            exit_code: a function in which signals wait from its first instruction on, before it can set `hold`.
        """
        self.hold = True
        self._enter_code, self._exit_code = enter_code, exit_code
        self._former: dict[int, Any] = {}
        self._waiting: list[int] = []

    def install(self) -> None:
        """Take the signals over."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _ENDING:
            former = signal.getsignal(number)
            # A default SIGQUIT is asked for to dump core.
            if callable(former) or (former == signal.SIG_DFL and number != signal.SIGQUIT):
                self._former[number] = former
                signal.signal(number, self._catch)

    def remove(self) -> None:
        """Give the signals back; a handler that was installed since stays."""
        # A signal that is given back may raise at once: not before all of them are.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            for number, former in self._former.items():
                if signal.getsignal(number) == self._catch:
                    signal.signal(number, former)
        finally:
            self.hold = False
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def release(self) -> None:
        """Hold no longer, and let the first signal that waited have its effect."""
        self.hold = False
        self.deliver()

    def deliver(self) -> None:
        """Let the first signal that waited have its effect."""
        if self._waiting:
            number, self._waiting = self._waiting[0], []
            self._act(number, None, True)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.hold or _runs(self._exit_code, frame):
            self._waiting.append(number)
        else:
            self._act(number, frame, _runs(self._enter_code, frame))

    def _act(self, number: int, frame: FrameType | None, hold: bool) -> None:
        former = self._former[number]
        self.hold = hold
        if not callable(former):
            raise Terminated(number)
        former(number, frame)
        self.hold = False


def _runs(code: CodeType | None, frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False
