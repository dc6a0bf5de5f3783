"""The CPUID that a guest sees: what KVM supports, with each vCPU's own identity filled in."""

from __future__ import annotations

from collections.abc import Sequence
from struct import unpack_from
from typing import TypedDict

from pyvmm.pykvm.tables import CpuidEntry

_TOPOLOGY = (0xB, 0x1F)
_CACHES = (4, 0x8000001D)
_SIGNIFICANT_INDEX = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the guest's ECX selects the entry
_APIC = 1 << 9  # leaf 1 EDX
_HTT = 1 << 28  # leaf 1 EDX: the count of logical processors in EBX is valid
_X2APIC = 1 << 21  # leaf 1 ECX
_TSC_DEADLINE = 1 << 24  # leaf 1 ECX
_HYPERVISOR = 1 << 31  # leaf 1 ECX
_CMP_LEGACY = 1 << 1  # leaf 0x80000001 ECX: the logical processors are cores, not threads
_EAX, _EBX, _ECX, _EDX = 3, 4, 5, 6  # places in a CpuidEntry
_BRAND = (0x80000002, 0x80000003, 0x80000004)


class PagingFeatures(TypedDict):
    """What CPUID says about paging, by the names of `pyvmm.paging.state.PagingState`."""

    maxphyaddr: int
    pse36: bool
    gbpages: bool
    nonleaf_global: bool


def paging_features(entries: Sequence[CpuidEntry]) -> PagingFeatures:
    """Read from a vCPU's CPUID table which entry bits its page walks take and which they find reserved."""
    leaves = {entry[0]: entry for entry in reversed(entries)}
    nothing = (0,) * 7
    return {
        "maxphyaddr": leaves.get(0x80000008, nothing)[_EAX] & 0xFF or 36,
        "pse36": bool(leaves.get(1, nothing)[_EDX] >> 17 & 1),
        "gbpages": bool(leaves.get(0x80000001, nothing)[_EDX] >> 26 & 1),
        "nonleaf_global": _is_amd(entries),
    }


def _is_amd(entries: Sequence[CpuidEntry]) -> bool:
    vendor = b"".join(
        entry[register].to_bytes(4, "little") for entry in entries if entry[0] == 0 for register in (_EBX, _EDX, _ECX)
    )
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
    supported: Sequence[CpuidEntry],
    index: int,
    cpus: int,
    *,
    apic: bool = True,
    tsc_deadline: bool = False,
    brand: str = "",
) -> list[CpuidEntry]:
    """Copy KVM_GET_SUPPORTED_CPUID's entries and make them those of vCPU `index` of `cpus`.

    KVM reports the host CPU's identity there, or none; each vCPU needs its own in leaf 1, in the topology leaves 0xB and
    0x1F (SDM vol. 2, CPUID), and in AMD's 0x80000001, 0x80000008, 0x8000001D and 0x8000001E (APM vol. 3, E.4). The
    topology is one package of `cpus` cores of one thread, which share the last-level cache.

    Args:
        supported: what KVM supports, which stays as it is.
        apic: there is a local APIC in the kernel; without it none is announced.
        tsc_deadline: offer the LAPIC timer's deadline mode, which KVM leaves to us to announce.
        brand: name of the CPU model, which KVM leaves empty: its first 47 characters; "" leaves it so.
    """
    topology = dict.fromkeys(entry[0] for entry in supported if entry[0] in _TOPOLOGY)
    amd = _is_amd(supported)
    name = brand.encode("ascii", "replace")[:47].ljust(48, b"\0")
    made: list[CpuidEntry] = []
    for function, sub, flags, eax, ebx, ecx, edx in supported:
        if function in topology:
            continue
        if function == 1:
            ebx = ebx & 0x0000FFFF | cpus << 16 & 0xFF0000 | index << 24 & 0xFF000000
            edx = edx & ~_HTT | (_HTT if cpus > 1 else 0)
            # Older kernels leave this bit to the VMM, and guests look for kvmclock only behind it.
            ecx |= _HYPERVISOR | (_TSC_DEADLINE if tsc_deadline else 0)
            if not apic:
                ecx &= ~(_X2APIC | _TSC_DEADLINE)
                edx &= ~_APIC
        elif function in _CACHES and eax & 0x1F:
            # Each level of cache: private to a core, but the last, which all share (EAX[25:14] + 1 logical processors).
            eax = eax & ~0x03FFC000 | (cpus - 1 << 14 if eax >> 5 & 7 == 3 else 0)
            if function == 4:
                eax = eax & 0x03FFFFFF | min(cpus - 1, 63) << 26
        elif function == 0x80000001 and amd:
            ecx = ecx & ~_CMP_LEGACY | (_CMP_LEGACY if cpus > 1 else 0)
        elif function == 0x80000008 and amd:
            ecx = ecx & 0xFFFF0000 | (cpus - 1).bit_length() << 12 | cpus - 1
        elif function == 0x8000001E:
            eax, ebx, ecx = index, index & 0xFF, 0
        elif function in _BRAND and brand:
            eax, ebx, ecx, edx = unpack_from("<4I", name, 16 * _BRAND.index(function))
        made.append((function, sub, flags, eax, ebx, ecx, edx))
    return [*made, *(entry for function in topology for entry in _topology(function, index, cpus))]


def _topology(function: int, index: int, cpus: int) -> list[CpuidEntry]:
    """Make the sub-leaves of an extended topology leaf: threads, cores, and the one that ends the list."""
    # EAX: how far to shift an APIC id for the id of the next level; EBX: logical processors in it; ECX: kind of level (1
    # threads, 2 cores) and number of the sub-leaf.
    levels = ((0, 1, 1 << 8), ((cpus - 1).bit_length(), cpus, 2 << 8 | 1), (0, 0, 2))
    return [(function, sub, _SIGNIFICANT_INDEX, eax, ebx, ecx, index) for sub, (eax, ebx, ecx) in enumerate(levels)]
