"""System ioctls on this host's KVM."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from pyvmm.pykvm import Cap, KvmError, MissingCapability, MsrError, System, layout, tables
from tests.kvm.pykvm_guest import needs

pytestmark = [pytest.mark.kvm, pytest.mark.intel]


def test_version_and_sizes() -> None:
    with System() as system:
        assert system.api_version() == 12
        assert system.vcpu_mmap_size() >= layout.RUN.itemsize
        assert system.check_extension(Cap.USER_MEMORY) == 1
        assert system.require(Cap.NR_MEMSLOTS) >= 32


def test_a_capability_that_no_kvm_has() -> None:
    with System() as system:
        assert system.check_extension(100_000) == 0
        absent = next((cap for cap in Cap if not system.check_extension(cap)), None)
        assert absent is not None
        with pytest.raises(MissingCapability) as caught:
            system.require(absent)
        assert caught.value.capability == f"KVM_CAP_{absent.name}"


def test_supported_cpuid() -> None:
    with System() as system:
        entries = system.supported_cpuid()
        assert entries.dtype == layout.CPUID_ENTRY2
        vendor = entries[entries["function"] == 0][0]
        name = b"".join(int(vendor[register]).to_bytes(4, "little") for register in ("ebx", "edx", "ecx"))
        assert name.decode().isprintable() and len(name) == 12
        assert int(vendor["eax"]) >= 1
        assert (entries["function"] == 0x80000001).any()


def test_the_cpuid_buffer_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    with System() as system:
        whole = system.supported_cpuid()
        monkeypatch.setattr(tables, "_FIRST_GUESS", 1)
        # APIC ids in it are those of the CPU that answers, so compare what does not depend on it.
        assert system.supported_cpuid()[["function", "index", "flags"]].tolist() == (
            whole[["function", "index", "flags"]].tolist()
        )
        monkeypatch.setattr(tables, "_LARGEST", 1)
        with pytest.raises(KvmError) as caught:
            system.supported_cpuid()
        assert caught.value.errno == errno.E2BIG


def test_emulated_cpuid() -> None:
    with System() as system, needs(system, Cap.EXT_EMUL_CPUID):
        assert system.emulated_cpuid().dtype == layout.CPUID_ENTRY2


def test_msr_lists() -> None:
    with System() as system:
        indices = system.msr_index_list()
        assert indices.dtype == np.uint32
        assert 0x174 in indices  # IA32_SYSENTER_CS
        assert len(set(indices.tolist())) == len(indices)


def test_feature_msrs() -> None:
    with System() as system, needs(system, Cap.GET_MSR_FEATURES):
        indices = system.msr_feature_index_list()
        values = system.get_feature_msrs(indices.tolist())
        assert list(values) == indices.tolist()
        with pytest.raises(MsrError) as caught:
            system.get_feature_msrs([*indices.tolist()[:1], 0x12345678])
        assert (caught.value.index, caught.value.done) == (0x12345678, 1)


def test_unknown_machine_type() -> None:
    with System() as system:
        with pytest.raises(KvmError, match="machine type") as caught:
            system.create_vm(0x7FFFFFFF)
        assert (caught.value.errno, caught.value.ioctl) == (errno.EINVAL, "KVM_CREATE_VM")
