"""The devices of a PC, each at its customary place."""

from __future__ import annotations

import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from pyvmm.devices import acpipm, cmos, debugcon, debugexit, fwcfg, pci, postcode, pvpanic
from pyvmm.devices.console import Console
from pyvmm.devices.console_output import ConsoleOutput
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.resetport import RESET_CONTROL, RESET_VALUE, SYSTEM_CONTROL_A, SystemControlA
from pyvmm.devices.testdev import TestDevice
from pyvmm.devices.uart import Uart
from pyvmm.errors import GuestMemoryError
from pyvmm.machine.panic import PanicWatch
from pyvmm.machine.result import EndReason

if TYPE_CHECKING:
    from pyvmm.boot.acpi import MmioDevice, Platform
    from pyvmm.devices.device import IrqLine
    from pyvmm.machine.machine import Machine

COM1, COM1_IRQ = 0x3F8, 4
COM2, COM2_IRQ = 0x2F8, 3
_INPUT_LIMIT = 64 << 10
"""Bytes of console input that may wait for the guest before their reader has to."""
_KEYBOARD_IRQ, _SCI = 1, 9


class Pc:
    """All standard devices of one machine.

    Attributes:
        console: back end of COM1 and of the debug console.
        output: gathers what these two send to it.
        serial: COM1.
        post: the POST port, with the codes that the guest wrote.
        pm: ACPI power management; `pm.press()` is the power button.
        virtio_mmio: the virtio-mmio devices that ACPI tables shall name; those here when an image is loaded are.
    """

    def __init__(self, machine: Machine, console: Console) -> None:
        """Attach the devices to `machine`; what the guest sends to COM1 or port 0xE9 goes to `console`."""
        # The console and its threads live as long as someone holds them; they must not keep the machine.
        self._machine_ref = weakref.ref(machine)
        self._started = False
        self._closing = False
        self.console = console
        self.output = ConsoleOutput(console.write, self._output_failed)
        console.pull = self.output.flush  # type: ignore[method-assign]
        if machine.panic_watch:
            self.output.seen = PanicWatch(self._panicked, self._panic_ended).feed

        def irq(gsi: int) -> IrqLine | None:
            return machine.irq_line(gsi) if machine.kernel_irqchip else None

        self.serial = Uart(self.output.put, irq(COM1_IRQ), "com1")
        self.post = postcode.PostCode()
        self.pm = acpipm.AcpiPm(irq(_SCI))
        self.virtio_mmio: list[MmioDevice] = []
        self._cpus = machine.cpus
        (_, low), *high = machine.memory.ranges
        self.rtc = cmos.Cmos(low, sum(size for _, size in high))
        self.keyboard = I8042(irq(_KEYBOARD_IRQ))
        machine.attach(self.serial, pio=COM1, size=8)
        machine.attach(debugcon.DebugCon(self.output.put), pio=debugcon.PORT)
        machine.attach(self.post, pio=postcode.PORT)
        machine.attach(debugexit.DebugExitPort(), pio=debugexit.PORT, size=debugexit.SIZE)
        machine.attach(self.rtc, pio=cmos.PORT, size=cmos.SIZE)
        self.keyboard.attach_to(machine.pio)
        machine.attach(SystemControlA(), pio=SYSTEM_CONTROL_A)
        machine.attach(pci.PciConfigPorts(), pio=pci.PORT, size=pci.SIZE)
        machine.attach(fwcfg.FwCfg(machine.memory.size, machine.cpus), pio=fwcfg.PORT, size=fwcfg.SIZE)
        machine.attach(self.pm, pio=acpipm.PORT, size=acpipm.SIZE)
        machine.attach(pvpanic.PvPanic(), pio=pvpanic.PORT)
        lines = [machine.irq_line(gsi) for gsi in range(24)] if machine.kernel_irqchip else []
        TestDevice(lines, self._flush).attach_to(machine.pio, machine.mmio)

    def _flush(self, gpa: int) -> None:
        # A test device's service, so a page that cannot be unmapped alone (it is not RAM, or part of a huge one) stays.
        machine = self._machine_ref()
        if machine is not None:
            with suppress(GuestMemoryError, OSError):
                machine.memory.unmap(gpa)

    def platform(self) -> Platform:
        """Describe the machine as its ACPI tables shall."""
        from pyvmm.boot.acpi import Platform  # only what loads an image pays for it

        return Platform(
            cpus=self._cpus,
            sci=_SCI,
            pm_event=acpipm.EVENT,
            pm_control=acpipm.CONTROL,
            pm_timer=acpipm.TIMER,
            soft_off=acpipm.SOFT_OFF,
            reset=(RESET_CONTROL, RESET_VALUE),
            serial=((COM1, COM1_IRQ),),
            rtc=cmos.PORT,
            century=cmos.CENTURY,
            keyboard_controller=False,  # it resets and gates A20, but nobody types on it: probing would be for nothing
            pvpanic=pvpanic.PORT,
            virtio_mmio=tuple(self.virtio_mmio),
        )

    def start(self) -> None:
        """Start to take the console's input: it is delivered to COM1 on a vCPU's thread, whichever thread reads it."""
        if self._started:
            return
        self.console.on_quit = self._quit
        self.console.stopping = self._stopping  # type: ignore[method-assign]
        self.console.start(self._deliver)
        self._started = True

    def close(self) -> None:
        """Pass on the last output and let a reader that waits for the guest go."""
        self._closing = True
        self.output.close()

    def flush(self) -> None:
        """Pass on all output."""
        try:
            self.output.flush()
        except BaseException as error:  # of a console that a program brought along
            self._output_failed(error)

    def _quit(self) -> None:
        if (machine := self._machine_ref()) is not None:
            machine.stop("by the console's user")

    def _output_failed(self, error: BaseException) -> None:
        if (machine := self._machine_ref()) is not None:
            machine.control.fail(error)

    def _panicked(self, reason: str) -> None:
        if (machine := self._machine_ref()) is not None:
            machine.control.panic = reason

    def _panic_ended(self, reason: str) -> None:
        if (machine := self._machine_ref()) is not None:
            machine.control.stop(EndReason.PANIC, reason)

    def _stopping(self) -> bool:
        machine = self._machine_ref()
        return machine is None or machine.stopping

    def _deliver(self, data: bytes) -> None:
        # Input from a file or a paste can be faster than any guest: its reader waits here, and loses nothing.
        while self.serial.waiting > _INPUT_LIMIT and not self._closing:
            time.sleep(0.01)
        machine = self._machine_ref()
        if machine is not None and not self._closing:
            machine.post(lambda: self.serial.receive(data))
