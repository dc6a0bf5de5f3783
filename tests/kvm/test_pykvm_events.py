"""Guest accesses that cause no exit, and MSR accesses that do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import numpy as np
import pytest

from pyvmm.pykvm import Cap, ExitReason, KvmError, MsrExit, MsrRange
from pyvmm.pykvm.constants import MsrFilterFlag
from pyvmm.pykvm.run_area import CoalescedWrite
from tests.kvm.pykvm_guest import HOLE, Guest, needs

pytestmark = [pytest.mark.kvm, pytest.mark.intel]

DONE = "e610"
SYSENTER_CS = 0x174
READ_MSR = "66b974010000" + "0f32"  # mov ecx,0x174; rdmsr
WRITE_MSR = "66b974010000" + "66b878563412" + "6631d2" + "0f30"  # edx:eax = 0x12345678; wrmsr


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_port_write_to_an_eventfd(event: int) -> None:
    with Guest("b001e630" * 3 + DONE) as guest, needs(guest.vm, Cap.IOEVENTFD):
        guest.vm.ioeventfd(event, 0x30, 1, pio=True)
        with pytest.raises(KvmError) as caught:
            guest.vm.ioeventfd(event, 0x30, 1, pio=True)
        assert (caught.value.errno, caught.value.ioctl) == (errno.EEXIST, "KVM_IOEVENTFD")
        assert guest.run_to_done() == 1
        assert os.eventfd_read(event) == 3


def test_only_the_matching_value_counts(event: int) -> None:
    with Guest("b007e630" + "b008e630" + DONE) as guest, needs(guest.vm, Cap.IOEVENTFD):
        guest.vm.ioeventfd(event, 0x30, 1, datamatch=7, pio=True)
        assert guest.run() == ExitReason.IO
        assert (guest.vcpu.io.port, guest.vcpu.io_data[0]) == (0x30, 8)
        assert os.eventfd_read(event) == 1
        assert guest.run_to_done() == 8


def test_an_eventfd_can_be_taken_back(event: int) -> None:
    with Guest("b007e630" + DONE) as guest, needs(guest.vm, Cap.IOEVENTFD):
        guest.vm.ioeventfd(event, 0x30, 1, datamatch=7, pio=True)
        with pytest.raises(KvmError, match="no such registration"):
            guest.vm.ioeventfd(event, 0x30, 1, datamatch=8, pio=True, deassign=True)
        guest.vm.ioeventfd(event, 0x30, 1, datamatch=7, pio=True, deassign=True)
        assert guest.run() == ExitReason.IO
        assert guest.vcpu.io.port == 0x30
        with pytest.raises(BlockingIOError):
            os.eventfd_read(event)


@pytest.mark.parametrize("size", [1, 0])
def test_memory_write_to_an_eventfd(event: int, size: int) -> None:
    needed = Cap.IOEVENTFD if size else Cap.IOEVENTFD_ANY_LENGTH
    with Guest("b009a20000" + DONE) as guest, needs(guest.vm, needed):
        guest.vm.ioeventfd(event, HOLE, size)
        guest.data_at(HOLE)
        assert guest.run_to_done() == 9
        assert os.eventfd_read(event) == 1


def test_bad_length(event: int) -> None:
    with Guest() as guest, needs(guest.vm, Cap.IOEVENTFD), pytest.raises(KvmError, match="length must be"):
        guest.vm.ioeventfd(event, HOLE, 3)


def test_coalesced_memory() -> None:
    # Three stores: byte at 0, word at 2, byte at 8; the last lies outside the zone.
    code = "b041a20000" + "b84342a30200" + "b045a20800" + DONE
    with Guest(code) as guest, needs(guest.vm, Cap.COALESCED_MMIO):
        guest.vm.register_coalesced(HOLE, 8)
        guest.data_at(HOLE)
        assert guest.run() == ExitReason.MMIO
        assert guest.vcpu.mmio.gpa == HOLE + 8
        assert guest.vcpu.drain_coalesced() == [
            CoalescedWrite(HOLE, b"\x41", False),
            CoalescedWrite(HOLE + 2, b"\x43\x42", False),
        ]
        assert guest.vcpu.drain_coalesced() == []
        assert guest.run_to_done() == 0x45


def test_the_coalesced_ring_fills_and_wraps() -> None:
    # mov cx,1000; 1: mov [0],cl (through al); loop 1b
    with Guest("b9e803" + "88c8a20000e2f9" + DONE) as guest, needs(guest.vm, Cap.COALESCED_MMIO):
        guest.vm.register_coalesced(HOLE, 8)
        guest.data_at(HOLE)
        written: list[bytes] = []
        while guest.run() == ExitReason.MMIO:  # the ring was full: this store comes after those in it
            written += [one.data for one in guest.vcpu.drain_coalesced()]
            written.append(guest.vcpu.mmio.data)
        written += [one.data for one in guest.vcpu.drain_coalesced()]
        assert written == [bytes([count & 0xFF]) for count in range(1000, 0, -1)]


def test_coalesced_ports() -> None:
    with Guest("b007e640" + "b008e640" + DONE) as guest, needs(guest.vm, Cap.COALESCED_PIO):
        guest.vm.register_coalesced(0x40, 1, pio=True)
        assert guest.run_to_done() == 8
        assert guest.vcpu.drain_coalesced() == [
            CoalescedWrite(0x40, b"\x07", True),
            CoalescedWrite(0x40, b"\x08", True),
        ]


def test_coalescing_ends() -> None:
    with Guest("b041a20000" + DONE) as guest, needs(guest.vm, Cap.COALESCED_MMIO):
        guest.vm.register_coalesced(HOLE, 8)
        guest.vm.unregister_coalesced(HOLE, 8)
        guest.data_at(HOLE)
        assert guest.run() == ExitReason.MMIO


def deny_sysenter(guest: Guest, flags: MsrFilterFlag) -> None:
    guest.vm.enable_msr_exits(MsrExit.FILTER)
    allowed = np.array([False, True, True])
    guest.vm.set_msr_filter([MsrRange(SYSENTER_CS, allowed, flags)])


def test_msr_read_is_answered_from_here() -> None:
    with Guest(READ_MSR + DONE) as guest, needs(guest.vm, Cap.X86_MSR_FILTER):
        deny_sysenter(guest, MsrFilterFlag.READ)
        assert guest.run() == ExitReason.X86_RDMSR
        access = guest.vcpu.msr_access
        assert (access.index, access.reason) == (SYSENTER_CS, MsrExit.FILTER)
        guest.vcpu.answer_msr(data=0x5B)
        assert guest.run_to_done() == 0x5B


def test_msr_write_comes_here() -> None:
    with Guest(WRITE_MSR + DONE) as guest, needs(guest.vm, Cap.X86_MSR_FILTER):
        deny_sysenter(guest, MsrFilterFlag.WRITE)
        assert guest.run() == ExitReason.X86_WRMSR
        assert guest.vcpu.msr_access == (MsrExit.FILTER, SYSENTER_CS, 0x12345678)
        guest.vcpu.answer_msr()
        assert guest.run_to_done() == 0x78
        assert guest.vcpu.msrs([SYSENTER_CS]) == {SYSENTER_CS: 0}


def test_msr_access_can_be_refused() -> None:
    with Guest(READ_MSR + DONE) as guest, needs(guest.vm, Cap.X86_MSR_FILTER):
        guest.on_vector(13, 0x0D)
        deny_sysenter(guest, MsrFilterFlag.READ)
        assert guest.run() == ExitReason.X86_RDMSR
        guest.vcpu.answer_msr(error=True)
        assert guest.run_to_done() == 0x0D


def test_the_filter_can_be_removed() -> None:
    with Guest(READ_MSR + DONE) as guest, needs(guest.vm, Cap.X86_MSR_FILTER):
        deny_sysenter(guest, MsrFilterFlag.READ)
        guest.vm.set_msr_filter([])
        guest.vcpu.set_msrs({SYSENTER_CS: 0x23})
        assert guest.run_to_done() == 0x23


def test_filters_that_are_too_big() -> None:
    with Guest() as guest, needs(guest.vm, Cap.X86_MSR_FILTER):
        one = MsrRange(0, np.ones(8, np.bool_))
        with pytest.raises(KvmError, match="17 ranges, but KVM takes at most 16"):
            guest.vm.set_msr_filter([one] * 17)
        with pytest.raises(KvmError, match="split it"):
            guest.vm.set_msr_filter([MsrRange(0, np.ones(0x600 * 8 + 1, np.bool_))])
        with pytest.raises(KvmError, match="denied by default") as caught:
            guest.vm.set_msr_filter([], default_deny=True)
        assert caught.value.errno == errno.EINVAL
