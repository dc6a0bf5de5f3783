"""Arguments of `Machine` as callers give them, made sure of: a wrong one is one line, not a failure deep inside."""

from __future__ import annotations

import os
from dataclasses import fields
from operator import index
from typing import Any

from pyvmm.boot import BootOptions, Content
from pyvmm.devices.console import Console
from pyvmm.errors import UsageError
from pyvmm.machine.guests import guest_path

IRQCHIPS = ("kernel", "none")
DEVICES = ("pc", "none")
MAX_CPUS = 254
"""xAPIC ids are 8 bits wide and 255 is the broadcast (SDM vol. 3, 11.6.1)."""


def whole(value: Any, name: str) -> int:
    """Return a whole number, of NumPy's kinds too."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise UsageError(f"{name}={value!r}: give a whole number")
    return index(value)


def check_machine(cpus: int, console: Any, devices: str, irqchip: str) -> None:
    """Check what `Machine` is asked to be made of."""
    if console is not None and not isinstance(console, Console):
        raise UsageError(f"console={console!r}: give a Console, as pyvmm.devices.console has them")
    if devices not in DEVICES:
        raise UsageError(f"devices={devices!r}: use one of {', '.join(DEVICES)}")
    if irqchip not in IRQCHIPS:
        raise UsageError(f"irqchip={irqchip!r}: use one of {', '.join(IRQCHIPS)}")
    if not 1 <= cpus <= MAX_CPUS:
        raise UsageError(f"{cpus} CPUs: use 1 to {MAX_CPUS}")
    if cpus > 1 and irqchip == "none":
        raise UsageError("several CPUs need the in-kernel interrupt controller: use irqchip=kernel, or 1 CPU")


def check_limits(timeout: Any, max_exits: Any) -> None:
    """Check the limits of a run."""
    if timeout is not None and not (isinstance(timeout, (int, float)) and 0 < timeout < 1e9):
        raise UsageError(f"timeout={timeout!r}: give seconds above 0")
    if max_exits is not None and whole(max_exits, "max_exits") < 1:
        raise UsageError(f"max_exits={max_exits}: give at least 1")


def boot_content(image: Any) -> Content:
    """Return an image as the loaders take it: a path (of one of pyvmm's own guests for `guest:NAME`) or bytes."""
    if isinstance(image, str):
        return guest_path(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, os.PathLike):
        return image
    raise UsageError(f"load: {type(image).__name__} is no image; give a path or bytes")


def boot_options(options: dict[str, Any], **defaults: Any) -> BootOptions:
    """Make `BootOptions` of keyword arguments."""
    known = [field.name for field in fields(BootOptions)]
    if unknown := set(options) - set(known):
        raise UsageError(f"load has no option {min(unknown)!r}: use {', '.join(known)}")
    return BootOptions(**{**defaults, **options})
