"""Running a vCPU: exits, interruption, synchronized registers, debugging."""

from __future__ import annotations

import errno
import os
import signal
import threading
from types import FrameType

import numpy as np
import pytest

from pyvmm.pykvm import Cap, ExitReason, GuestDebug, InternalError, KvmError, Sync
from pyvmm.pykvm.constants import IO_IN, IO_OUT, EventsValid
from pyvmm.pykvm.handle import Record
from tests.kvm.pykvm_guest import CODE, HOLE, Guest, deadline, needs

pytestmark = pytest.mark.kvm

DONE = "e610"
SPIN = "ebfe"
CR0_PE, CR0_PG, CR4_PAE, EFER_LME, EFER_LMA = 1, 1 << 31, 1 << 5, 1 << 8, 1 << 10


def flat(sregs: Record, long: bool) -> None:
    """Make the segments flat: 32-bit, or 64-bit code."""
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment, code = sregs[name], name == "cs"
        segment["base"], segment["limit"], segment["g"] = 0, 0xFFFFFFFF, 1
        segment["selector"], segment["type"] = (8, 11) if code else (16, 3)
        segment["db"], segment["l"] = not (code and long), code and long


def test_port_accesses() -> None:
    # out dx,ax to 0x1234; in al,0x21; out 0x10,al
    with Guest("b8cdab" + "ba3412ef" + "e421" + DONE) as guest:
        assert guest.run() == ExitReason.IO
        io = guest.vcpu.io
        assert (io.direction, io.size, io.port, io.count) == (IO_OUT, 2, 0x1234, 1)
        assert bytes(guest.vcpu.io_data) == b"\xcd\xab"
        assert guest.run() == ExitReason.IO
        assert (guest.vcpu.io.direction, guest.vcpu.io.port) == (IO_IN, 0x21)
        guest.vcpu.io_data[0] = 0x3C
        assert guest.run_to_done() == 0x3C


def test_string_output() -> None:
    # mov si,0x1800; mov dx,0x22; mov cx,5; cld; rep outsb
    with Guest("be0018" + "ba2200" + "b90500" + "fc" + "f36e" + DONE) as guest:
        guest.ram[0x1800:0x1805] = b"hello"
        said = b""
        while guest.run() == ExitReason.IO and guest.vcpu.io.port == 0x22:
            said += bytes(guest.vcpu.io_data)
        assert said == b"hello"
        assert guest.vcpu.io.port == 0x10


def test_memory_accesses() -> None:
    # mov [0x10],ax; mov al,[0x20]; out 0x10,al
    with Guest("b8cdab" + "a31000" + "a02000" + DONE) as guest:
        guest.data_at(HOLE)
        assert guest.run() == ExitReason.MMIO
        assert guest.vcpu.mmio == (HOLE + 0x10, b"\xcd\xab", True)
        assert guest.run() == ExitReason.MMIO
        mmio = guest.vcpu.mmio
        assert (mmio.gpa, len(mmio.data), mmio.is_write) == (HOLE + 0x20, 1, False)
        guest.vcpu.answer_mmio(b"\x5d")
        assert guest.run_to_done() == 0x5D


def test_halt() -> None:
    with Guest("f4") as guest:
        assert guest.run() == ExitReason.HLT
        assert int(guest.vcpu.regs()["rip"]) == CODE + 1


def test_triple_fault() -> None:
    with Guest("0f0b") as guest:  # ud2 with no interrupt table at all
        sregs = guest.vcpu.sregs()
        flat(sregs, long=False)
        sregs["cr0"] = int(sregs["cr0"]) | CR0_PE
        sregs["idt"]["limit"] = 0
        guest.vcpu.set_sregs(sregs)
        assert guest.run() == ExitReason.SHUTDOWN


