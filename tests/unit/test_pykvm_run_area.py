"""Decoding of the run area, on a file that stands in for a vCPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import HostError
from pyvmm.pykvm import ExitReason, Sync, layout
from pyvmm.pykvm import run_area as ra
from pyvmm.pykvm.handle import Handle
from pyvmm.pykvm.run_area import CoalescedWrite, RunArea

SIZE = 3 * 4096
RING_SLOTS = (4096 - 8) // 24


def make_area() -> RunArea:
    fd = os.memfd_create("run")
    os.ftruncate(fd, SIZE)
    return RunArea(fd, "vCPU 7", SIZE, Handle(-1, "VM"))


@pytest.fixture
def area() -> Iterator[RunArea]:
    with make_area() as area:
        yield area


def test_views_agree(area: RunArea) -> None:
    area.run_view[8:12] = (6).to_bytes(4, "little")
    assert area.words[ra.WORD_EXIT_REASON] == area.exit_reason == ExitReason.MMIO
    assert int(area.run_record["exit_reason"]) == 6


@given(
    direction=st.integers(0, 1),
    size=st.sampled_from([1, 2, 4]),
    port=st.integers(0, 0xFFFF),
    count=st.integers(1, 1024),
)
def test_port_access(direction: int, size: int, port: int, count: int) -> None:
    with make_area() as area:
        area.run_record["io"] = (direction, size, port, count, 4096)
        io = area.io
        assert (io.direction, io.size, io.port, io.count, io.offset) == (direction, size, port, count, 4096)
        assert len(area.io_data) == size * count
        assert area.halves[ra.HALF_IO_PORT] == port
        assert area.words[ra.WORD_IO_COUNT] == count
        assert area.quads[ra.QUAD_IO_DATA_OFFSET] == 4096
        assert area.run_view[ra.BYTE_IO_DIRECTION] == direction
        assert area.run_view[ra.BYTE_IO_SIZE] == size
        area.io_data[-1] = 0x5A
        assert area.run_view[4096 + size * count - 1] == 0x5A


@given(gpa=st.integers(0, 2**64 - 1), data=st.binary(min_size=1, max_size=8), is_write=st.booleans())
def test_memory_access(gpa: int, data: bytes, is_write: bool) -> None:
    with make_area() as area:
        area.run_record["mmio"] = (gpa, np.frombuffer(data.ljust(8, b"\xee"), np.uint8), len(data), is_write)
        mmio = area.mmio
        assert (mmio.gpa, mmio.data, mmio.is_write) == (gpa, data, is_write)
        assert area.quads[ra.QUAD_MMIO_ADDR] == gpa
        assert area.words[ra.WORD_MMIO_LEN] == len(data)
        assert area.run_view[ra.BYTE_MMIO_IS_WRITE] == is_write
        area.answer_mmio(b"\x01\x02")
        assert area.quads[ra.QUAD_MMIO_DATA] & 0xFFFF == 0x0201


def test_emulation_failure_gives_the_instruction(area: RunArea) -> None:
    failure = area.run_record["emulation_failure"]
    failure["suberror"], failure["ndata"], failure["flags"], failure["insn_size"] = 1, 3, 1, 2
    failure["insn_bytes"][:2] = [0x0F, 0x0B]
    error = area.internal_error
    assert (error.suberror, error.instruction, len(error.data)) == (1, b"\x0f\x0b", 3)
    assert error.data[0] == 1


@pytest.mark.parametrize(("suberror", "ndata", "flags"), [(1, 0, 1), (1, 3, 0), (3, 4, 1)])
def test_other_internal_errors_give_no_instruction(area: RunArea, suberror: int, ndata: int, flags: int) -> None:
    failure = area.run_record["emulation_failure"]
    failure["suberror"], failure["ndata"], failure["flags"], failure["insn_size"] = suberror, ndata, flags, 2
    assert area.internal_error.instruction == b""
    assert len(area.internal_error.data) == ndata


def test_a_count_past_the_data_is_cut(area: RunArea) -> None:
    area.run_record["internal"]["ndata"] = 2**32 - 1
    assert len(area.internal_error.data) == 16


def test_cold_exits(area: RunArea) -> None:
    area.run_record["fail_entry"] = (0x80000021, 3)
    assert area.fail_entry == (0x80000021, 3)
    area.run_record["system_event"]["type"] = 2
    area.run_record["system_event"]["ndata"] = 1
    area.run_record["system_event"]["data"][0] = 9
    assert area.system_event == (2, (9,))
    area.run_record["debug"]["arch"] = (1, 0, 0x1234, 0x4000, 0x400)
    assert area.debug_exit == (1, 0x1234, 0x4000, 0x400)
    area.run_record["msr"]["index"] = 0x1B
    area.run_record["msr"]["reason"] = 4
    area.answer_msr(data=77)
    assert area.msr_access == (4, 0x1B, 77)
    assert area.run_record["msr"]["error"] == 0
    area.answer_msr(error=True)
    assert area.run_record["msr"]["error"] == 1
    assert area.msr_access.data == 77


def test_flags(area: RunArea) -> None:
    assert not (area.immediate_exit or area.request_interrupt_window or area.if_flag)
    assert not area.ready_for_interrupt_injection
    area.immediate_exit = area.request_interrupt_window = True
    assert area.run_view[:2].tolist() == [1, 1]
    assert area.immediate_exit and area.request_interrupt_window
    area.immediate_exit = False
    assert area.run_view[:2].tolist() == [1, 0]
    area.run_record["if_flag"] = 1
    area.run_record["ready_for_interrupt_injection"] = 1
    assert area.if_flag and area.ready_for_interrupt_injection


def test_sync_registers_are_live(area: RunArea) -> None:
    area.sync_enable(Sync.REGS | Sync.SREGS)
    area.sync_dirty(Sync.REGS)
    area.sync_dirty(Sync.EVENTS)
    assert area.quads[ra.QUAD_VALID_REGS] == 3
    assert area.quads[ra.QUAD_DIRTY_REGS] == 5
    area.sync_regs["rip"] = 0x1234
    assert area.quads[ra.QUAD_SYNC_REGS + 16] == 0x1234
    area.sync_sregs["cs"]["base"] = 0x5678
    assert area.quads[ra.QUAD_SYNC_SREGS] == 0x5678
    area.sync_events["nmi"]["pending"] = 1
    assert area.run_record["s"]["regs"]["events"]["nmi"]["pending"] == 1


def put(area: RunArea, at: int, write: CoalescedWrite) -> None:
    entry = np.frombuffer(area.run_view, layout.COALESCED_MMIO, RING_SLOTS, 2 * 4096 + 8)[at]
    entry["phys_addr"], entry["len"], entry["pio"] = write.addr, len(write.data), write.pio
    entry["data"][: len(write.data)] = list(write.data)


@given(
    start=st.integers(0, RING_SLOTS - 1),
    writes=st.lists(
        st.builds(CoalescedWrite, st.integers(0, 2**64 - 1), st.binary(min_size=1, max_size=8), st.booleans()),
        max_size=RING_SLOTS - 1,
    ),
)
def test_the_ring_is_read_in_order_and_wraps(start: int, writes: list[CoalescedWrite]) -> None:
    with make_area() as area:
        for number, write in enumerate(writes):
            put(area, (start + number) % RING_SLOTS, write)
        last = (start + len(writes)) % RING_SLOTS
        area.words[2048], area.words[2049] = start, last
        assert area.drain_coalesced() == writes
        assert area.words[2048] == last
        assert area.drain_coalesced() == []


def test_closed_views_refuse(area: RunArea) -> None:
    words, view = area.words, area.run_view
    area.close()
    area.close()
    for read in (lambda: words[2], lambda: view[0], lambda: area.exit_reason, lambda: area.quads[0], lambda: area.io):
        with pytest.raises(ValueError, match=r"released|closed"):
            read()


def test_a_live_array_outlives_close(area: RunArea) -> None:
    record, words = area.run_record, area.words
    held = np.frombuffer(words, np.uint32)
    area.close()
    record["exit_reason"] = 5
    assert held[2] == 5
    with pytest.raises(ValueError, match="released"):
        area.words[2]


def test_failing_to_map_closes_the_descriptor() -> None:
    fd = os.memfd_create("empty")
    with pytest.raises(HostError, match="run area"):
        RunArea(fd, "vCPU 0", SIZE, Handle(-1, "VM"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
