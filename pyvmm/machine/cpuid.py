"""The CPUID that a guest sees: what KVM supports, with each vCPU's own identity filled in."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

_TOPOLOGY = (0xB, 0x1F)
_SIGNIFICANT_INDEX = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the guest's ECX selects the entry
_APIC = 1 << 9  # leaf 1 EDX
_HTT = 1 << 28  # leaf 1 EDX: the count of logical processors in EBX is valid
_X2APIC = 1 << 21  # leaf 1 ECX
_TSC_DEADLINE = 1 << 24  # leaf 1 ECX
_HYPERVISOR = 1 << 31  # leaf 1 ECX
_CMP_LEGACY = 1 << 1  # leaf 0x80000001 ECX: the logical processors are cores, not threads
_BRAND = (0x80000002, 0x80000003, 0x80000004)


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
    return {
        "maxphyaddr": sizes or 36,
        "pse36": bool(register(1, "edx") >> 17 & 1),
        "gbpages": bool(register(0x80000001, "edx") >> 26 & 1),
        "nonleaf_global": _is_amd(entries),
    }


def _is_amd(entries: NDArray[Any]) -> bool:
    leaf = entries[entries["function"] == 0]
    vendor = b"".join(leaf[name].astype("<u4").tobytes() for name in ("ebx", "edx", "ecx"))
    return vendor in (b"AuthenticAMD", b"HygonGenuine")


def host_brand() -> str:
    """Return the name of this host's CPU model as it tells it itself, or "" where the kernel does not say."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            first = file.read(1024)  # the kernel makes up the rest only when it is asked for
    except OSError:
        return ""
    for line in first.decode("ascii", "replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return ""


def vcpu_cpuid(
    supported: NDArray[Any],
    index: int,
    cpus: int,
    *,
    apic: bool = True,
    tsc_deadline: bool = False,
    brand: str = "",
) -> NDArray[Any]:
    """Copy KVM_GET_SUPPORTED_CPUID's entries and make them those of vCPU `index` of `cpus`.

    KVM reports the host CPU's identity there, or none; each vCPU needs its own in leaf 1, in the topology leaves 0xB and
    0x1F (SDM vol. 2, CPUID), and in AMD's 0x80000001, 0x80000008, 0x8000001D and 0x8000001E (APM vol. 3, E.4). The
    topology is one package of `cpus` cores of one thread, which share the last-level cache.

    Args:
        supported: structured array of kvm_cpuid_entry2.
        apic: there is a local APIC in the kernel; without it none is announced.
        tsc_deadline: offer the LAPIC timer's deadline mode, which KVM leaves to us to announce.
        brand: name of the CPU model, which KVM leaves empty: its first 47 characters; "" leaves it so.
    """
    topology = [leaf for leaf in _TOPOLOGY if (supported["function"] == leaf).any()]
    entries = supported[~np.isin(supported["function"], topology)]
    function = entries["function"]

    leaf = function == 1
    entries["ebx"][leaf] = entries["ebx"][leaf] & 0x0000FFFF | cpus << 16 & 0xFF0000 | index << 24 & 0xFF000000
    entries["edx"][leaf] = entries["edx"][leaf] & ~np.uint32(_HTT) | (_HTT if cpus > 1 else 0)
    # Older kernels leave this bit to the VMM, and guests look for kvmclock only behind it.
    entries["ecx"][leaf] |= _HYPERVISOR
    if tsc_deadline:
        entries["ecx"][leaf] |= _TSC_DEADLINE
    if not apic:
        entries["ecx"][leaf] &= ~np.uint32(_X2APIC | _TSC_DEADLINE)
        entries["edx"][leaf] &= ~np.uint32(_APIC)

    # Each level of cache: private to a core, but the last, which all share (leaf 4 EAX[25:14] + 1 logical processors).
    for caches in (4, 0x8000001D):
        used = (function == caches) & (entries["eax"] & 0x1F != 0)
        last = used & (entries["eax"] >> 5 & 7 == 3)
        entries["eax"][used] &= ~np.uint32(0x03FFC000)
        entries["eax"][last] |= cpus - 1 << 14
    used = (function == 4) & (entries["eax"] & 0x1F != 0)
    entries["eax"][used] = entries["eax"][used] & 0x03FFFFFF | min(cpus - 1, 63) << 26

    if _is_amd(supported):
        width = (cpus - 1).bit_length()
        leaf = function == 0x80000008
        entries["ecx"][leaf] = entries["ecx"][leaf] & 0xFFFF0000 | width << 12 | cpus - 1
        leaf = function == 0x80000001
        entries["ecx"][leaf] = entries["ecx"][leaf] & ~np.uint32(_CMP_LEGACY) | (_CMP_LEGACY if cpus > 1 else 0)
    if brand:
        text = np.frombuffer(brand.encode("ascii", "replace")[:47].ljust(48, b"\0"), "<u4").reshape(3, 4)
        for number, words in zip(_BRAND, text, strict=True):
            leaf = function == number
            for register, word in zip(("eax", "ebx", "ecx", "edx"), words, strict=True):
                entries[register][leaf] = word
    leaf = function == 0x8000001E
    entries["eax"][leaf] = index
    entries["ebx"][leaf] = index & 0xFF
    entries["ecx"][leaf] = 0
    return np.concatenate([entries, *(_topology(entries.dtype, leaf, index, cpus) for leaf in topology)])


def _topology(dtype: np.dtype[Any], function: int, index: int, cpus: int) -> NDArray[Any]:
    """Make the sub-leaves of an extended topology leaf: threads, cores, and the one that ends the list."""
    leaves = np.zeros(3, dtype)
    leaves["function"], leaves["index"], leaves["flags"] = function, range(3), _SIGNIFICANT_INDEX
    leaves["eax"] = 0, (cpus - 1).bit_length(), 0  # how far to shift an APIC id for the id of the next level
    leaves["ebx"] = 1, cpus, 0
    leaves["ecx"] = 1 << 8, 2 << 8 | 1, 2  # kind of level (1 threads, 2 cores) and number of the sub-leaf
    leaves["edx"] = index
    return leaves