def test_an_instruction_that_some_kvms_cannot_emulate() -> None:
    with Guest("9b" + DONE) as guest:  # fwait
        reason = guest.run()
        if reason == ExitReason.IO:
            assert guest.vcpu.io.port == 0x10
        else:
            assert reason == ExitReason.INTERNAL_ERROR
            error = guest.vcpu.internal_error
            assert error.suberror == InternalError.EMULATION
            assert error.instruction[:1] in (b"\x9b", b"")


def test_immediate_exit() -> None:
    with Guest("b001" + DONE) as guest, needs(guest.vm, Cap.IMMEDIATE_EXIT):
        guest.vm.require(Cap.IMMEDIATE_EXIT)
        guest.vcpu.immediate_exit = True
        with pytest.raises(InterruptedError):
            guest.vcpu.run()
        assert int(guest.vcpu.regs()["rip"]) == CODE
        guest.vcpu.immediate_exit = False
        assert guest.run_to_done() == 1


def test_a_signal_ends_the_run() -> None:
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    with Guest(SPIN) as guest:
        former = signal.signal(signal.SIGALRM, note)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)  # repeated: the first may come before the guest is entered
            with pytest.raises(InterruptedError):
                guest.vcpu.run()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
    assert caught


def test_what_a_signal_handler_raises_comes_through() -> None:
    with Guest(SPIN) as guest, pytest.raises(TimeoutError), deadline(0.02):
        guest.vcpu.run()


def test_signal_mask_lets_a_kick_through() -> None:
    kick = signal.SIGUSR1
    with Guest(SPIN) as guest:
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {kick})
        try:
            guest.vcpu.set_signal_mask({int(number) for number in former} - {kick})
            signal.pthread_kill(threading.get_ident(), kick)  # stays pending until KVM_RUN lets it through
            with deadline(), pytest.raises(InterruptedError):
                guest.vcpu.run()
            assert signal.sigtimedwait({kick}, 0) is not None
            guest.vcpu.set_signal_mask(None)
            guest.put(CODE, "b002" + DONE)
            signal.pthread_kill(threading.get_ident(), kick)
            assert guest.run_to_done() == 2
            assert signal.sigtimedwait({kick}, 0) is not None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)


def test_a_kick_from_another_thread() -> None:
    kick = signal.SIGUSR2
    with Guest(SPIN) as guest:
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {kick})
        try:
            guest.vcpu.set_signal_mask({int(number) for number in former} - {kick})
            timer = threading.Timer(0.02, signal.pthread_kill, (threading.get_ident(), kick))
            timer.start()
            with deadline(), pytest.raises(InterruptedError):
                guest.vcpu.run()
            timer.join()
            signal.sigtimedwait({kick}, 0)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)


def test_sync_registers() -> None:
    # out 0x10,al twice; between them the registers are changed through the run area alone.
    with Guest("b055" + DONE + DONE) as guest, needs(guest.vm, Cap.SYNC_REGS):
        classes = guest.vm.require(Cap.SYNC_REGS)
        assert classes & (Sync.REGS | Sync.SREGS) == Sync.REGS | Sync.SREGS
        vcpu = guest.vcpu
        vcpu.sync_enable(Sync.REGS | Sync.SREGS | Sync.EVENTS & classes)
        assert guest.run_to_done() == 0x55
        vcpu.immediate_exit = True
        with pytest.raises(InterruptedError):
            vcpu.run()  # completes the OUT: RIP is past it now
        vcpu.immediate_exit = False
        assert int(vcpu.sync_regs["rip"]) == CODE + 4
        assert int(vcpu.sync_regs["rax"]) & 0xFF == 0x55
        assert vcpu.sync_regs == vcpu.regs()
        assert vcpu.sync_sregs["cs"] == vcpu.sregs()["cs"]
        assert vcpu.sync_sregs["cr0"] == vcpu.sregs()["cr0"]
        vcpu.sync_regs["rax"] = 0x66
        vcpu.sync_dirty(Sync.REGS)
        assert guest.run_to_done() == 0x66
        assert vcpu.run_record["kvm_dirty_regs"] == 0


