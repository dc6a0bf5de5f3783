"""Describe this host: KVM and its module, how it pages, what could be switched, CPU, kernel, memory, and the lab's parts."""

from __future__ import annotations

import os
import platform
import shutil
from typing import Any

from pyvmm.errors import HostError
from pyvmm.host.switch import left_behind
from pyvmm.host.switchable import switchable
from pyvmm.pykvm import Cap, System
from pyvmm.pykvm.module import kvm_module

CAPABILITIES = {
    Cap.USER_MEMORY: "guest memory slots",
    Cap.NR_MEMSLOTS: "memory slots at most",
    Cap.NR_VCPUS: "vCPUs, recommended",
    Cap.MAX_VCPUS: "vCPUs at most",
    Cap.IRQCHIP: "in-kernel PIC, IOAPIC and LAPIC",
    Cap.SPLIT_IRQCHIP: "in-kernel LAPIC alone",
    Cap.PIT2: "in-kernel PIT",
    Cap.IRQFD: "interrupts by eventfd",
    Cap.IOEVENTFD: "notifications by eventfd",
    Cap.SIGNAL_MSI: "message-signalled interrupts",
    Cap.SYNC_REGS: "registers in the run area",
    Cap.IMMEDIATE_EXIT: "race-free stop",
    Cap.READONLY_MEM: "read-only slots (write traces)",
    Cap.MANUAL_DIRTY_LOG_PROTECT2: "dirty log cleared by hand",
    Cap.DIRTY_LOG_RING: "dirty ring",
    Cap.COALESCED_MMIO: "coalesced MMIO",
    Cap.BINARY_STATS_FD: "KVM's own counters",
    Cap.SET_GUEST_DEBUG: "breakpoints and single-step",
    Cap.X86_USER_SPACE_MSR: "MSR exits",
    Cap.X86_MSR_FILTER: "MSR filter",
    Cap.EXIT_ON_EMULATION_FAILURE: "emulation failures of user code exit",
    Cap.XSAVE2: "large XSAVE area",
    Cap.TSC_CONTROL: "TSC scaling",
    Cap.TSC_DEADLINE_TIMER: "TSC-deadline timer",
    Cap.NESTED_STATE: "state of nested guests",
}
"""The capabilities that decide what pyvmm can do, and what each is for."""

_LAB = {
    "qemu-system-x86_64": "AMD lab (Debian: qemu-system-x86)",
    "vng": "AMD lab (PyPI: virtme-ng)",
    "bochs": "Intel lab (Debian: bochs)",
    "xorriso": "Intel lab (Debian: xorriso)",
    "busybox": "both (Debian: busybox-static)",
}


def describe_host(path: str = "/dev/kvm") -> dict[str, Any]:
    """Gather everything, in JSON's types. Never raises: where KVM cannot be opened, `kvm.error` says why."""
    module = kvm_module()
    kvm: dict[str, Any] = {"device": path, "module": module.name, "paging": module.paging}
    try:
        with System(path) as system:
            kvm["api_version"] = system.api_version()
            kvm["capabilities"] = {cap.name: system.check_extension(cap) for cap in CAPABILITIES}
    except HostError as error:
        kvm["error"] = str(error)
    kvm["parameters"] = {module.name: module.parameters, "kvm": module.common}
    return {
        "kvm": kvm,
        "switch": [entry.to_dict() for entry in switchable()],
        "switched": _switched(),
        "cpu": _cpu(),
        "kernel": platform.release(),
        "memory": {"total": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "hugepages": _hugepages()},
        "lab": {name: {"path": shutil.which(name), "for": purpose} for name, purpose in _LAB.items()},
    }


def brief_host() -> dict[str, Any]:
    """Name the host as every number must: KVM module, paging, CPU, kernel; without opening KVM."""
    module = kvm_module()
    cpu = _cpu()
    return {
        "module": module.name,
        "paging": module.paging,
        "cpu": cpu["model"],
        "cpus": cpu["cpus"],
        "kernel": platform.release(),
    }


def _switched() -> str | None:
    """Describe the switch that is in force, or that was left behind; None where there is none."""
    try:
        record = left_behind()
    except HostError as error:
        return str(error)
    return None if record is None else record.describe()


def _cpu() -> dict[str, Any]:
    fields: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if not name.strip():
                    break
                fields[name.strip()] = value.strip()
    except OSError:
        pass
    # Intel's kernel lists EPT and VPID apart from the CPUID flags.
    flags = set(fields.get("flags", "").split()) | set(fields.get("vmx flags", "").split())
    wanted = ("vmx", "svm", "ept", "npt", "vpid", "hypervisor", "pdpe1gb", "la57", "pcid", "smep", "smap")
    return {
        "model": fields.get("model name", platform.machine()),
        "vendor": fields.get("vendor_id", "unknown"),
        "cpus": os.cpu_count(),
        "flags": [flag for flag in wanted if flag in flags],
    }


def _hugepages() -> dict[str, Any]:
    pool = "/sys/kernel/mm/hugepages/hugepages-2048kB"
    return {
        "2M_total": _number(f"{pool}/nr_hugepages"),
        "2M_free": _number(f"{pool}/free_hugepages"),
        "thp": _selected("/sys/kernel/mm/transparent_hugepage/enabled"),
        "thp_shmem": _selected("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
    }


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _number(path: str) -> int:
    text = _read(path)
    return int(text) if text.isdigit() else 0


def _selected(path: str) -> str:
    """Return the bracketed word of a sysfs choice such as `always [madvise] never`."""
    before, bracket, rest = _read(path).partition("[")
    return rest.partition("]")[0] if bracket else before or "unavailable"
