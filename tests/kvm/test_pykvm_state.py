"""A vCPU's state, read and written."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from pyvmm.pykvm import Cap, KvmError, MissingCapability, MpState, MsrError, layout
from tests.kvm.pykvm_guest import CODE, Guest, needs

pytestmark = [pytest.mark.kvm, pytest.mark.intel]

SYSENTER = [0x174, 0x175, 0x176]


def test_regs() -> None:
    with Guest() as guest:
        regs = guest.vcpu.regs()
        assert regs.dtype == layout.REGS and regs.shape == ()
        assert int(regs["rip"]) == CODE
        names = layout.REGS.names
        assert names is not None
        for number, name in enumerate(names[:16]):
            regs[name] = 0xF000000000000000 | number
        guest.vcpu.set_regs(regs)
        assert guest.vcpu.regs() == regs
        guest.vcpu.set_regs(regs[()])
        assert guest.vcpu.regs() == regs
        with pytest.raises(TypeError, match="rax"):
            guest.vcpu.set_regs(guest.vcpu.sregs())


def test_sregs() -> None:
    with Guest() as guest:
        sregs = guest.vcpu.sregs()
        assert sregs.dtype == layout.SREGS and sregs.shape == ()
        sregs["ds"]["base"], sregs["ds"]["selector"] = 0x12340, 0x1234
        sregs["gdt"]["base"], sregs["gdt"]["limit"] = 0x5000, 0x27
        sregs["cr2"] = 0xDEAD000
        guest.vcpu.set_sregs(sregs)
        assert guest.vcpu.sregs() == sregs


def test_impossible_sregs() -> None:
    with Guest() as guest:
        sregs = guest.vcpu.sregs()
        sregs["cr4"] = 1 << 40
        with pytest.raises(KvmError, match="does not allow") as caught:
            guest.vcpu.set_sregs(sregs)
        assert (caught.value.errno, caught.value.ioctl) == (errno.EINVAL, "KVM_SET_SREGS")


def test_sregs2() -> None:
    with Guest() as guest, needs(guest.vm, Cap.SREGS2):
        sregs = guest.vcpu.sregs2()
        assert sregs.dtype == layout.SREGS2
        sregs["es"]["base"] = 0x43210
        guest.vcpu.set_sregs2(sregs)
        assert int(guest.vcpu.sregs()["es"]["base"]) == 0x43210


def test_fpu() -> None:
    with Guest() as guest:
        fpu = guest.vcpu.fpu()
        assert int(fpu["fcw"]) == 0x37F  # after reset as KVM does it: FINIT's value
        fpu["xmm"][3] = np.arange(16)
        fpu["fpr"][2][:10] = range(10)
        fpu["fcw"] = 0x27F
        guest.vcpu.set_fpu(fpu)
        again = guest.vcpu.fpu()
        assert again["xmm"][3].tolist() == list(range(16))
        assert again["fpr"][2][:10].tolist() == list(range(10))
        assert int(again["fcw"]) == 0x27F


def test_xsave() -> None:
    with Guest() as guest, needs(guest.vm, Cap.XSAVE):
        area = guest.vcpu.xsave()
        assert area.shape == (guest.vcpu.xsave_size(),) and area.dtype == np.uint8
        area[160 + 16 * 5 : 160 + 16 * 6] = 0xA5  # XMM5
        area[512] |= 2  # XSTATE_BV: SSE state is there
        guest.vcpu.set_xsave(area)
        assert guest.vcpu.fpu()["xmm"][5].tolist() == [0xA5] * 16
        with pytest.raises(ValueError, match="must have"):
            guest.vcpu.set_xsave(area[:-1])


def test_xcrs() -> None:
    with Guest() as guest, needs(guest.vm, Cap.XCRS):
        xcrs = guest.vcpu.xcrs()
        assert xcrs[0] & 1 == 1  # x87 is always on
        guest.vcpu.set_xcrs(xcrs)
        assert guest.vcpu.xcrs() == xcrs
        with pytest.raises(KvmError) as caught:
            guest.vcpu.set_xcrs({0: 1 << 62 | 1})
        assert (caught.value.errno, caught.value.ioctl) == (errno.EINVAL, "KVM_SET_XCRS")


def test_msrs() -> None:
    with Guest() as guest:
        values = {index: 0x1000 * index for index in SYSENTER}
        guest.vcpu.set_msrs(values)
        assert guest.vcpu.msrs(SYSENTER) == values
        assert guest.vcpu.msrs([]) == {}
        guest.vcpu.set_msrs({})


def test_more_msrs_than_one_call_takes() -> None:
    with Guest() as guest:
        assert guest.vcpu.msrs(SYSENTER * 200) == dict.fromkeys(SYSENTER, 0)
        with pytest.raises(MsrError) as caught:
            guest.vcpu.msrs([*(SYSENTER * 100), 0x12345678])
        assert (caught.value.index, caught.value.done) == (0x12345678, 300)


def test_the_refused_msr_is_named() -> None:
    with Guest() as guest:
        with pytest.raises(MsrError) as caught:
            guest.vcpu.set_msrs({0x174: 7, 0x12345678: 1, 0x175: 9})
        assert (caught.value.index, caught.value.done, caught.value.ioctl) == (0x12345678, 1, "KVM_SET_MSRS")
        assert guest.vcpu.msrs(SYSENTER) == {0x174: 7, 0x175: 0, 0x176: 0}
        with pytest.raises(MsrError, match="0x12345678"):
            guest.vcpu.msrs([0x12345678])


def test_cpuid() -> None:
    with Guest() as guest:
        entries = guest.system.supported_cpuid()
        chosen = entries[entries["function"] != 0x40000000].copy()
        chosen["eax"][chosen["function"] == 0] = 1
        guest.vcpu.set_cpuid2(chosen)
        seen = guest.vcpu.cpuid2()
        assert seen.dtype == layout.CPUID_ENTRY2
        assert seen["function"].tolist() == chosen["function"].tolist()
        assert int(seen["eax"][seen["function"] == 0][0]) == 1
        with pytest.raises(KvmError) as caught:
            guest.vcpu.set_cpuid2(np.zeros(1000, layout.CPUID_ENTRY2))
        assert (caught.value.errno, caught.value.ioctl) == (errno.E2BIG, "KVM_SET_CPUID2")


def test_lapic() -> None:
    with Guest(irqchip="full") as guest:
        page = guest.vcpu.lapic()
        assert page.shape == (1024,)
        version = int(page.view(np.uint32)[0x30 // 4])
        assert version & 0xFF in range(0x10, 0x16)
        page.view(np.uint32)[0x80 // 4] = 0x20  # task priority
        guest.vcpu.set_lapic(page)
        assert int(guest.vcpu.lapic().view(np.uint32)[0x80 // 4]) == 0x20
        assert int(guest.vcpu.sregs()["cr8"]) == 2
        with pytest.raises(ValueError, match="1024 bytes, not 512"):
            guest.vcpu.set_lapic(page[:512])


def test_lapic_without_one() -> None:
    with Guest() as guest:
        with pytest.raises(KvmError, match="no in-kernel local APIC") as caught:
            guest.vcpu.lapic()
        assert (caught.value.errno, caught.value.ioctl) == (errno.EINVAL, "KVM_GET_LAPIC")


def test_mp_state() -> None:
    with Guest(irqchip="full") as guest:
        assert guest.vcpu.mp_state() == MpState.RUNNABLE
        guest.vcpu.set_mp_state(MpState.HALTED)
        assert guest.vcpu.mp_state() is MpState.HALTED
        second = guest.vm.create_vcpu(1)
        assert second.mp_state() == MpState.UNINITIALIZED
    with Guest() as guest, pytest.raises(KvmError, match="in-kernel local APIC"):
        guest.vcpu.set_mp_state(MpState.UNINITIALIZED)


def test_debugregs() -> None:
    with Guest() as guest, needs(guest.vm, Cap.DEBUGREGS):
        record = guest.vcpu.debugregs()
        record["db"][:] = [0x10, 0x20, 0x30, 0x40]
        record["dr7"] = 0x400
        guest.vcpu.set_debugregs(record)
        assert guest.vcpu.debugregs()["db"].tolist() == [0x10, 0x20, 0x30, 0x40]
        record["dr7"] = 1 << 40
        with pytest.raises(KvmError, match="bits above 31"):
            guest.vcpu.set_debugregs(record)


def test_tsc() -> None:
    with Guest() as guest, needs(guest.vm, Cap.GET_TSC_KHZ):
        khz = guest.vcpu.tsc_khz()
        assert khz > 10_000  # that of an emulated host counts its instructions
        guest.vcpu.set_tsc_khz(khz)
        assert guest.vcpu.tsc_khz() == khz


def test_tsc_scaling() -> None:
    with Guest() as guest, needs(guest.vm, Cap.TSC_CONTROL):
        guest.vm.require(Cap.TSC_CONTROL)
        wanted = guest.vcpu.tsc_khz() // 2
        guest.vcpu.set_tsc_khz(wanted)
        assert guest.vcpu.tsc_khz() == wanted


def test_kvmclock_ctrl_without_kvmclock() -> None:
    with Guest() as guest, needs(guest.vm, Cap.KVMCLOCK_CTRL):
        with pytest.raises(KvmError, match="kvmclock") as caught:
            guest.vcpu.kvmclock_ctrl()
        assert caught.value.errno == errno.EINVAL


def test_kvmclock_ctrl() -> None:
    system_time = 0x4B564D01  # MSR_KVM_SYSTEM_TIME_NEW
    with Guest() as guest, needs(guest.vm, Cap.KVMCLOCK_CTRL):
        guest.vcpu.set_msrs({system_time: 0x6000 | 1})
        guest.run()
        guest.vcpu.kvmclock_ctrl()


def test_capability_of_a_vcpu() -> None:
    with Guest() as guest:
        assert guest.vcpu.check_extension(Cap.XSAVE) == guest.vm.check_extension(Cap.XSAVE)
        absent = [capability for capability in Cap if not guest.vcpu.check_extension(capability)]
        assert absent
        for capability in absent:
            with pytest.raises(MissingCapability) as caught:
                guest.vcpu.enable_cap(capability)
            assert caught.value.capability == f"KVM_CAP_{capability.name}"
        with needs(guest.vcpu, Cap.ENFORCE_PV_FEATURE_CPUID):
            guest.vcpu.enable_cap(Cap.ENFORCE_PV_FEATURE_CPUID, [1])
