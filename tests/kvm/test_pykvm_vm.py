"""Memory slots, dirty logs, clock and capabilities of a VM."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from numpy.typing import NDArray

from pyvmm.pykvm import Cap, ExitReason, KvmError, MemFlag, MissingCapability, System, layout
from pyvmm.pykvm.constants import DirtyLogFlag
from tests.kvm.pykvm_guest import CODE, HOLE, RAM_SIZE, Guest, needs

pytestmark = [pytest.mark.kvm, pytest.mark.intel]

STORE = "a20000"  # mov [0],al
FETCH = "a00000"  # mov al,[0]
DONE = "e610"  # out 0x10,al
PAGES = RAM_SIZE // 4096


def stored(mask: NDArray[np.bool_]) -> list[int]:
    """The dirty pages but for the guest's code: KVM logs a page as dirty once it maps it writable, read or not."""
    return [int(page) for page in np.flatnonzero(mask) if page != CODE // 4096]


def test_slots_overlap_move_and_go() -> None:
    with Guest(FETCH + DONE + FETCH + DONE) as guest:
        vm = guest.vm
        with pytest.raises(KvmError, match="overlaps") as caught:
            vm.set_user_memory_region(1, 0, RAM_SIZE, guest.hva)
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(KvmError) as caught:
            vm.set_user_memory_region(1, 0x100001, 4096, guest.hva)
        assert caught.value.errno == errno.EINVAL
        vm.set_user_memory_region(1, HOLE, 4096, guest.hva + 0x5000)
        guest.ram[0x5000] = 0x77
        guest.data_at(HOLE)
        assert guest.run_to_done() == 0x77
        vm.set_user_memory_region(1, HOLE, 0, 0)
        assert guest.run() == ExitReason.MMIO
        assert guest.vcpu.mmio.gpa == HOLE


def test_a_write_to_a_read_only_slot_exits() -> None:
    with Guest("b05a" + STORE + FETCH + DONE) as guest, needs(guest.vm, Cap.READONLY_MEM):
        guest.vm.require(Cap.READONLY_MEM)
        guest.vm.set_user_memory_region(1, HOLE, 4096, guest.hva + 0x5000, MemFlag.READONLY)
        guest.ram[0x5000] = 0x11
        guest.data_at(HOLE)
        assert guest.run() == ExitReason.MMIO
        mmio = guest.vcpu.mmio
        assert (mmio.gpa, mmio.data, mmio.is_write) == (HOLE, b"\x5a", True)
        assert guest.run_to_done() == 0x11


def test_dirty_log() -> None:
    with Guest((STORE + DONE) * 3, flags=MemFlag.LOG_DIRTY_PAGES) as guest:
        vm = guest.vm
        guest.data_at(0x9000)
        guest.run_to_done()
        mask = vm.get_dirty_log(0, PAGES)
        assert mask.dtype == np.bool_ and mask.shape == (PAGES,)
        assert stored(mask) == [9]
        assert not vm.get_dirty_log(0, PAGES).any()
        guest.data_at((PAGES - 1) * 4096)
        guest.run_to_done()
        assert stored(vm.get_dirty_log(0, PAGES)) == [PAGES - 1]
        with pytest.raises(ValueError, match="slot 0 has 256 pages, not 8"):
            vm.get_dirty_log(0, 8)


def test_dirty_log_of_an_unlogged_slot() -> None:
    with Guest() as guest:
        for slot in (0, 3):
            with pytest.raises(KvmError, match="not dirty-logged") as caught:
                guest.vm.get_dirty_log(slot, PAGES)
            assert caught.value.errno == errno.ENOENT


def test_clear_dirty_log() -> None:
    with Guest((STORE + DONE) * 2) as guest, needs(guest.vm, Cap.MANUAL_DIRTY_LOG_PROTECT2):
        vm = guest.vm
        vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, [DirtyLogFlag.MANUAL_PROTECT_ENABLE])
        vm.set_user_memory_region(0, 0, RAM_SIZE, guest.hva, MemFlag.LOG_DIRTY_PAGES)
        for page in (9, 70):
            guest.data_at(page * 4096)
            guest.run_to_done()
        for _ in range(2):  # reading leaves the log as it is
            assert stored(vm.get_dirty_log(0, PAGES)) == [9, 70]
        only_70 = np.zeros(PAGES - 64, np.bool_)
        only_70[70 - 64] = True
        vm.clear_dirty_log(0, only_70, first_page=64)
        assert stored(vm.get_dirty_log(0, PAGES)) == [9]
        with pytest.raises(KvmError, match="multiple of 64") as caught:
            vm.clear_dirty_log(0, only_70, first_page=1)
        assert caught.value.errno == errno.EINVAL


def test_special_pages() -> None:
    with System() as system, system.create_vm() as vm:
        with needs(vm, Cap.SET_TSS_ADDR):
            vm.set_tss_addr(0xFFFBD000)
        with needs(vm, Cap.SET_IDENTITY_MAP_ADDR):
            vm.set_identity_map_addr(0xFFFBC000)
            vm.create_vcpu()
            with pytest.raises(KvmError, match="before the first vCPU"):
                vm.set_identity_map_addr(0xFFFBC000)


def test_tss_address_must_fit() -> None:
    with System() as system, system.create_vm() as vm, needs(vm, Cap.SET_TSS_ADDR):
        with pytest.raises(KvmError, match="below 4 GiB") as caught:
            vm.set_tss_addr(0xFFFFF000)
        assert caught.value.errno == errno.EINVAL


def test_boot_cpu() -> None:
    with System() as system, system.create_vm() as vm, needs(vm, Cap.SET_BOOT_CPU_ID):
        vm.set_boot_cpu_id(1)
        vm.create_irqchip()
        boot_bit = 1 << 8  # IA32_APIC_BASE.BSP
        vcpus = [vm.create_vcpu(0), vm.create_vcpu(1)]
        assert [bool(int(vcpu.sregs()["apic_base"]) & boot_bit) for vcpu in vcpus] == [False, True]


def test_clock() -> None:
    with System() as system, system.create_vm() as vm, needs(vm, Cap.ADJUST_CLOCK):
        vm.set_clock(5 * 10**12)
        record = vm.get_clock()
        assert record.dtype == layout.CLOCK_DATA
        assert 5 * 10**12 <= int(record["clock"]) < 6 * 10**12
        record["clock"], record["flags"] = 9 * 10**12, 0
        vm.set_clock(record)
        assert 9 * 10**12 <= int(vm.get_clock()["clock"]) < 10 * 10**12


def test_enable_cap() -> None:
    with System() as system, system.create_vm() as vm:
        with needs(vm, Cap.EXCEPTION_PAYLOAD):
            vm.enable_cap(Cap.EXCEPTION_PAYLOAD, [1])
        with needs(vm, Cap.X86_DISABLE_EXITS):
            with pytest.raises(KvmError, match="out of range") as caught:
                vm.enable_cap(Cap.X86_DISABLE_EXITS, [1 << 20])
            assert (caught.value.errno, caught.value.ioctl) == (errno.EINVAL, "KVM_ENABLE_CAP")


def test_a_missing_capability_is_not_enabled() -> None:
    with System() as system, system.create_vm() as vm:
        absent = [capability for capability in Cap if not vm.check_extension(capability)]
        assert absent
        for capability in absent:
            with pytest.raises(MissingCapability) as caught:
                vm.enable_cap(capability, [1])
            assert caught.value.capability == f"KVM_CAP_{capability.name}"
