"""KVM's own counters for a VM and a vCPU."""

from __future__ import annotations

import pytest

from pyvmm.pykvm import Cap
from tests.kvm.pykvm_guest import Guest, needs

pytestmark = [pytest.mark.kvm, pytest.mark.intel]

LOOP = "e610ebfc"  # 1: out 0x10,al; jmp 1b


def test_vcpu_counts_exits() -> None:
    with Guest(LOOP) as guest, needs(guest.vm, Cap.BINARY_STATS_FD), guest.vcpu.stats_fd() as stats:
        assert stats.id.endswith("vcpu-0")
        before = stats.read_values()["exits"]
        for _ in range(20):
            guest.run()
        assert stats.read_values()["exits"] >= before + 20


def test_descriptors_make_sense() -> None:
    with (
        Guest() as guest,
        needs(guest.vm, Cap.BINARY_STATS_FD),
        guest.vm.stats_fd() as vm_stats,
        guest.vcpu.stats_fd() as vcpu_stats,
    ):
        assert vm_stats.id.startswith("kvm-")
        for stats in (vm_stats, vcpu_stats):
            names = [one.name for one in stats.descriptors]
            assert len(names) == len(set(names)) > 5
            assert all(one.kind[:7] != "unknown" and one.unit[:7] != "unknown" for one in stats.descriptors)
            read = stats.read()
            assert list(read) == names
            for one in stats.descriptors:
                assert one.name.isidentifier()
                assert len(read[one.name].values) == one.size
        assert {"pf_taken", "exits"} <= {one.name for one in vcpu_stats.descriptors}
        assert {"mmu_shadow_zapped", "remote_tlb_flush"} <= {one.name for one in vm_stats.descriptors}
        nanoseconds = {one.name: one.unit_text for one in vcpu_stats.descriptors}["halt_wait_ns"]
        assert nanoseconds == "10^-9 seconds"


def test_histograms() -> None:
    with Guest() as guest, needs(guest.vm, Cap.BINARY_STATS_FD), guest.vcpu.stats_fd() as stats:
        histograms = [one for one in stats.read().values() if one.descriptor.kind == "log-hist"]
        singles = stats.read_values()
        for one in histograms:
            assert len(one.values) > 1 and one.value == sum(one.values)
            assert one.descriptor.name not in singles
        assert len(singles) + sum(len(one.values) > 1 for one in stats.read().values()) == len(stats.descriptors)


def test_a_page_fault_is_counted() -> None:
    # mov [0x9000],al in a slot that nothing has touched: KVM must map it, whatever it maps with.
    with Guest("a20090" + "e610") as guest, needs(guest.vm, Cap.BINARY_STATS_FD), guest.vcpu.stats_fd() as stats:
        guest.run_to_done()
        assert stats.read_values()["exits"] > 0
