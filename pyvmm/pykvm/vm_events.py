"""Guest accesses and interrupts without an exit: irqfd, ioeventfd and coalesced zones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.pykvm.constants import Cap, IoeventfdFlag, IrqfdFlag
from pyvmm.pykvm.handle import Handle
from pyvmm.pykvm.ioctls import Ioctl

if TYPE_CHECKING:
    import numpy as np

    from pyvmm.pykvm import layout
else:
    from pyvmm.pykvm.lazy import layout, np


class EventFds(Handle):
    """The side of a VM that works by eventfds and rings."""

    def irqfd(self, eventfd: int, gsi: int, resample: int | None = None, deassign: bool = False) -> None:
        """Bind an eventfd (os.eventfd) to a GSI: each write to it raises the interrupt (KVM_IRQFD).

        With `resample`, another eventfd, the line is level triggered: it stays up until the guest acknowledges it,
        which KVM then reports on `resample`. `deassign` undoes a binding.
        """
        self.require(Cap.IRQFD)
        argument = np.zeros((), layout.IRQFD)
        argument["fd"], argument["gsi"] = eventfd, gsi
        flags = IrqfdFlag.DEASSIGN if deassign else IrqfdFlag(0)
        if resample is not None:
            self.require(Cap.IRQFD_RESAMPLE)
            argument["resamplefd"] = resample
            flags |= IrqfdFlag.RESAMPLE
        argument["flags"] = flags
        self.exchange(Ioctl.IRQFD, argument)

    def ioeventfd(
        self,
        eventfd: int,
        addr: int,
        size: int,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        """Bind an eventfd to guest writes of `size` bytes to an MMIO address or a port, which then cause no exit.

        See KVM_IOEVENTFD. With `datamatch` only writes of that value count. Size 0 takes writes of any size (needs
        KVM_CAP_IOEVENTFD_ANY_LENGTH).
        """
        self.require(Cap.IOEVENTFD if size else Cap.IOEVENTFD_ANY_LENGTH)
        argument = np.zeros((), layout.IOEVENTFD)
        argument["addr"], argument["len"], argument["fd"] = addr, size, eventfd
        flags = IoeventfdFlag(0)
        if datamatch is not None:
            argument["datamatch"] = datamatch
            flags |= IoeventfdFlag.DATAMATCH
        if pio:
            flags |= IoeventfdFlag.PIO
        if deassign:
            flags |= IoeventfdFlag.DEASSIGN
        argument["flags"] = flags
        self.exchange(Ioctl.IOEVENTFD, argument)

    def register_coalesced(self, addr: int, size: int, pio: bool = False) -> None:
        """Let guest writes to an MMIO range, or to ports, gather in a ring instead of exiting one by one.

        See KVM_REGISTER_COALESCED_MMIO.
        Read the ring with Vcpu.drain_coalesced() on any vCPU of the VM, at the latest after each exit.
        """
        self._coalesced(Ioctl.REGISTER_COALESCED_MMIO, addr, size, pio)

    def unregister_coalesced(self, addr: int, size: int, pio: bool = False) -> None:
        """Undo register_coalesced() for the zones that lie in the range."""
        self._coalesced(Ioctl.UNREGISTER_COALESCED_MMIO, addr, size, pio)

    def _coalesced(self, request: Ioctl, addr: int, size: int, pio: bool) -> None:
        self.require(Cap.COALESCED_PIO if pio else Cap.COALESCED_MMIO)
        zone = np.zeros((), layout.COALESCED_MMIO_ZONE)
        zone["addr"], zone["size"], zone["pio"] = addr, size, pio
        self.exchange(request, zone)
