"""Control over a vCPU that is not state: interrupts, debugging, translation, time stamp counter, signals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.pykvm.capable import Capable
from pyvmm.pykvm.constants import Cap, GuestDebug
from pyvmm.pykvm.ioctls import Ioctl

if TYPE_CHECKING:
    import numpy as np

    from pyvmm.pykvm import layout
else:
    from pyvmm.pykvm.lazy import layout, np

_SIGSET_BYTES = 8


class Translation(NamedTuple):
    """A GVA walked through the guest's tables; `gpa` counts only when `valid`."""

    gpa: int
    valid: bool
    writeable: bool
    usermode: bool


class Control(Capable):
    """What the outside does to a vCPU."""

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt vector (KVM_INTERRUPT).

        For VMs whose interrupt controller is not in the kernel.
        """
        self.exchange(Ioctl.INTERRUPT, np.array((vector,), layout.INTERRUPT))

    def nmi(self) -> None:
        """Queue a non-maskable interrupt (KVM_NMI)."""
        self.require(Cap.USER_NMI)
        self.call(Ioctl.NMI)

    def set_guest_debug(self, control: GuestDebug | int, debugreg: Sequence[int] = ()) -> None:
        """Debug the guest from outside (KVM_SET_GUEST_DEBUG).

        `control` are GuestDebug bits, 0 to stop. `debugreg` are up to eight values for DR0 to DR7, which USE_HW_BP puts
        in place of the guest's own.
        """
        self.require(Cap.SET_GUEST_DEBUG)
        request = np.zeros((), layout.GUEST_DEBUG)
        request["control"] = control
        request["arch"]["debugreg"][: len(debugreg)] = debugreg
        self.exchange(Ioctl.SET_GUEST_DEBUG, request)

    def translate(self, gva: int) -> Translation:
        """Walk the guest's page tables for a GVA, as they and its mode are now (KVM_TRANSLATE).

        KVM fills in `valid` and the address; kernels to this day set `writeable` true and `usermode` false without
        looking.
        """
        request = np.zeros((), layout.TRANSLATION)
        request["linear_address"] = gva
        self.exchange(Ioctl.TRANSLATE, request)
        flags = (bool(request[name]) for name in ("valid", "writeable", "usermode"))
        return Translation(int(request["physical_address"]), *flags)

    def tsc_khz(self) -> int:
        """Return the frequency of the guest's time stamp counter in kHz (KVM_GET_TSC_KHZ)."""
        self.require(Cap.GET_TSC_KHZ)
        return self.call(Ioctl.GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """Set the frequency of the guest's time stamp counter in kHz (KVM_SET_TSC_KHZ).

        Without KVM_CAP_TSC_CONTROL only frequencies near or above the host's work. Raises KvmError EINVAL for the
        others.
        """
        self.call(Ioctl.SET_TSC_KHZ, khz)

    def kvmclock_ctrl(self) -> None:
        """Tell the guest that it was paused, so that its watchdogs forgive (KVM_KVMCLOCK_CTRL).

        KvmError EINVAL: it uses no kvmclock.
        """
        self.require(Cap.KVMCLOCK_CTRL)
        self.call(Ioctl.KVMCLOCK_CTRL)

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """Set the signals that are blocked while KVM_RUN runs, in place of the thread's own mask.

        None undoes it (KVM_SET_SIGNAL_MASK). A signal that the thread blocks and this set does not will end KVM_RUN
        with EINTR and stay pending.
        """
        if blocked is None:
            self.call(Ioctl.SET_SIGNAL_MASK, 0)
            return
        bits = 0
        for signal in blocked:
            bits |= 1 << (int(signal) - 1)
        argument = bytearray(_SIGSET_BYTES.to_bytes(4, "little") + bits.to_bytes(_SIGSET_BYTES, "little"))
        self.exchange(Ioctl.SET_SIGNAL_MASK, argument)
