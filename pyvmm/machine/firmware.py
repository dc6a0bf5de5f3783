"""What a PC's firmware would have set up before the guest starts: interrupt controllers and memory types.

There is no BIOS here and no real-mode service to call. But guests rely on the state that one leaves behind.
"""

from __future__ import annotations

from typing import Final

from pyvmm.pykvm import Irqchip, MsrError, Vcpu, Vm
from pyvmm.pykvm.ioctls import Ioctl

_PIC_VECTORS: Final = {Irqchip.PIC_MASTER: 0x08, Irqchip.PIC_SLAVE: 0x70}
"""Interrupt vectors of IRQ 0 and IRQ 8 as the IBM PC AT's BIOS programs them, so real-mode guests find them there."""

_IRQCHIP_SIZE: Final = 520
_PIC_IRQ_BASE: Final = 13
"""Offset of chip.pic.irq_base in struct kvm_irqchip."""
_LAPIC_SIZE: Final = 1024

_LVT_LINT0: Final = 0x350
_LVT_LINT1: Final = 0x360
_EXTINT: Final = 7 << 8
_NMI: Final = 4 << 8

_IA32_MISC_ENABLE: Final = 0x1A0
_FAST_STRINGS: Final = 1
_IA32_MTRR_DEF_TYPE: Final = 0x2FF
_MTRR_ENABLED_WRITE_BACK: Final = 1 << 11 | 6


def set_up_pics(vm: Vm) -> None:
    """Give both PICs their AT vectors; no line is masked, as none is driven before the guest makes a device do so."""
    for chip, vector in _PIC_VECTORS.items():
        state = bytearray(_IRQCHIP_SIZE)
        state[0] = chip
        vm.exchange(Ioctl.GET_IRQCHIP, state)
        state[_PIC_IRQ_BASE] = vector
        vm.exchange(Ioctl.SET_IRQCHIP, state)


def set_up_lapic(vcpu: Vcpu) -> None:
    """Wire the LAPIC for virtual-wire mode: LINT0 takes the PIC's interrupts, LINT1 NMIs (MP specification 1.4, 3.6.2.2)."""
    area = vcpu.fetch_bytes(Ioctl.GET_LAPIC, _LAPIC_SIZE)
    area[_LVT_LINT0 : _LVT_LINT0 + 4] = _EXTINT.to_bytes(4, "little")
    area[_LVT_LINT1 : _LVT_LINT1 + 4] = _NMI.to_bytes(4, "little")
    vcpu.exchange(Ioctl.SET_LAPIC, area)


def set_up_msrs(vcpu: Vcpu) -> None:
    """Turn on write-back caching of all RAM by MTRR (SDM vol. 3, 11.11.2.1) and fast strings, where the vCPU has them."""
    for index, bits in ((_IA32_MISC_ENABLE, _FAST_STRINGS), (_IA32_MTRR_DEF_TYPE, _MTRR_ENABLED_WRITE_BACK)):
        try:
            vcpu.set_msrs({index: vcpu.msrs([index])[index] | bits})
        except MsrError:
            continue  # not one of this CPU's registers: nothing to set up
