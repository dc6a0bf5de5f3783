"""Machine: guest memory, vCPUs, devices and a boot image, run to a result."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

from pyvmm.boot import BootImage, Content, load
from pyvmm.boot.layout import IOAPIC, LAPIC
from pyvmm.devices.bus import Bus, Mapping
from pyvmm.devices.console import Console, MemoryConsole
from pyvmm.devices.device import Device, IrqLine
from pyvmm.engine.direct import DirectEngine
from pyvmm.engine.state import CpuState
from pyvmm.errors import UsageError
from pyvmm.machine.arguments import boot_content, boot_options, check_limits, check_machine, whole
from pyvmm.machine.control import Control
from pyvmm.machine.failure import report_failure
from pyvmm.machine.hardware import build
from pyvmm.machine.irq import IrqLines
from pyvmm.machine.pc import Pc
from pyvmm.machine.result import EndReason, Result
from pyvmm.machine.signals import DeferredSignals
from pyvmm.machine.vcpus import VcpuThreads
from pyvmm.machine.watchdog import Watchdog
from pyvmm.memory import GuestMemory, parse_size
from pyvmm.pykvm import System

if TYPE_CHECKING:
    from pyvmm.machine.statistics import Statistics
    from pyvmm.paging.result import Walk
    from pyvmm.paging.state import Access

_PIO_SIZE = 1 << 16
_MMIO_SIZE = 1 << 52


class Machine:
    """One virtual machine on /dev/kvm; a context manager.

        with Machine("64M") as vm:
            vm.load("kernel.bin")
            result = vm.run(timeout=10)

    Attributes:
        memory: guest RAM.
        slots: the memory slots that KVM knows.
        pio, mmio: the buses that devices are attached to.
        console: back end of COM1 and of the debug console.
        pc: the standard devices, or None.
        control: ends the present run, from any thread.
        engines: what runs each vCPU.
        vcpus: the KVM vCPUs behind them, for everything that `pyvmm.pykvm` offers.
        image: what `load` loaded, or None.
        result: the result of the last run, also where `run` raised KeyboardInterrupt or `Terminated`.
    """

    def __init__(
        self,
        memory: SupportsIndex | str = "128M",
        cpus: SupportsIndex = 1,
        *,
        console: Console | None = None,
        devices: str = "pc",
        irqchip: str = "kernel",
        hugepages: str = "auto",
        kvm: str = "/dev/kvm",
        panic_watch: bool = True,
    ) -> None:
        """Create the VM, its RAM, its vCPUs and its devices.

        Args:
            memory: bytes, or text as `parse_size` takes it.
            console: back end of COM1 and the debug console; closed with the machine. Default: a `MemoryConsole`.
            devices: "pc" for those of `pyvmm.machine.pc.Pc`, "none" for empty buses.
            irqchip: "kernel" for KVM's PICs, IOAPIC, LAPICs and PIT; "none" for a bare CPU, which leaves the guest at each HLT.
            hugepages: "auto" (transparent ones where the host has them), "none", "thp" or "2M".
            kvm: path of the KVM device.
            panic_watch: end the run when the console shows that a Linux kernel has panicked. A program in the guest that
                prints the same lines is taken for its kernel: then switch it off.

        Raises:
            UsageError: a value cannot work.
            HostError: this host cannot do it: no KVM, no right, not enough memory.
        """
        size = parse_size(memory) if isinstance(memory, str) else whole(memory, "memory")
        self.cpus = whole(cpus, "cpus")
        check_machine(self.cpus, console, devices, irqchip)
        self.kernel_irqchip = irqchip == "kernel"
        self.pio = Bus("pio", _PIO_SIZE)
        self.mmio = Bus("mmio", _MMIO_SIZE)
        self.lock = threading.RLock()
        self.panic_watch = panic_watch
        self.image: BootImage | None = None
        self.result: Result | None = None
        self._running = False
        self._closed = True  # until there is something to close
        self._system = System(kvm)
        try:
            self.memory = GuestMemory(size, hugepages=hugepages)
        except BaseException:
            self._system.close()
            raise
        self._closed = False
        try:
            self.kvm, self.slots, self.vcpus, self.engines = build(
                self._system, self.memory, self.cpus, self.kernel_irqchip, (self.pio, self.mmio), self.lock
            )
            self._irqs = IrqLines(self.kvm)
            self.control = Control(self.engines)
            self._watchdog = Watchdog(self.control, detect_halt=self.kernel_irqchip)
            self.console: Console = MemoryConsole() if console is None else console
            self.pc = Pc(self, self.console) if devices == "pc" else None
        except BaseException:
            self.close()
            raise

    # -- what a machine is made of -----------------------------------------------------------------------------------

    def attach(
        self, device: Device, *, pio: int | None = None, mmio: int | None = None, size: int = 1, irq: int | None = None
    ) -> Mapping:
        """Attach a device at `size` ports from `pio` on, or at `size` bytes from GPA `mmio` on, and wire its interrupt to GSI `irq`.

        Attaching the same device again gives it one more window.

        Raises:
            DeviceError: the window overlaps another one (both are named) or leaves the bus.
            UsageError: not exactly one of `pio` and `mmio`, a window over RAM, an interrupt without interrupt controller.
        """
        if (pio is None) == (mmio is None):
            raise UsageError(f"attach {device.name}: give either pio= or mmio=")
        if mmio is not None:
            for chip, name in ((IOAPIC, "IOAPIC"), (LAPIC, "LAPIC")):
                if self.kernel_irqchip and mmio < chip + 0x1000 and chip < mmio + size:
                    raise UsageError(
                        f"attach {device.name}: {mmio:#x} belongs to the in-kernel {name}; use another address"
                    )
            for gpa, length in self.memory.ranges:
                if mmio < gpa + length and gpa < mmio + size:
                    raise UsageError(
                        f"attach {device.name}: {mmio:#x} is RAM; use an address that is not, as from 3 GiB to 4 GiB"
                    )
        line = None if irq is None else self.irq_line(irq)
        mapping = self.mmio.attach(mmio, size, device) if mmio is not None else self.pio.attach(pio or 0, size, device)
        if line is not None:
            device.irq.set(False)
            device.irq = line
        for engine in self.engines:
            engine.forget_bindings()
        return mapping

    def detach(self, mapping: Mapping) -> None:
        """Take a window that `attach` returned away again; accesses to it are nobody's from then on."""
        (self.pio if mapping in self.pio.mappings else self.mmio).detach(mapping)
        for engine in self.engines:
            engine.forget_bindings()

    def irq_line(self, gsi: int) -> IrqLine:
        """Return a new source for interrupt line `gsi`, 0 to 23; sources of one line are a wired-OR."""
        if not self.kernel_irqchip:
            raise UsageError(f"interrupt line {gsi}: this machine has no interrupt controller (irqchip=none)")
        if not 0 <= gsi < 24:
            raise UsageError(f"interrupt line {gsi}: use 0 to 23")
        return self._irqs.source(gsi)

    def load(self, image: Content | bytearray | memoryview, **options: Any) -> BootImage:
        """Load a kernel image and make vCPU 0 ready to start it.

        Args:
            image: path, content as bytes, or `guest:NAME` for a guest that comes with pyvmm.
            options: the fields of `pyvmm.boot.BootOptions`: cmdline, initrd, modules, format, mode, load_addr, entry.

        Raises:
            ImageError: the image is damaged, of an unknown kind, or does not fit.
            UsageError: an option does not fit the image, or one is loaded already.
        """
        if self.image is not None:
            raise UsageError("an image is loaded already: make a new machine for another one")
        self._need_rest()
        content = boot_content(image)
        platform = self.pc.platform() if self.pc is not None and self.kernel_irqchip else None
        boot = boot_options(options, cpus=self.cpus, mp_table=self.kernel_irqchip, acpi=platform)
        try:
            loaded = load(content, self.memory, boot)
            if not self.kernel_irqchip:
                loaded.state.apic_base = 0  # KVM keeps CPUID's APIC bit the same as this register's enable bit
            self.engines[0].set_state(loaded.state)
        except BaseException:
            self.memory.clear()  # loaders count on zeroed RAM, so what a failed one left must not stay
            raise
        self.image = loaded
        return loaded

    def state(self, cpu: int = 0) -> CpuState:
        """Read the registers of a vCPU; while the machine runs, only from its own thread (in a device, in `until`)."""
        return self._engine(cpu).state()

    def set_state(self, state: CpuState, cpu: int = 0) -> None:
        """Replace the registers of a vCPU; while the machine runs, only from its own thread (in a device, in `until`)."""
        self._engine(cpu).set_state(state)

    def translate(self, gva: int, cpu: int = 0, access: Access | None = None) -> Walk:
        """Walk the guest's page tables for `gva` as vCPU `cpu` would now: every step, and the GPA or the fault.

        Args:
            access: kind of access and privilege; default a read by the supervisor.
        """
        from pyvmm.machine.cpuid import paging_features  # a run without translations does not pay for the walker
        from pyvmm.paging.state import READ, PagingState
        from pyvmm.paging.walk import walk

        if not 0 <= gva < 1 << 64:
            raise UsageError(f"{gva:#x} is no linear address: use 0 to 2**64 - 1")
        state = self.state(cpu)
        features = paging_features(self.vcpus[cpu].cpuid_entries())
        paging = PagingState(state.cr0, state.cr3, state.cr4, state.efer, **features)
        return walk(paging, self.memory, gva, READ if access is None else access)

    # -- running -----------------------------------------------------------------------------------------------------

    def run(
        self,
        timeout: float | None = None,
        until: Callable[[Machine], bool] | None = None,
        max_exits: int | None = None,
    ) -> Result:
        """Run all vCPUs until the guest ends, or one of the limits is reached; a guest that a limit stopped can be run on.

        Args:
            timeout: wall-clock seconds.
            until: called after each exit, between instructions; a true value ends the run.
            max_exits: number of exits, over all vCPUs; with several of them, what the others have under way then comes on top.

        Returns:
            Why the run ended; after a crash with a failure report.

        Raises:
            Exception: whatever a device or `until` raised, with a note that names the access.
            KeyboardInterrupt: Ctrl-C, once every vCPU has stopped; `result` holds the result all the same. SIGTERM and
                SIGHUP raise `Terminated`, unless the program has a handler of its own.
            UsageError: a limit makes no sense, the machine runs already, or its guest has crashed.
        """
        check_limits(timeout, max_exits)
        if max_exits is not None:
            max_exits = min(max_exits, sys.maxsize)  # the exit loop counts in the machine's words
        self._need_rest()
        if self.result is not None and self.result.crashed:
            raise UsageError(f"{self.result}: a crashed guest cannot be run on; make a new machine")
        control = self.control
        control.begin()
        before = self._exits()
        signals = DeferredSignals(lambda name: control.stop(EndReason.USER, name))
        condition = None if until is None else lambda: until(self)
        threads = VcpuThreads(self.engines, control, self.lock, self._watchdog, until=condition, max_exits=max_exits)
        began = time.monotonic()
        self._running = True
        try:
            if self.pc is not None:
                self.pc.start()
            with signals:
                self._watchdog.begin(timeout)
                threads.run()
        finally:
            self._watchdog.end()
            if self.pc is not None:
                self.pc.flush()
            self._running = False
        seconds = time.monotonic() - began
        exits = self._exits() - before
        if control.error is not None:
            what = f"{type(control.error).__name__}: {control.error}".partition("\n")[0]
            self.result = Result(EndReason.ERROR, what, seconds=seconds, exits=exits)
            raise control.error
        assert control.end is not None
        reason, detail, vcpu, value = control.end
        report = None if threads.crash is None else report_failure(self, reason, detail, vcpu, threads.crash)
        self.result = Result(reason, detail, vcpu, value, seconds, exits, report)
        signals.deliver()
        return self.result

    def stop(self, detail: str = "") -> None:
        """End the present run from another thread, a device or a console; `run` returns with reason "user".

        Between runs this does nothing.
        """
        if not self._closed:
            self.control.stop(EndReason.USER, detail)

    @property
    def stopping(self) -> bool:
        """Tell whether the present run is about to end."""
        return self.control.stopping

    def post(self, work: Callable[[], Any]) -> None:
        """Have `work` called on a vCPU's thread between two exits, in the next run if none is under way.

        This is how other threads reach devices.
        """
        if not callable(work):
            raise UsageError(f"post: {work!r} cannot be called")
        if not self._closed:
            self.control.post(work)

    def statistics(self) -> Statistics:
        """Add up what was counted since the machine was made; not while it runs."""
        self._need_rest()
        from pyvmm.machine.statistics import take

        return take(self.engines, self.kvm, self.vcpus)

    def _need_rest(self) -> None:
        if self._closed or self._running:
            raise UsageError("the machine is closed" if self._closed else "the machine is running: stop() it first")

    def _engine(self, cpu: int) -> DirectEngine:
        if self._closed or not 0 <= cpu < self.cpus:
            raise UsageError("the machine is closed" if self._closed else f"vCPU {cpu}: use 0 to {self.cpus - 1}")
        engine = self.engines[cpu]
        if engine.busy:
            raise UsageError(f"vCPU {cpu} is running: stop() the machine first, or ask from a device or from until=")
        return engine

    def _exits(self) -> int:
        return sum(engine.dispatcher.exits for engine in self.engines)

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release vCPUs, VM and memory; arrays of guest memory that a caller still holds stay valid.

        Raises:
            UsageError: another thread is running the machine.
        """
        if self._closed:
            return
        if getattr(self, "_running", False):
            raise UsageError("the machine is running: stop() it and wait for run() to return, then close it")
        self._closed = True
        if getattr(self, "pc", None) is not None:
            self.pc.close()  # type: ignore[union-attr]
        if hasattr(self, "console"):
            self.console.close()  # its reader may post until here
        if hasattr(self, "_watchdog"):
            self._watchdog.close()
        for engine in getattr(self, "engines", ()):
            engine.close()
        self._system.close()
        self.memory.close()

    def __del__(self) -> None:
        # A machine that is dropped without close() gives its threads and descriptors back all the same.
        if not getattr(self, "_closed", True) and not getattr(self, "_running", False):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
