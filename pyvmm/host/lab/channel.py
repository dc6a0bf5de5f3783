"""The conversation between the host and the agent in the lab: framed messages over one byte stream each way.

A frame is one byte of kind, four of length (little-endian), and the payload. Whatever comes before the first `MAGIC` is noise of
the line (a boot loader, a kernel's last message) and is dropped. Each side sends `MAGIC` once: the agent when it is ready, the host
when it has seen the agent's, because a serial port loses what arrives before anybody listens.

Host to agent: RUN, INPUT, END_OF_INPUT, SIGNAL, RESIZE, SAVE, QUIT. Agent to host: HELLO, OUTPUT, ERROR, TAKEN, EXIT, SAVED. Any number
of commands run, one at a time: RUN begins one and EXIT ends it. Between EXIT and the next RUN the host's INPUT, END_OF_INPUT, SIGNAL and
RESIZE are stragglers, which the agent drops. Payloads ("strings" are those of `pack_strings`):

RUN          strings: working directory, "ROWSxCOLUMNS" for a terminal or "" for pipes, number of arguments, the arguments, NAME=VALUE...
INPUT        bytes for the command's standard input; at most WINDOW of them may be on the way, that is, without a TAKEN
END_OF_INPUT empty: close the command's standard input
SIGNAL       one byte: number of a signal for the command's process group
RESIZE       rows and columns, two bytes each, little-endian
SAVE         strings: a command line; what it writes to its standard output comes back in SAVED messages (while no command runs)
QUIT         empty: the agent ends, and the lab powers off
HELLO        strings: the kernel's version, then MODULE.PARAMETER=VALUE as sysfs shows it for each parameter of the KVM modules
OUTPUT       bytes that the command wrote to its standard output (with a terminal: to the terminal)
ERROR        bytes that it wrote to its standard error
TAKEN        four bytes, little-endian: so many bytes of INPUT have been taken by the command, or dropped because it reads no more
EXIT         strings: "status" and the exit status, "signal" and the signal's number, or "error" and why it could not be started (errno)
SAVED        bytes; an empty one is the last

Nothing but the standard library's small change is used here: the agent imports this module, and in Bochs each import costs.
"""

from __future__ import annotations

import os
import struct

from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAGIC = b"\x00\xffpyvmm-lab-1\xff\x00\n"
MAX_PAYLOAD = 1 << 20
CHUNK = 1 << 16
"""How much a side puts into one INPUT, OUTPUT or ERROR: small enough for messages behind it to get through soon."""

WINDOW = 1 << 18
"""How much INPUT may be on the way: the agent never has to hold more, so it never stops listening to SIGNAL."""

RUN, INPUT, END_OF_INPUT, SIGNAL, RESIZE, SAVE, QUIT = b"RIESWVQ"
HELLO, OUTPUT, ERROR, TAKEN, EXIT, SAVED = b"hoetxv"

_HEADER = struct.Struct("<BI")
_COUNT = struct.Struct("<I")
_SIZE = struct.Struct("<HH")
_KINDS = frozenset((RUN, INPUT, END_OF_INPUT, SIGNAL, RESIZE, SAVE, QUIT, HELLO, OUTPUT, ERROR, TAKEN, EXIT, SAVED))


class ChannelError(HostError):
    """The stream holds something that is no message: the two sides are out of step."""


def encode(kind: int, payload: bytes = b"") -> bytes:
    """Return the frame of one message."""
    if kind not in _KINDS or len(payload) > MAX_PAYLOAD:
        raise ChannelError(f"message {kind:#x} of {len(payload)} bytes cannot be sent")
    return _HEADER.pack(kind, len(payload)) + payload


def encode_size(rows: int, columns: int) -> bytes:
    """Return the payload of RESIZE."""
    return _SIZE.pack(min(rows, 0xFFFF), min(columns, 0xFFFF))


def decode_size(payload: bytes) -> tuple[int, int]:
    """Return rows and columns of a RESIZE; ChannelError if it is not one."""
    if len(payload) != _SIZE.size:
        raise ChannelError(f"a window size of {len(payload)} bytes")
    rows, columns = _SIZE.unpack(payload)
    return rows, columns


def encode_count(count: int) -> bytes:
    """Return the payload of TAKEN."""
    return _COUNT.pack(count)


def decode_count(payload: bytes) -> int:
    """Return the number in a TAKEN; ChannelError if it is not one."""
    if len(payload) != _COUNT.size:
        raise ChannelError(f"a count of {len(payload)} bytes")
    return int(_COUNT.unpack(payload)[0])


def pack_strings(strings: Iterable[str]) -> bytes:
    """Pack strings, each behind its length; any that a path or an argument can be survives (os.fsencode)."""
    raw = [os.fsencode(string) for string in strings]
    return b"".join(_COUNT.pack(len(string)) + string for string in raw)


def unpack_strings(payload: bytes) -> list[str]:
    """Undo `pack_strings`; ChannelError if the payload is cut short."""
    strings = []
    at = 0
    while at < len(payload):
        end = at + _COUNT.size
        if end > len(payload):
            raise ChannelError("a list of strings is cut short")
        (length,) = _COUNT.unpack_from(payload, at)
        if end + length > len(payload):
            raise ChannelError("a string is cut short")
        strings.append(os.fsdecode(payload[end : end + length]))
        at = end + length
    return strings


class Decoder:
    """Turns bytes as they arrive, in whatever pieces, into messages.

    Attributes:
        noise: what came before the magic, for error messages (its last 4 KiB).
        ready: whether the magic has been seen.
    """

    def __init__(self) -> None:
        self.noise = bytearray()
        self.ready = False
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take bytes and yield each message that is complete: (kind, payload).

        Raises:
            ChannelError: an unknown kind or an absurd length.
        """
        self._pending += data
        if not self.ready and not self._find_magic():
            return
        while len(self._pending) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._pending)
            if kind not in _KINDS or length > MAX_PAYLOAD:
                raise ChannelError(f"the lab's channel is out of step: {bytes(self._pending[:16])!r}")
            end = _HEADER.size + length
            if len(self._pending) < end:
                return
            payload = bytes(self._pending[_HEADER.size : end])
            del self._pending[:end]
            yield kind, payload

    def _find_magic(self) -> bool:
        at = self._pending.find(MAGIC)
        # The magic may be cut at the end of what is here: keep what could be its beginning.
        noise = at if at >= 0 else max(0, len(self._pending) - len(MAGIC) + 1)
        self.noise += self._pending[:noise]
        del self.noise[:-4096]
        del self._pending[:noise]
        if at >= 0:
            del self._pending[: len(MAGIC)]
            self.ready = True
        return self.ready
