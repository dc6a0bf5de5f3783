"""KVM's whole interface for a VMM on x86-64, without ctypes: ioctls, mmap and NumPy records.

System opens /dev/kvm, System.create_vm() makes a Vm, Vm.create_vcpu() a Vcpu. Closing one closes what was made from it.
Names such as KVM_SET_CLOCK in the documentation are the headings of the kernel's Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

from pyvmm.pykvm.constants import (
    Cap,
    ExitReason,
    GuestDebug,
    InternalError,
    Irqchip,
    MemFlag,
    MpState,
    MsrExit,
    Sync,
    SystemEvent,
)
from pyvmm.pykvm.errors import ClosedError, KvmError, KvmUnavailable, MissingCapability, MsrError
from pyvmm.pykvm.stats import Stat, StatDescriptor, StatsFd
from pyvmm.pykvm.system import System
from pyvmm.pykvm.vcpu import Vcpu
from pyvmm.pykvm.vcpu_control import Translation
from pyvmm.pykvm.vm import Vm
from pyvmm.pykvm.vm_irq import irqchip_route, msi_route
from pyvmm.pykvm.vm_msr import MsrRange

__all__ = [
    "Cap",
    "ClosedError",
    "ExitReason",
    "GuestDebug",
    "InternalError",
    "Irqchip",
    "KvmError",
    "KvmUnavailable",
    "MemFlag",
    "MissingCapability",
    "MpState",
    "MsrError",
    "MsrExit",
    "MsrRange",
    "Stat",
    "StatDescriptor",
    "StatsFd",
    "Sync",
    "System",
    "SystemEvent",
    "Translation",
    "Vcpu",
    "Vm",
    "irqchip_route",
    "msi_route",
]
