"""The channel: what goes in comes out, in whatever pieces it travels and whatever noise is in front."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.host.lab.channel import (
    END_OF_INPUT,
    ERROR,
    EXIT,
    HELLO,
    INPUT,
    MAGIC,
    MAX_PAYLOAD,
    OUTPUT,
    RUN,
    TAKEN,
    ChannelError,
    Decoder,
    decode_count,
    decode_size,
    encode,
    encode_count,
    encode_size,
    pack_strings,
    unpack_strings,
)

KINDS = st.sampled_from([RUN, INPUT, END_OF_INPUT, HELLO, OUTPUT, ERROR, TAKEN, EXIT])
MESSAGES = st.lists(st.tuples(KINDS, st.binary(max_size=300)), max_size=8)


@given(MESSAGES, st.binary(max_size=60), st.lists(st.integers(1, 40)))
def test_messages_survive_noise_and_any_cutting(
    messages: list[tuple[int, bytes]], noise: bytes, cuts: list[int]
) -> None:
    if MAGIC in noise + MAGIC[:-1]:
        return
    stream = noise + MAGIC + b"".join(encode(kind, payload) for kind, payload in messages)
    decoder = Decoder()
    received: list[tuple[int, bytes]] = []
    for cut in cuts:
        received += decoder.feed(stream[:cut])
        stream = stream[cut:]
    received += decoder.feed(stream)
    assert received == messages
    assert decoder.ready
    assert bytes(decoder.noise) == noise


@given(st.binary(max_size=200))
def test_garbage_yields_messages_or_an_error_and_nothing_else(data: bytes) -> None:
    decoder = Decoder()
    try:
        for kind, payload in decoder.feed(MAGIC + data):
            assert encode(kind, payload) in data
    except ChannelError as error:
        assert "\n" not in str(error)


def test_noise_is_kept_within_bounds() -> None:
    decoder = Decoder()
    for _ in range(100):
        assert not list(decoder.feed(b"x" * 1000))
    assert len(decoder.noise) == 4096
    assert list(decoder.feed(MAGIC + encode(HELLO, b"!"))) == [(HELLO, b"!")]


def test_absurd_lengths_and_kinds_are_errors() -> None:
    with pytest.raises(ChannelError):
        list(Decoder().feed(MAGIC + bytes([OUTPUT]) + b"\xff\xff\xff\xff"))
    with pytest.raises(ChannelError):
        list(Decoder().feed(MAGIC + b"Z\0\0\0\0"))
    with pytest.raises(ChannelError):
        encode(OUTPUT, bytes(MAX_PAYLOAD + 1))
    with pytest.raises(ChannelError):
        encode(ord("Z"))


@given(st.lists(st.binary(max_size=50).map(os.fsdecode)))
def test_strings_survive(strings: list[str]) -> None:
    assert unpack_strings(pack_strings(strings)) == strings


@given(st.binary(max_size=50))
def test_cut_strings_are_errors(data: bytes) -> None:
    try:
        strings = unpack_strings(data)
    except ChannelError:
        return
    assert pack_strings(strings) == data


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF))
def test_numbers_survive(rows: int, columns: int, count: int) -> None:
    assert decode_size(encode_size(rows, columns)) == (rows, columns)
    assert decode_count(encode_count(count)) == count


def test_numbers_of_another_length_are_errors() -> None:
    with pytest.raises(ChannelError):
        decode_size(b"abc")
    with pytest.raises(ChannelError):
        decode_count(b"abc")
