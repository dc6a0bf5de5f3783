"""The host's side of a lab's channel: start commands, feed them, hear them, kill them in time."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass

from pyvmm.host.lab.channel import (
    CHUNK,
    END_OF_INPUT,
    ERROR,
    EXIT,
    HELLO,
    INPUT,
    MAGIC,
    OUTPUT,
    QUIT,
    RESIZE,
    RUN,
    SAVE,
    SAVED,
    SIGNAL,
    TAKEN,
    WINDOW,
    ChannelError,
    Decoder,
    decode_count,
    encode,
    encode_size,
    pack_strings,
    unpack_strings,
)

_SIGKILL = 9
_SLICE = 0.25  # s; how long a window's new size may wait

Sink = Callable[[bytes], object]


class ChannelLost(Exception):
    """The other side is gone."""


class NoAnswer(Exception):
    """The other side should have answered by now."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended: by exit status, by signal, or not at all because of an error number of the lab's kernel."""

    status: int | None = None
    signal: int | None = None
    errno: int | None = None
    name: str = ""
    timed_out: bool = False


class Session:
    """One conversation, over two descriptors that it owns from now on (they may be the same)."""

    def __init__(self, reader: int, writer: int, grace: float) -> None:
        """Take over the channel; `grace` is how many seconds a kill may take to be answered."""
        self._reader = reader
        self._writer = writer
        self._grace = grace
        self._decoder = Decoder()
        self._outbox = bytearray()
        self._messages: list[tuple[int, bytes]] = []
        self._running = False
        for fd in (reader, writer):
            os.set_blocking(fd, False)

    def close(self) -> None:
        """Close the descriptors."""
        for fd in {self._reader, self._writer} - {-1}:
            os.close(fd)
        self._reader = self._writer = -1

    def hello(self, timeout: float) -> list[str]:
        """Wait for the agent and return what it says of itself; NoAnswer after `timeout` seconds."""
        payload = self._await(HELLO, time.monotonic() + timeout)
        self._outbox += MAGIC
        return unpack_strings(payload)

    def run(
        self,
        argv: list[str],
        cwd: str,
        env: dict[str, str],
        source: int | bytes,
        stdout: Sink,
        stderr: Sink,
        *,
        timeout: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> Ending:
        """Run one command to its end.

        Args:
            source: descriptor to read its input from, or the input itself.
            stdout, stderr: called with each piece of output; what they raise comes through, and the command dies of it.
            timeout: seconds; the command is killed then.
            size: rows and columns of a terminal for it, or None for pipes.

        Raises:
            ChannelLost: the lab is gone.
            NoAnswer: it does not even kill the command.
        """
        self._finish_former()
        terminal = "" if size is None else f"{size[0]}x{size[1]}"
        entries = [f"{name}={value}" for name, value in env.items()]
        self._outbox += encode(RUN, pack_strings([cwd, terminal, str(len(argv)), *argv, *entries]))
        self._running = True
        feeder = _Feeder(source)
        deadline = None if timeout is None else time.monotonic() + timeout
        killed = False
        while True:
            if deadline is not None and time.monotonic() >= deadline:
                if killed:
                    raise NoAnswer
                self._outbox += encode(SIGNAL, bytes([_SIGKILL]))
                killed = True
                deadline = time.monotonic() + self._grace
            while self._messages:
                kind, payload = self._messages.pop(0)
                if kind == OUTPUT:
                    stdout(payload)
                elif kind == ERROR:
                    stderr(payload)
                elif kind == TAKEN:
                    feeder.taken(decode_count(payload))
                elif kind == EXIT:
                    self._running = False
                    return _ending(payload, killed)
            self._exchange(deadline, None if killed else feeder)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the running command's terminal its new size; may be called from a signal handler."""
        self._outbox += encode(RESIZE, encode_size(rows, columns))

    def save(self, argv: list[str], timeout: float) -> bytes:
        """Run a command in the lab and return all that it writes; NoAnswer after `timeout` seconds."""
        self._finish_former()
        self._outbox += encode(SAVE, pack_strings(argv))
        pieces = []
        deadline = time.monotonic() + timeout
        while piece := self._await(SAVED, deadline):
            pieces.append(piece)
        return b"".join(pieces)

    def quit(self) -> None:
        """Ask the agent to end, if it listens just now."""
        self._outbox += encode(QUIT)
        self._flush()

    def _finish_former(self) -> None:
        """Kill the command whose `run` was left by an exception."""
        if self._running:
            self._outbox += encode(SIGNAL, bytes([_SIGKILL]))
            self._await(EXIT, time.monotonic() + self._grace)
            self._running = False

    def _await(self, wanted: int, deadline: float) -> bytes:
        while True:
            while self._messages:
                kind, payload = self._messages.pop(0)
                if kind == wanted:
                    return payload
            if time.monotonic() >= deadline:
                raise NoAnswer
            self._exchange(deadline, None)

    def _exchange(self, deadline: float | None, feeder: _Feeder | None) -> None:
        """Wait for one of the descriptors, at most until the deadline and never long; read and write what can be."""
        poll = select.poll()
        events = {self._reader: select.POLLIN}
        source = -1
        if feeder is not None and len(self._outbox) < CHUNK:
            source = feeder.ready(self._outbox)
        if self._outbox:
            events[self._writer] = events.get(self._writer, 0) | select.POLLOUT
        if source >= 0:
            events[source] = select.POLLIN
        for fd, mask in events.items():
            poll.register(fd, mask)
        wait = _SLICE if deadline is None else min(_SLICE, max(0.0, deadline - time.monotonic()))
        for fd, _ in poll.poll(wait * 1000):
            if fd == self._reader:
                self._receive()
            elif fd == source and feeder is not None:
                feeder.read(self._outbox)
        self._flush()

    def _receive(self) -> None:
        try:
            data = os.read(self._reader, 1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a reset connection, a terminal without its other end
        if not data:
            raise ChannelLost
        try:
            self._messages += self._decoder.feed(data)
        except ChannelError as error:
            raise ChannelLost(str(error)) from None

    def _flush(self) -> None:
        while self._outbox:
            try:
                count = os.write(self._writer, bytes(self._outbox[:CHUNK]))
            except BlockingIOError:
                return
            except OSError:
                return  # gone: reading says so, after what is still to be read
            del self._outbox[:count]


class _Feeder:
    """A command's input: bytes or a descriptor, cut into messages, never more of it on the way than the window."""

    def __init__(self, source: int | bytes) -> None:
        self._fd = source if isinstance(source, int) else -1
        self._data = memoryview(b"" if isinstance(source, int) else source)
        self._flying = 0
        self._ended = False

    def taken(self, count: int) -> None:
        """Note what the command has taken."""
        self._flying = max(0, self._flying - count)

    def ready(self, outbox: bytearray) -> int:
        """Put what is at hand into the outbox; return a descriptor to wait for, or -1."""
        if self._ended or self._flying >= WINDOW:
            return -1
        if self._fd >= 0:
            return self._fd
        while self._data and self._flying < WINDOW:
            piece = bytes(self._data[: min(CHUNK, WINDOW - self._flying)])
            self._data = self._data[len(piece) :]
            self._send(piece, outbox)
        if not self._data:
            self._end(outbox)
        return -1

    def read(self, outbox: bytearray) -> None:
        """Read from the descriptor, which is ready."""
        try:
            data = os.read(self._fd, min(CHUNK, WINDOW - self._flying))
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal that was hung up: no more input
        if data:
            self._send(data, outbox)
        else:
            self._end(outbox)

    def _send(self, data: bytes, outbox: bytearray) -> None:
        outbox += encode(INPUT, data)
        self._flying += len(data)

    def _end(self, outbox: bytearray) -> None:
        outbox += encode(END_OF_INPUT)
        self._ended = True


def _ending(payload: bytes, timed_out: bool) -> Ending:
    how, number, *name = unpack_strings(payload)
    if how == "error":
        return Ending(errno=int(number), name=name[0])
    if how == "signal":
        return Ending(signal=int(number), timed_out=timed_out)
    return Ending(status=int(number))