def test_impossible_synchronized_state() -> None:
    with Guest() as guest, needs(guest.vm, Cap.SYNC_REGS):
        guest.vm.require(Cap.SYNC_REGS)
        guest.vcpu.quads[288 // 8] = 1 << 40
        with pytest.raises(KvmError, match="cannot be entered") as caught:
            guest.vcpu.run()
        assert (caught.value.errno, caught.value.ioctl) == (errno.EINVAL, "KVM_RUN")


@pytest.mark.xfail(os.environ.get("PYVMM_LAB") == "intel", reason="Bochs' emulated VM entry", strict=True)
def test_single_step() -> None:
    with Guest("909090f4") as guest, needs(guest.vm, Cap.SET_GUEST_DEBUG):
        guest.vcpu.set_guest_debug(GuestDebug.ENABLE | GuestDebug.SINGLESTEP)
        for step in (1, 2, 3):
            assert guest.run() == ExitReason.DEBUG
            debug = guest.vcpu.debug_exit
            assert (debug.exception, debug.pc) == (1, CODE + step)
            assert debug.dr6 >> 14 & 1 == 1  # DR6.BS
        guest.vcpu.set_guest_debug(0)
        assert guest.run() == ExitReason.HLT


@pytest.mark.xfail(
    os.environ.get("PYVMM_LAB") == "amd", reason="QEMU's emulated VMRUN arms no breakpoints", strict=True
)
def test_hardware_breakpoint() -> None:
    with Guest("909090f4") as guest, needs(guest.vm, Cap.SET_GUEST_DEBUG):
        enable_0 = 0x402  # DR7: bit 10 is fixed, G0
        guest.vcpu.set_guest_debug(GuestDebug.ENABLE | GuestDebug.USE_HW_BP, [CODE + 2, 0, 0, 0, 0, 0, 0, enable_0])
        assert guest.run() == ExitReason.DEBUG
        assert guest.vcpu.debug_exit.pc == CODE + 2


def test_translate() -> None:
    with Guest() as guest:
        assert guest.vcpu.translate(0x5678)[:2] == (0x5678, True)
        # 4-level paging by hand (SDM vol. 3, 4.5): tables from 0x10000 on, in which only page 3 is mapped, to 0x7000.
        table = np.frombuffer(guest.ram, np.uint64)
        table[0x10000 // 8], table[0x11000 // 8], table[0x12000 // 8] = 0x11007, 0x12007, 0x13007
        table[0x13000 // 8 + 3] = 0x7007
        del table
        sregs = guest.vcpu.sregs()
        flat(sregs, long=True)
        sregs["cr0"], sregs["cr3"], sregs["cr4"], sregs["efer"] = CR0_PG | CR0_PE, 0x10000, CR4_PAE, EFER_LMA | EFER_LME
        guest.vcpu.set_sregs(sregs)
        assert guest.vcpu.translate(0x3123)[:2] == (0x7123, True)
        assert not guest.vcpu.translate(0x4123).valid


def test_injected_exception() -> None:
    with Guest(SPIN) as guest, needs(guest.vm, Cap.VCPU_EVENTS):
        guest.on_vector(6, 0x0B)
        events = guest.vcpu.vcpu_events()
        events["exception"]["injected"], events["exception"]["nr"] = 1, 6
        guest.vcpu.set_vcpu_events(events)
        assert guest.run_to_done() == 0x0B


def test_events_round_trip() -> None:
    with Guest() as guest, needs(guest.vm, Cap.VCPU_EVENTS):
        events = guest.vcpu.vcpu_events()
        events["nmi"]["masked"] = 1
        events["flags"] = EventsValid.NMI_PENDING
        guest.vcpu.set_vcpu_events(events)
        assert int(guest.vcpu.vcpu_events()["nmi"]["masked"]) == 1
        events["exception"]["injected"], events["exception"]["nr"] = 1, 32
        with pytest.raises(KvmError, match="past 31"):
            guest.vcpu.set_vcpu_events(events)
