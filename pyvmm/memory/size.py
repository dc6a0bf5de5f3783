"""Sizes as people write them, and the other way round."""

from __future__ import annotations

import re

from pyvmm.errors import UsageError

_UNITS = {"": 1 << 20, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,20})([BKMGT]?)", re.ASCII)


def parse_size(text: str | int) -> int:
    """Turn `128M`, `1G`, `64K`, `4096B` or an int into bytes; a bare number in a string counts MiB, as QEMU's `-m` does.

    Raises:
        UsageError: the text is not a size.
    """
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip().upper().removesuffix("IB"))
    if match is None:
        raise UsageError(f"{text!r} is not a size: write 128M, 1G or 512K (a bare number counts MiB)")
    return int(match[1]) * _UNITS[match[2]]


def format_size(size: int) -> str:
    """Write a number of bytes with the largest unit that keeps it exact, else in the largest that exceeds 1 (`23.5 GiB`)."""
    best = f"{size} B"
    for shift, unit in ((10, "KiB"), (20, "MiB"), (30, "GiB"), (40, "TiB")):
        if size >> shift:
            exact = size % (1 << shift) == 0
            best = f"{size >> shift} {unit}" if exact else f"{size / (1 << shift):.1f} {unit}"
    return best
