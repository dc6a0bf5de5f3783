"""What unit tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvmm.memory import GuestMemory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Give 4 MiB of guest RAM."""
    memory = GuestMemory(4 << 20)
    yield memory
    memory.close()
