"""Interrupts into a guest, by every way that KVM offers."""

from __future__ import annotations

import errno
import os
import select

import pytest

from pyvmm.pykvm import Cap, ExitReason, Irqchip, KvmError, MpState, System, irqchip_route, layout, msi_route
from tests.kvm.pykvm_guest import Guest, needs

pytestmark = [pytest.mark.kvm, pytest.mark.intel]

WAIT = "b042fbebfe"  # mov al,0x42; sti; jmp $
MSI_ADDRESS = 0xFEE00000


def test_irq_line_through_the_pic() -> None:
    with Guest(WAIT, irqchip="full") as guest:
        guest.enable_pic()
        guest.on_vector(0x24, 0x76)
        guest.vm.irq_line(4, 1)
        guest.vm.irq_line(4, 0)
        assert guest.run_to_done() == 0x76


def test_irq_line_status() -> None:
    with Guest(WAIT, irqchip="full") as guest, needs(guest.vm, Cap.IRQ_INJECT_STATUS):
        guest.enable_pic()
        assert guest.vm.irq_line_status(4, 1) > 0
        assert guest.run_to_done() == 0x42


def test_irq_line_without_a_controller() -> None:
    with Guest() as guest:
        with pytest.raises(KvmError, match="no in-kernel interrupt controller") as caught:
            guest.vm.irq_line(4, 1)
        assert (caught.value.errno, caught.value.ioctl) == (errno.ENXIO, "KVM_IRQ_LINE")


def test_controller_twice_or_too_late() -> None:
    with System() as system, system.create_vm() as vm:
        vm.create_irqchip()
        with pytest.raises(KvmError, match="already") as caught:
            vm.create_irqchip()
        assert caught.value.errno == errno.EEXIST
    with System() as system, system.create_vm() as vm:
        vm.create_vcpu()
        with pytest.raises(KvmError, match="before the first vCPU"):
            vm.create_irqchip()


def test_chip_states_round_trip() -> None:
    with Guest(irqchip="full") as guest:
        for chip in Irqchip:
            state = guest.vm.get_irqchip(chip)
            assert state.dtype == layout.IRQCHIP and int(state["chip_id"]) == chip
            guest.vm.set_irqchip(state)
        ioapic = guest.vm.get_irqchip(Irqchip.IOAPIC)
        assert int(ioapic["chip"]["ioapic"]["base_address"]) == 0xFEC00000
        masked = 1 << 16
        ioapic["chip"]["ioapic"]["redirtbl"][7] = masked | 0x55
        guest.vm.set_irqchip(ioapic)
        assert int(guest.vm.get_irqchip(Irqchip.IOAPIC)["chip"]["ioapic"]["redirtbl"][7]) == masked | 0x55


def test_pit() -> None:
    with System() as system, system.create_vm() as vm, needs(vm, Cap.PIT2):
        vm.create_irqchip()
        vm.create_pit2()
        with pytest.raises(KvmError, match="already"):
            vm.create_pit2()
        with needs(vm, Cap.PIT_STATE2):
            state = vm.get_pit2()
            assert state.dtype == layout.PIT_STATE2
            state["channels"][2]["count"], state["channels"][2]["mode"] = 0x1234, 3
            vm.set_pit2(state)
            channel = vm.get_pit2()["channels"][2]
            assert (int(channel["count"]), int(channel["mode"])) == (0x1234, 3)


def test_pit_interrupts_the_guest() -> None:
    # Channel 0, mode 2, count 0x1000: out 0x43 and twice out 0x40, then wait.
    with Guest("b034e643b000e640b010e640" + WAIT, irqchip="full") as guest, needs(guest.vm, Cap.PIT2):
        guest.vm.create_pit2()
        guest.enable_pic()
        assert guest.run_to_done() == 0x42


def test_signal_msi() -> None:
    with Guest(WAIT, irqchip="full") as guest, needs(guest.vm, Cap.SIGNAL_MSI):
        guest.enable_apic()
        guest.on_vector(0x51, 0x77)
        assert guest.vm.signal_msi(MSI_ADDRESS, 0x51)
        assert guest.run_to_done() == 0x77


def test_gsi_routing() -> None:
    with Guest(WAIT, irqchip="full") as guest, needs(guest.vm, Cap.IRQ_ROUTING):
        guest.enable_apic()
        guest.vm.set_gsi_routing([msi_route(5, MSI_ADDRESS, 0x61), irqchip_route(4, Irqchip.IOAPIC, 4)])
        guest.on_vector(0x61, 0x78)
        guest.vm.irq_line(5, 1)
        assert guest.run_to_done() == 0x78


def test_bad_routes() -> None:
    with Guest(irqchip="full") as guest, needs(guest.vm, Cap.IRQ_ROUTING):
        with pytest.raises(KvmError, match="unknown type"):
            guest.vm.set_gsi_routing([irqchip_route(4, Irqchip.IOAPIC, 99)])
        room = guest.vm.require(Cap.IRQ_ROUTING)
        with pytest.raises(KvmError, match=f"at most {room}"):
            guest.vm.set_gsi_routing([msi_route(0, MSI_ADDRESS, 0x20)] * (room + 1))


