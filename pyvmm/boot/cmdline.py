"""Kernel command lines: text in, the bytes that go into guest memory out."""

from __future__ import annotations

from pyvmm.errors import UsageError

LINUX_LIMIT = 2047
"""Longest command line of an x86 Linux kernel whose header does not say (COMMAND_LINE_SIZE less the final NUL)."""
LIMIT = 4095
"""Longest command line for the protocols that set no limit: with its NUL it fills one page."""


def encode_cmdline(text: str, limit: int = LIMIT, what: str = "command line") -> bytes:
    """Encode a command line as NUL-terminated UTF-8.

    Args:
        text: the command line; control characters have no place in it.
        limit: most bytes, without the NUL.
        what: how an error calls it.

    Raises:
        UsageError: a control character, bytes that are no UTF-8, or too long.
    """
    bad = next((char for char in text if ord(char) < 0x20 or ord(char) == 0x7F), None)
    if bad is not None:
        raise UsageError(f"the {what} contains the control character {bad!r}: remove it")
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the {what} is not valid UTF-8: retype it") from None
    if len(data) > limit:
        raise UsageError(f"the {what} has {len(data)} bytes, this kernel takes at most {limit}: shorten it")
    return data + b"\0"
