"""Opening and closing: nothing leaks, nothing is used after it is gone."""

from __future__ import annotations

import errno
import gc
import os
import resource

import numpy as np
import pytest

from pyvmm.errors import HostError
from pyvmm.pykvm import Cap, ClosedError, ExitReason, KvmError, System, layout
from tests.kvm.pykvm_guest import Guest, needs

pytestmark = pytest.mark.kvm


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def kvm_mappings() -> int:
    with open("/proc/self/maps", encoding="ascii") as maps:
        return sum("kvm-vcpu" in line for line in maps)


def test_everything_closes() -> None:
    before = descriptors()
    for _ in range(5):
        with Guest(irqchip="full") as guest:
            second = guest.vm.create_vcpu(1)
            assert descriptors() > before
            assert kvm_mappings() == 2
        assert second.closed
        assert descriptors() == before
        assert kvm_mappings() == 0


def test_statistics_close_too() -> None:
    before = descriptors()
    with Guest() as guest, needs(guest.vm, Cap.BINARY_STATS_FD):
        vm_stats, vcpu_stats = guest.vm.stats_fd(), guest.vcpu.stats_fd()
        assert not vm_stats.closed
    assert descriptors() == before
    assert vm_stats.closed and vcpu_stats.closed


def test_dropping_without_closing_leaks_nothing() -> None:
    before = descriptors()
    system = System()
    vm = system.create_vm()
    vm.create_vcpu()
    del vm
    assert descriptors() == before + 1
    del system
    assert descriptors() == before


def test_close_in_any_order_and_twice() -> None:
    before = descriptors()
    system = System()
    vm = system.create_vm()
    vcpu = vm.create_vcpu()
    system.close()
    for handle in (vcpu, system, vm, vcpu):
        handle.close()
        assert handle.closed
    assert descriptors() == before


def test_use_after_close() -> None:
    with Guest() as guest:
        system, vm, vcpu = guest.system, guest.vm, guest.vcpu
    for use in (
        system.api_version,
        vm.create_vcpu,
        vcpu.run,
        vcpu.regs,
        vcpu.xsave,
        lambda: vm.irq_line(4, 1),
        lambda: vm.check_extension(Cap.IRQCHIP),
        lambda: vcpu.set_signal_mask(None),
        lambda: vcpu.set_regs(np.zeros((), layout.REGS)),
    ):
        with pytest.raises(ClosedError, match="is closed: create a new one"):
            use()
    with pytest.raises(ValueError, match="released"):
        _ = vcpu.exit_reason


def test_a_live_view_does_not_stop_close() -> None:
    before = descriptors()
    with Guest() as guest:
        assert guest.run() == ExitReason.HLT
        record = guest.vcpu.run_record
        held = np.frombuffer(guest.vcpu.words, np.uint32)
    assert guest.vcpu.closed
    assert int(record["exit_reason"]) == held[2] == ExitReason.HLT
    del record, held
    assert descriptors() == before
    assert kvm_mappings() == 0


def test_vcpu_numbers() -> None:
    with System() as system, system.create_vm() as vm:
        vm.create_vcpu(3)
        with pytest.raises(KvmError, match="exists already") as caught:
            vm.create_vcpu(3)
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(KvmError, match="KVM_CAP_MAX_VCPU_ID") as caught:
            vm.create_vcpu(1 << 20)
        assert caught.value.errno == errno.EINVAL


def test_out_of_descriptors() -> None:
    with System() as system, system.create_vm() as vm:
        before = descriptors()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Free numbers below the limit: none for a new VM, one for a vCPU and so none for its mapping.
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        fillers: list[int] = []
        while len(fillers) < highest + 2:
            fillers.append(os.dup(system.fd))
        limit = max(fillers) + 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            with pytest.raises(KvmError, match="ulimit -n") as caught:
                system.create_vm()
            assert caught.value.errno == errno.EMFILE
            os.close(fillers.pop())
            with pytest.raises(HostError, match=r"run area .* Too many open files"):
                vm.create_vcpu()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                os.close(filler)
        assert descriptors() == before