def test_split_irqchip() -> None:
    with System() as system, system.create_vm() as vm, needs(vm, Cap.SPLIT_IRQCHIP):
        vm.enable_split_irqchip(24)
        with pytest.raises(KvmError, match="no in-kernel PIC"):
            vm.get_irqchip(Irqchip.PIC_MASTER)
    with System() as system:
        if not system.check_extension(Cap.SPLIT_IRQCHIP):
            return
    with Guest(WAIT, irqchip="split") as guest:
        guest.enable_apic()
        guest.on_vector(0x51, 0x77)
        assert guest.vm.signal_msi(MSI_ADDRESS, 0x51)
        assert guest.run_to_done() == 0x77


def test_irqfd() -> None:
    with Guest(WAIT, irqchip="full") as guest, needs(guest.vm, Cap.IRQFD):
        event = os.eventfd(0)
        try:
            guest.enable_apic()
            guest.on_vector(0x61, 0x79)
            guest.vm.set_gsi_routing([msi_route(5, MSI_ADDRESS, 0x61)])
            guest.vm.irqfd(event, 5)
            with pytest.raises(KvmError, match="already") as caught:
                guest.vm.irqfd(event, 5)
            assert caught.value.errno == errno.EBUSY
            os.eventfd_write(event, 1)
            assert guest.run_to_done() == 0x79
            guest.vm.irqfd(event, 5, deassign=True)
            guest.vm.irqfd(event, 5)
        finally:
            os.close(event)


def test_irqfd_of_something_else() -> None:
    with Guest(irqchip="full") as guest, needs(guest.vm, Cap.IRQFD):
        with pytest.raises(KvmError) as caught:
            guest.vm.irqfd(0x7FFFFFFF, 5)
        assert (caught.value.errno, caught.value.ioctl) == (errno.EBADF, "KVM_IRQFD")


def test_irqfd_with_resampling() -> None:
    # The handler acknowledges at the PIC, level triggered by the ELCR; KVM then drops the line and tells the resampler.
    with (
        Guest(WAIT, handler="b020e620b043e610f4", irqchip="full") as guest,
        needs(guest.vm, Cap.IRQFD_RESAMPLE),
    ):
        event, resample = os.eventfd(0), os.eventfd(0)
        try:
            state = guest.vm.get_irqchip(Irqchip.PIC_MASTER)
            state["chip"]["pic"]["elcr"] = 1 << 5
            guest.vm.set_irqchip(state)
            guest.enable_pic()
            guest.vm.irqfd(event, 5, resample=resample)
            os.eventfd_write(event, 1)
            assert guest.run_to_done() == 0x43
            assert select.select([resample], [], [], 2)[0] == [resample]
            assert os.eventfd_read(resample) == 1
            guest.vm.irqfd(event, 5, resample=resample, deassign=True)
        finally:
            os.close(event)
            os.close(resample)


def test_a_second_vcpu_starts_by_init_and_sipi() -> None:
    with Guest(irqchip="full", handler="b07ee610") as guest, needs(guest.vm, Cap.SIGNAL_MSI):
        guest.vm.require(Cap.SIGNAL_MSI)
        second = guest.vm.create_vcpu(1)
        assert second.mp_state() == MpState.UNINITIALIZED
        second.set_lapic(second.lapic())  # KVM lists the APIC as a destination once it was set
        to_second = MSI_ADDRESS | 1 << 12
        assert guest.vm.signal_msi(to_second, 5 << 8)  # INIT
        assert guest.vm.signal_msi(to_second, 6 << 8 | 0x02)  # start at page 2, where HANDLER is
        with pytest.raises(BlockingIOError):
            guest.run(second)
        assert second.mp_state() == MpState.RUNNABLE
        assert guest.run(second) == ExitReason.IO
        assert second.io_data[0] == 0x7E


def test_interrupt_from_outside() -> None:
    with Guest(WAIT) as guest:
        vcpu = guest.vcpu
        vcpu.request_interrupt_window = True
        assert guest.run() == ExitReason.IRQ_WINDOW_OPEN
        assert vcpu.ready_for_interrupt_injection and vcpu.if_flag
        vcpu.request_interrupt_window = False
        guest.on_vector(0x33, 0x7A)
        vcpu.interrupt(0x33)
        assert guest.run_to_done() == 0x7A
        assert not vcpu.if_flag
        with pytest.raises(KvmError, match="past 255"):
            vcpu.interrupt(256)


def test_interrupt_from_outside_with_a_controller() -> None:
    with Guest(irqchip="full") as guest:
        with pytest.raises(KvmError, match="in-kernel interrupt controller") as caught:
            guest.vcpu.interrupt(0x33)
        assert caught.value.errno == errno.ENXIO


def test_nmi() -> None:
    with Guest("ebfe") as guest, needs(guest.vm, Cap.USER_NMI):
        guest.on_vector(2, 0x7B)
        guest.vcpu.nmi()
        assert guest.run_to_done() == 0x7B
