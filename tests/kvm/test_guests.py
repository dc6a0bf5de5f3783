"""Every guest of ours boots, says what it has to say, and ends as documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm import EndReason, Machine, Result
from pyvmm.pykvm.module import kvm_module

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

TOUR = """\
mode-tour: real mode
mode-tour: 32-bit protected mode
mode-tour: {}
mode-tour: {}
mode-tour: long mode
mode-tour: compatibility mode
mode-tour: back in long mode
mode-tour: back in protected mode
mode-tour: back in real mode
mode-tour: done
"""


def boot(image: Path, *, memory: str = "64M", cpus: int = 1, **options: object) -> tuple[str, Result]:
    with Machine(memory, cpus) as vm:
        vm.load(str(image), **options)
        result = vm.run(timeout=20)
        return vm.console.text, result  # type: ignore[attr-defined]


@pytest.mark.intel
@pytest.mark.parametrize(
    ("name", "text"),
    [("hello-real.bin", "Hello from real mode\n"), ("hello-elf64.elf", "Hello from ELF64 long mode\n")],
)
def test_hello(guests: Path, name: str, text: str) -> None:
    said, result = boot(guests / name)
    assert said == text
    assert (result.reason, result.status, result.report) == (EndReason.POWER_OFF, 0, None)


def test_multiboot_gets_command_line_memory_map_and_modules(guests: Path, tmp_path: Path) -> None:
    module = tmp_path / "module"
    module.write_bytes(b"x" * 5000)
    said, result = boot(guests / "hello-multiboot.elf", cmdline="a=1 b", modules=[(str(module), "first one")])
    lines = said.splitlines()
    assert lines[0] == "Hello from 32-bit multiboot"
    assert lines[1].startswith("command line: ") and lines[1].endswith("a=1 b")
    assert lines[2] == "mem_lower: 639 KiB, mem_upper: 64512 KiB"
    assert f"memory: base 0x{0x100000:016x} length 0x{(64 << 20) - 0x100000:016x} type 1" in lines
    (told,) = (line for line in lines if line.startswith("module:"))
    start, end = (int(told.split()[at], 16) for at in (2, 4))
    assert end - start == 5000
    assert told.endswith("first one")
    assert result.reason is EndReason.POWER_OFF


def test_pvh_gets_command_line_memory_map_and_initrd(guests: Path, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"i" * 777)
    said, result = boot(guests / "hello-pvh.elf", memory="3136M", cmdline="console=ttyS0", initrd=str(initrd))
    lines = said.splitlines()
    assert lines[:2] == ["Hello from PVH", "command line: console=ttyS0"]
    assert f"memory: base 0x{4 << 30:016x} length 0x{64 << 20:016x} type 1" in lines
    (told,) = (line.split() for line in lines if line.startswith("module:"))
    assert int(told[4], 16) - int(told[2], 16) == 777
    assert result.reason is EndReason.POWER_OFF


@pytest.mark.intel
def test_mode_tour(guests: Path) -> None:
    said, result = boot(guests / "mode-tour.bin")
    if kvm_module().name == "kvm_pvm":  # this KVM has no paging outside long mode, and says so with #GP
        refused = "skipped {} paging: refused by the CPU"
        legs = [refused.format("32-bit"), refused.format("PAE")]
    else:
        legs = ["32-bit paging", "PAE paging"]
    assert said == TOUR.format(*legs)
    assert result.reason is EndReason.POWER_OFF


@pytest.mark.intel
def test_timer_interrupts_and_interrupt_driven_uart(guests: Path) -> None:
    said, result = boot(guests / "timer.elf")
    ticks = [f"timer: tick {n}" for n in range(1, 11)]
    assert said.splitlines() == [
        *ticks,
        "uart: these bytes leave from the interrupt handler",
        "uart: interrupt-driven transmit ok",
        "apic: one-shot timer ok",
        "timer: done",
    ]
    assert result.reason is EndReason.POWER_OFF


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_smp(guests: Path, cpus: int) -> None:
    said, result = boot(guests / "smp.elf", cpus=cpus)
    assert said.splitlines() == [
        f"smp: {cpus} CPUs online",
        f"smp: counter = {(cpus - 1) * 1000}",
        f"smp: IPIs acknowledged: {cpus - 1}",
        "smp: done",
    ]
    assert result.reason is EndReason.POWER_OFF


def test_touch_halts_with_interrupts_off(guests: Path) -> None:
    said, result = boot(guests / "touch.elf")
    assert said == "touched 256 pages\n"
    assert (result.reason, result.status) == (EndReason.HALT, 0)


def test_halt_without_interrupt_controller(guests: Path) -> None:
    with Machine("1M", irqchip="none", devices="none") as vm:
        vm.load(str(guests / "halt.bin"))
        assert vm.run(timeout=10).reason is EndReason.HALT


def test_triple_fault_is_reported(guests: Path) -> None:
    said, result = boot(guests / "triple-fault.elf")
    assert said.startswith("triple-fault: reading")
    assert (result.reason, result.status) == (EndReason.TRIPLE_FAULT, 1)
    assert result.report is not None
    text = result.report.text()
    assert "triple fault" in text
    if kvm_module().name != "kvm_amd":  # SVM resets a vCPU that shuts down: there is no state left to show
        assert "crash_here" in text
        assert "0xdeadbeef000" in text


def test_instruction_that_kvm_cannot_emulate(guests: Path) -> None:
    said, result = boot(guests / "bad-insn.elf")
    assert said.startswith("bad-insn: running fwait in ring 0\n")
    if kvm_module().name != "kvm_pvm":  # ring 0 runs natively
        assert said.endswith("bad-insn: survived\n")
        assert result.reason is EndReason.POWER_OFF
        return
    assert (result.reason, result.status) == (EndReason.INTERNAL_ERROR, 1)
    assert result.report is not None
    text = result.report.text()
    assert "emulation failure" in text and "fwait" in text and "run_fwait" in text
    assert "emulates ring 0" in text
