"""Interrupts of a VM: the in-kernel controllers and timer, lines, MSIs and routing."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL
from fcntl import ioctl
from struct import pack
from typing import TYPE_CHECKING

from pyvmm.pykvm.capable import Capable
from pyvmm.pykvm.constants import Cap, Irqchip, PitFlag, RouteType
from pyvmm.pykvm.errors import ClosedError, KvmError, from_handler
from pyvmm.pykvm.handle import Record, record_of
from pyvmm.pykvm.ioctls import KVM_IRQ_LINE, Ioctl
from pyvmm.pykvm.tables import write_routes

if TYPE_CHECKING:
    import numpy as np

    from pyvmm.pykvm import layout
else:
    from pyvmm.pykvm.lazy import layout, np


def irqchip_route(gsi: int, chip: Irqchip, pin: int) -> Record:
    """Return a route from a GSI to a pin of an in-kernel chip: dtype IRQ_ROUTING_ENTRY."""
    route = np.zeros((), layout.IRQ_ROUTING_ENTRY)
    route["gsi"], route["type"] = gsi, RouteType.IRQCHIP
    route["u"]["irqchip"]["irqchip"], route["u"]["irqchip"]["pin"] = chip, pin
    return route


def msi_route(gsi: int, address: int, data: int) -> Record:
    """Return a route from a GSI to a message-signalled interrupt: dtype IRQ_ROUTING_ENTRY."""
    route = np.zeros((), layout.IRQ_ROUTING_ENTRY)
    route["gsi"], route["type"] = gsi, RouteType.MSI
    msi = route["u"]["msi"]
    msi["address_lo"], msi["address_hi"], msi["data"] = address & 0xFFFFFFFF, address >> 32, data
    return route


class Interrupts(Capable):
    """The interrupt side of a VM."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self._levels: dict[tuple[int, int], bytearray] = {}

    def create_irqchip(self) -> None:
        """Create PIC, I/O APIC and, for each vCPU made later, a local APIC in the kernel (KVM_CREATE_IRQCHIP)."""
        self.require(Cap.IRQCHIP)
        self.call(Ioctl.CREATE_IRQCHIP)

    def enable_split_irqchip(self, routes: int = 24) -> None:
        """Put the local APICs in the kernel and leave PIC and I/O APIC to this process (KVM_CAP_SPLIT_IRQCHIP).

        `routes` is the number of GSIs kept for the I/O APIC's pins, which are then delivered as MSI routes.
        """
        self.enable_cap(Cap.SPLIT_IRQCHIP, [routes])

    def create_pit2(self, flags: int = PitFlag.SPEAKER_DUMMY) -> None:
        """Create an i8254 timer in the kernel (KVM_CREATE_PIT2); SPEAKER_DUMMY lets it answer port 0x61 too.

        Needs create_irqchip().
        """
        self.require(Cap.PIT2)
        self.exchange(Ioctl.CREATE_PIT2, bytearray(pack("<I60x", flags)))

    def get_irqchip(self, chip: Irqchip) -> Record:
        """Return one in-kernel chip's state: dtype IRQCHIP.

        `chip` holds the fields `pic` or `ioapic` (KVM_GET_IRQCHIP).
        """
        self.require(Cap.IRQCHIP)
        state = np.zeros((), layout.IRQCHIP)
        state["chip_id"] = chip
        self.exchange(Ioctl.GET_IRQCHIP, state)
        return state

    def set_irqchip(self, state: Record | np.void) -> None:
        """Set one in-kernel chip's state, which names its chip (KVM_SET_IRQCHIP)."""
        self.require(Cap.IRQCHIP)
        self.exchange(Ioctl.SET_IRQCHIP, record_of(state, layout.IRQCHIP))

    def get_pit2(self) -> Record:
        """Return the in-kernel timer's state: dtype PIT_STATE2 (KVM_GET_PIT2)."""
        self.require(Cap.PIT_STATE2)
        return self.fetch(Ioctl.GET_PIT2, layout.PIT_STATE2)

    def set_pit2(self, state: Record | np.void) -> None:
        """Set the in-kernel timer's state (KVM_SET_PIT2)."""
        self.require(Cap.PIT_STATE2)
        self.exchange(Ioctl.SET_PIT2, record_of(state, layout.PIT_STATE2))

    def irq_line(self, gsi: int, level: int) -> None:
        """Drive an interrupt line to 1 or 0 (KVM_IRQ_LINE).

        Cheap: the argument is packed once for each line and level.
        """
        argument = self._levels.get((gsi, level))
        if argument is None:
            argument = self._levels[gsi, level] = bytearray(pack("<II", gsi, level))
        try:
            ioctl(self.fd, KVM_IRQ_LINE, argument)
        except OSError as error:
            if from_handler(error):
                raise
            raise KvmError("IRQ_LINE", error.errno or 0) from None
        except ValueError:
            if self.fd >= 0:  # a signal handler raised it
                raise
            raise ClosedError(self.name) from None

    def irq_line_status(self, gsi: int, level: int) -> int:
        """Drive a line and return what became of it.

        0 coalesced with a pending one, above 0 delivered, below 0 masked.
        """
        self.require(Cap.IRQ_INJECT_STATUS)
        argument = np.zeros((), layout.IRQ_LEVEL)
        argument["irq"], argument["level"] = gsi, level
        self.exchange(Ioctl.IRQ_LINE_STATUS, argument)
        return int(argument["status"])

    def signal_msi(self, address: int, data: int, flags: int = 0, devid: int = 0) -> bool:
        """Send a message-signalled interrupt and tell whether a vCPU took it (KVM_SIGNAL_MSI)."""
        self.require(Cap.SIGNAL_MSI)
        argument = np.zeros((), layout.MSI)
        argument["address_lo"], argument["address_hi"], argument["data"] = address & 0xFFFFFFFF, address >> 32, data
        argument["flags"], argument["devid"] = flags, devid
        return self.exchange(Ioctl.SIGNAL_MSI, argument) > 0

    def set_gsi_routing(self, routes: Sequence[Record | np.void]) -> None:
        """Replace the whole table that says where each GSI goes (KVM_SET_GSI_ROUTING).

        Entries from irqchip_route() and msi_route().
        """
        room = self.require(Cap.IRQ_ROUTING)
        if len(routes) > room:
            raise KvmError("SET_GSI_ROUTING", EINVAL, f"{len(routes)} routes, but this KVM takes at most {room}")
        write_routes(self, routes)
