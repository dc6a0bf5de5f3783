"""A guest of a few bytes in real mode, for the tests of the binding."""

from __future__ import annotations

import mmap
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
import pytest

from pyvmm.pykvm import Cap, ExitReason, Irqchip, MissingCapability, System, Vcpu, Vm

CODE = 0x1000
HANDLER = 0x2000
DONE_PORT = 0x10
RAM_SIZE = 1 << 20
HOLE = 0x1000000  # a guest-physical address behind which there is nothing


def needs(asked: System | Vm | Vcpu, capability: Cap) -> AbstractContextManager[Any]:
    """Expect the block to work where KVM has the capability, and MissingCapability naming it where it has not."""
    if asked.check_extension(capability):
        return nullcontext()
    return pytest.raises(MissingCapability, match=rf"KVM_CAP_{capability.name}\b")


@contextmanager
def deadline(seconds: float = 5) -> Iterator[None]:
    """Turn a guest that never exits into a failing test."""

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError("the guest did not exit")

    former = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


class Guest:
    """1 MiB of RAM in slot 0, one vCPU in real mode at CODE, its data segment's base movable.

    `irqchip` is "none", "full" or "split". The interrupt table sends every vector to HANDLER.
    """

    def __init__(self, code: str = "f4", handler: str = "e610f4", irqchip: str = "none", flags: int = 0) -> None:
        self.system = System()
        self.vm = self.system.create_vm()
        self.ram = mmap.mmap(-1, RAM_SIZE)
        self.hva: int = np.frombuffer(self.ram, np.uint8).__array_interface__["data"][0]
        self.ram[0:1024] = HANDLER.to_bytes(4, "little") * 256
        self.put(CODE, code)
        self.put(HANDLER, handler)
        if irqchip == "full":
            self.vm.create_irqchip()
        elif irqchip == "split":
            self.vm.enable_split_irqchip()
        self.vm.set_user_memory_region(0, 0, RAM_SIZE, self.hva, flags)
        self.vcpu = self.vm.create_vcpu(0)
        self.vcpu.set_cpuid2(self.system.supported_cpuid())
        sregs = self.vcpu.sregs()
        sregs["cs"]["base"], sregs["cs"]["selector"] = 0, 0
        self.vcpu.set_sregs(sregs)
        regs = self.vcpu.regs()
        regs["rip"], regs["rsp"], regs["rflags"] = CODE, 0x8000, 2
        self.vcpu.set_regs(regs)

    def put(self, address: int, code: str) -> None:
        """Write hexadecimal machine code into RAM."""
        data = bytes.fromhex(code)
        self.ram[address : address + len(data)] = data

    def on_vector(self, vector: int, value: int) -> None:
        """Send one vector to a handler of its own, which ends the guest with `value`."""
        at = HANDLER + 0x100 + 16 * vector
        self.ram[4 * vector : 4 * vector + 4] = at.to_bytes(4, "little")
        self.put(at, f"b0{value:02x}e610f4")

    def data_at(self, base: int) -> None:
        """Move the data segment."""
        sregs = self.vcpu.sregs()
        sregs["ds"]["base"] = base
        self.vcpu.set_sregs(sregs)

    def enable_apic(self) -> None:
        """Switch the local APIC on as a guest would: bit 8 of the register at 0xF0 (SDM vol. 3, 11.9)."""
        lapic = self.vcpu.lapic()
        lapic.view(np.uint32)[0xF0 // 4] |= 0x1FF
        self.vcpu.set_lapic(lapic)

    def enable_pic(self, base: int = 0x20) -> None:
        """Set the master PIC as firmware would: vectors from `base`, nothing masked."""
        state = self.vm.get_irqchip(Irqchip.PIC_MASTER)
        state["chip"]["pic"]["irq_base"], state["chip"]["pic"]["imr"] = base, 0
        self.vm.set_irqchip(state)

    def run(self, vcpu: Vcpu | None = None) -> int:
        """Run to the next exit and return its reason; after 5 s raise TimeoutError."""
        vcpu = vcpu or self.vcpu
        with deadline():
            vcpu.run()
        return vcpu.exit_reason

    def run_to_done(self) -> int:
        """Run to the OUT that ends every tiny guest, and return the byte that it wrote."""
        assert self.run() == ExitReason.IO, self.vcpu.exit_reason
        io = self.vcpu.io
        assert (io.port, io.direction) == (DONE_PORT, 1)
        return self.vcpu.io_data[0]

    def close(self) -> None:
        """Close everything."""
        self.system.close()
        self.ram.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
