"""The thread behind a console that has input: it polls descriptors until it is closed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

Interest = dict[int, int]


class Pump:
    """Runs `handle(fd, events)` on a thread of its own for each descriptor that is ready.

    The thread is a daemon, so that a program that forgets `close` can still end; `close` always waits for it.
    """

    def __init__(self, name: str, interest: Callable[[], Interest], handle: Callable[[int, int], None]) -> None:
        """Ask `interest` before each wait for descriptors and their poll events; an empty answer ends the thread.

        `interest` and `handle` are only called on the thread.
        """
        self._interest = interest
        self._handle = handle
        self._closing = False
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        import select

        # `close` sets its flag before it wakes: whoever takes that wake-up sees the flag here, before the next wait.
        while not self._closing and (interest := self._interest()):
            poll = select.poll()
            poll.register(self._wake_fd, select.POLLIN)
            for fd, events in interest.items():
                poll.register(fd, events)
            for fd, events in poll.poll():
                if self._closing:
                    return
                if fd == self._wake_fd:
                    os.eventfd_read(fd)
                else:
                    self._handle(fd, events)

    def wake(self) -> None:
        """Have the thread ask for its interest again."""
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """End the thread and wait for it, unless it is the caller."""
        if self._wake_fd < 0:
            return
        self._closing = True
        self.wake()
        if self._thread is threading.current_thread():
            return
        self._thread.join()
        os.close(self._wake_fd)
        self._wake_fd = -1
