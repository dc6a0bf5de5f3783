"""The KVM device itself: what this host's KVM is, what it can do, and the way to a VM."""

from __future__ import annotations

import os
from collections.abc import Iterable
from errno import EACCES, ENODEV, ENOENT, ENOTTY, ENXIO, EPERM
from typing import TYPE_CHECKING

from pyvmm.pykvm.constants import API_VERSION, Cap
from pyvmm.pykvm.errors import KvmError, KvmUnavailable
from pyvmm.pykvm.handle import Handle, Record
from pyvmm.pykvm.ioctls import Ioctl
from pyvmm.pykvm.tables import CpuidEntry, read_cpuid, read_cpuid_entries, read_msr_list, read_msrs
from pyvmm.pykvm.vm import Vm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from pyvmm.pykvm.lazy import np

_NO_MODULE = "load kvm_intel or kvm_amd (sudo modprobe) and enable virtualization in the firmware"
_WHY: dict[int, str] = {
    ENOENT: f"no {{path}}: {_NO_MODULE}",
    ENODEV: f"{{path}} has no driver behind it: {_NO_MODULE}",
    ENXIO: f"{{path}} has no driver behind it: {_NO_MODULE}",
    EACCES: "no permission for {path}: add yourself to its group (sudo usermod -aG kvm $USER), then log in again",
    EPERM: "no permission for {path}: this container or sandbox withholds the device; pass it in (--device={path})",
}


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        reason = _WHY.get(error.errno or 0, f"cannot open {{path}}: {error.strerror}; name KVM's device node")
        raise KvmUnavailable(reason.format(path=path), path, error.errno) from None


class System(Handle):
    """An open /dev/kvm (system ioctls).

    Raises KvmUnavailable, with one line by cause, when the device is missing, barred, not KVM, or speaks another API
    version.
    """

    def __init__(self, path: str = "/dev/kvm") -> None:
        super().__init__(_open(path), path)
        try:
            version = self.api_version()
        except KvmError as error:
            self.close()
            what = "is not KVM's device" if error.errno == ENOTTY else f"does not answer: {error}"
            raise KvmUnavailable(f"{path} {what}; name KVM's device node", path, error.errno) from None
        if version != API_VERSION:
            self.close()
            message = f"{path} speaks KVM API version {version}, not {API_VERSION}: use a Linux newer than 2.6.22"
            raise KvmUnavailable(message, path)

    def api_version(self) -> int:
        """Return KVM's API version; it has been 12 since Linux 2.6.22."""
        return self.call(Ioctl.GET_API_VERSION)

    def supported_cpuid(self) -> Record:
        """Return the CPUID entries that KVM and this CPU can give a guest.

        Shape (n,), dtype CPUID_ENTRY2 (KVM_GET_SUPPORTED_CPUID).
        """
        return read_cpuid(self, Ioctl.GET_SUPPORTED_CPUID)

    def supported_cpuid_entries(self) -> list[CpuidEntry]:
        """Return what supported_cpuid() does as plain tuples."""
        return read_cpuid_entries(self, Ioctl.GET_SUPPORTED_CPUID)

    def emulated_cpuid(self) -> Record:
        """Return the CPUID features that KVM emulates without the CPU's help.

        Shape (n,), dtype CPUID_ENTRY2 (KVM_GET_EMULATED_CPUID).
        """
        self.require(Cap.EXT_EMUL_CPUID)
        return read_cpuid(self, Ioctl.GET_EMULATED_CPUID)

    def msr_index_list(self) -> NDArray[np.uint32]:
        """Return the numbers of the MSRs that a guest's state consists of (KVM_GET_MSR_INDEX_LIST)."""
        return read_msr_list(self, Ioctl.GET_MSR_INDEX_LIST)

    def msr_feature_index_list(self) -> NDArray[np.uint32]:
        """Return the numbers of the MSRs that describe features, readable without a VM.

        See KVM_GET_MSR_FEATURE_INDEX_LIST.
        """
        self.require(Cap.GET_MSR_FEATURES)
        return read_msr_list(self, Ioctl.GET_MSR_FEATURE_INDEX_LIST)

    def get_feature_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Return feature MSRs by number (KVM_GET_MSRS). Raises MsrError naming the first that KVM refuses."""
        self.require(Cap.GET_MSR_FEATURES)
        return read_msrs(self, indices)

    def vcpu_mmap_size(self) -> int:
        """Return the size in bytes of a vCPU's run area: kvm_run and the pages behind it."""
        return self.call(Ioctl.GET_VCPU_MMAP_SIZE)

    def create_vm(self, kind: int = 0) -> Vm:
        """Create a VM without memory or vCPUs. `kind` is KVM's machine type, 0 for the ordinary one."""
        size = self.vcpu_mmap_size()
        return self.adopt(Vm(self.call(Ioctl.CREATE_VM, kind), size))
