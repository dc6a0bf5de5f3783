"""The CPUID that a guest sees: what KVM supports, with each vCPU's own identity filled in."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

_HTT = 1 << 28  # leaf 1 EDX: the count of logical processors in EBX is valid
_TSC_DEADLINE = 1 << 24  # leaf 1 ECX


class PagingFeatures(TypedDict):
    """What CPUID says about paging, by the names of `pyvmm.paging.state.PagingState`."""

    maxphyaddr: int
    pse36: bool
    gbpages: bool
    nonleaf_global: bool


def paging_features(entries: NDArray[Any]) -> PagingFeatures:
    """Read from a vCPU's CPUID table which entry bits its page walks take and which they find reserved."""

    def register(function: int, name: str) -> int:
        found = entries[name][entries["function"] == function]
        return int(found[0]) if found.size else 0

    sizes = register(0x80000008, "eax") & 0xFF
    vendor = b"".join(register(0, name).to_bytes(4, "little") for name in ("ebx", "edx", "ecx"))
    return {
        "maxphyaddr": sizes or 36,
        "pse36": bool(register(1, "edx") >> 17 & 1),
        "gbpages": bool(register(0x80000001, "edx") >> 26 & 1),
        "nonleaf_global": vendor in (b"AuthenticAMD", b"HygonGenuine"),
    }


def vcpu_cpuid(supported: NDArray[Any], index: int, cpus: int, *, tsc_deadline: bool) -> NDArray[Any]:
    """Copy KVM_GET_SUPPORTED_CPUID's entries and make them those of vCPU `index` of `cpus`.

    KVM reports the host CPU's APIC ids there; each vCPU needs its own in leaf 1, in the topology leaves 0xB and 0x1F (SDM vol. 2,
    CPUID), and in AMD's 0x80000008 and 0x8000001E (APM vol. 3, E.4). The topology is one package of `cpus` cores of one thread.

    Args:
        supported: structured array of kvm_cpuid_entry2.
        tsc_deadline: offer the LAPIC timer's deadline mode, which the in-kernel LAPIC has but KVM leaves to us to announce.
    """
    entries = supported.copy()
    width = (cpus - 1).bit_length()
    function, sub = entries["function"], entries["index"]

    leaf = function == 1
    entries["ebx"][leaf] = entries["ebx"][leaf] & 0x0000FFFF | cpus << 16 & 0xFF0000 | index << 24 & 0xFF000000
    entries["edx"][leaf] = entries["edx"][leaf] & ~np.uint32(_HTT) | (_HTT if cpus > 1 else 0)
    if tsc_deadline:
        entries["ecx"][leaf] |= _TSC_DEADLINE

    leaf = function == 4  # cores in the package, minus one; caches private to a core
    used = leaf & (entries["eax"] & 0x1F != 0)
    entries["eax"][used] = entries["eax"][used] & 0x3FFF | (cpus - 1) << 26 & 0xFC000000

    for topology in (0xB, 0x1F):
        leaf = function == topology
        entries["edx"][leaf] = index
        threads, cores = leaf & (sub == 0), leaf & (sub == 1)
        for which, shift, count, kind in ((threads, 0, 1, 1), (cores, width, cpus, 2)):
            entries["eax"][which] = shift
            entries["ebx"][which] = count
            entries["ecx"][which] = entries["index"][which] & 0xFF | kind << 8

    leaf = function == 0x80000008
    entries["ecx"][leaf] = entries["ecx"][leaf] & 0xFFFF0000 | width << 12 | cpus - 1
    leaf = function == 0x8000001E
    entries["eax"][leaf] = index
    entries["ebx"][leaf] = index & 0xFF
    entries["ecx"][leaf] = 0
    return entries
