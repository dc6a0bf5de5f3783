"""What a machine is made of in the kernel: the VM, its memory slots, its interrupt controllers and its vCPUs."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyvmm.boot.layout import KVM_IDENTITY_MAP, KVM_TSS
from pyvmm.devices.bus import Bus
from pyvmm.engine.direct import DirectEngine
from pyvmm.engine.dispatch import Dispatcher
from pyvmm.errors import HostError
from pyvmm.machine.cpuid import host_brand, vcpu_cpuid
from pyvmm.machine.firmware import set_up_lapic, set_up_msrs, set_up_pics
from pyvmm.memory import GuestMemory, SlotTable
from pyvmm.pykvm import Cap, System, Vcpu, Vm


class Hardware(NamedTuple):
    """The KVM objects of one machine, and the engine of each vCPU."""

    vm: Vm
    slots: SlotTable
    vcpus: list[Vcpu]
    engines: list[DirectEngine]


def build(system: System, memory: GuestMemory, cpus: int, irqchip: bool, buses: tuple[Bus, Bus], lock: Any) -> Hardware:
    """Create a VM with `memory` and `cpus` vCPUs, in the state that firmware would leave.

    Args:
        irqchip: put PICs, IOAPIC, LAPICs and PIT into the kernel.
        buses: port I/O and MMIO.
        lock: held around calls of devices, where there are several vCPUs.

    Raises:
        HostError: this KVM does not allow so many vCPUs.
        KvmError: it refuses something else.
    """
    most = system.check_extension(Cap.MAX_VCPUS)
    if cpus > most:
        raise HostError(f"{cpus} CPUs: this host's KVM allows {most} in a VM")
    vm = system.create_vm()
    # The slots come first: once there is an interrupt controller, adding one waits some 5 ms for an SRCU grace period.
    slots = SlotTable(vm)
    for region in memory.regions:
        slots.add(region)
    vm.set_identity_map_addr(KVM_IDENTITY_MAP)
    vm.set_tss_addr(KVM_TSS)
    if irqchip:
        vm.create_irqchip()
        vm.create_pit2()
        set_up_pics(vm)
    deadline = irqchip and bool(system.check_extension(Cap.TSC_DEADLINE_TIMER))
    supported = system.supported_cpuid_entries()
    brand = host_brand()
    hardware = Hardware(vm, slots, [], [])
    for index in range(cpus):
        vcpu = vm.create_vcpu(index)
        vcpu.set_cpuid2(vcpu_cpuid(supported, index, cpus, apic=irqchip, tsc_deadline=deadline, brand=brand))
        set_up_msrs(vcpu)
        if irqchip:
            set_up_lapic(vcpu)
        hardware.vcpus.append(vcpu)
        dispatcher = Dispatcher(*buses, lock if cpus > 1 else None)
        hardware.engines.append(DirectEngine(vcpu, dispatcher, irqchip=irqchip))
    return hardware
