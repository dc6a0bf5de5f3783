"""Output on its way from a serial port to a console: nothing is lost, nothing waits for long, order stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.console_output import ConsoleOutput


class Sink:
    """A back end that keeps what it gets."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.errors: list[BaseException] = []
        self.broken = False
        self.got = threading.Event()
        self.output = ConsoleOutput(self.write, self.errors.append)

    def write(self, data: bytes) -> None:
        if self.broken:
            raise OSError("broken")
        self.pieces.append(data)
        self.got.set()

    def type(self, data: bytes) -> None:
        for byte in data:
            self.output.put(bytes((byte,)))


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    yield made
    made.output.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "console-output"]


def test_a_line_goes_out_at_its_end(sink: Sink) -> None:
    sink.type(b"one\r\n")
    assert b"".join(sink.pieces) == b"one\r\n"


def test_a_prompt_goes_out_soon(sink: Sink) -> None:
    sink.type(b"~ # ")
    assert sink.got.wait(10)
    deadline = time.monotonic() + 10
    while b"".join(sink.pieces) != b"~ # " and time.monotonic() < deadline:
        time.sleep(0.001)
    assert b"".join(sink.pieces) == b"~ # "
    sink.got.clear()
    sink.type(b"x")  # the timer is set anew
    assert sink.got.wait(10)


def test_much_goes_out_without_a_line_end(sink: Sink) -> None:
    sink.output.flush()
    sink.output.put(b"x" * 5000)
    assert sink.pieces == [b"x" * 5000]


def test_flush_and_close_pass_on_what_is_there(sink: Sink) -> None:
    sink.type(b"abc")
    sink.output.flush()
    assert b"".join(sink.pieces) == b"abc"
    sink.type(b"def")
    sink.output.close()
    assert b"".join(sink.pieces) == b"abcdef"


def test_it_is_seen_before_it_is_written(sink: Sink) -> None:
    seen: list[tuple[bytes, int]] = []
    sink.output.seen = lambda data: seen.append((data, len(sink.pieces)))
    sink.output.put(b"\n")
    assert seen == [(b"\n", 0)]


def test_what_the_back_end_raises_surfaces(sink: Sink) -> None:
    sink.broken = True
    with pytest.raises(OSError, match="broken"):
        sink.output.put(b"\n")
    sink.output.put(b"x")
    deadline = time.monotonic() + 10
    while not sink.errors and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [str(error) for error in sink.errors] == ["broken"]
    sink.broken = False


@given(st.lists(st.sampled_from([b"a", b"b", b"\n", b"\r", b"xyz", b"1\n2"]), max_size=200))
def test_order_stays(pieces: list[bytes]) -> None:
    sink = Sink()
    for piece in pieces:
        sink.output.put(piece)
    sink.output.close()
    assert b"".join(sink.pieces) == b"".join(pieces)


def test_nothing_is_lost_while_others_flush(sink: Sink) -> None:
    ended = threading.Event()

    def flush() -> None:
        while not ended.is_set():
            sink.output.flush()

    others = [threading.Thread(target=flush) for _ in range(2)]
    for thread in others:
        thread.start()
    data = bytes(range(256)) * 400
    sink.type(data)
    ended.set()
    for thread in others:
        thread.join()
    sink.output.close()
    assert b"".join(sink.pieces) == data


def test_close_never_misses_the_timer() -> None:
    for delay in range(60):
        sink = Sink()
        sink.output.put(b"x")
        time.sleep(delay / 4000)  # around the instant at which the timer goes off
        closer = threading.Thread(target=sink.output.close)
        closer.start()
        closer.join(10)
        assert not closer.is_alive()
        assert sink.pieces == [b"x"]
