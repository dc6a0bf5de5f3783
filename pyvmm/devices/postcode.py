"""Port 0x80: firmware and kernels leave progress codes ("POST codes") there; Linux writes to it to pass the time."""

from __future__ import annotations

from collections import deque
from typing import Any

from pyvmm.devices.device import Action, Device, take_bytes, take_int

PORT = 0x80
HISTORY = 64


class PostCode(Device):
    """Keeps the last code, and the last codes that differed from the one before.

    Repeated writes of one value are delays, not progress, so they count but do not push older codes out of the history.

    Attributes:
        code: the last code written, 0 before the first.
        count: number of writes.
        history: the last 64 codes without repetitions in a row, oldest first.
    """

    name = "postcode"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all codes."""
        self.code = 0
        self.count = 0
        self.history: deque[int] = deque(maxlen=HISTORY)

    def read(self, offset: int, size: int) -> int:
        """Return the last code: the port is a latch that reads back."""
        return self.code

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Note the code."""
        value &= 0xFF
        self.count += 1
        if value != self.code or not self.history:
            self.code = value
            self.history.append(value)
        return None

    def state(self) -> dict[str, Any]:
        """Return code, count and history."""
        return {"code": self.code, "count": self.count, "history": bytes(self.history).hex()}

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        code, count, history = take_int(state, "code", 8), take_int(state, "count", 64), take_bytes(state, "history")
        self.code, self.count, self.history = code, count, deque(history, maxlen=HISTORY)
