"""Debian's kernels, as they come, from the first instruction to a shell and the end of the run."""

from __future__ import annotations

import re

import pytest

from pyvmm import EndReason
from tests.linux.dialog import KERNELS, booted

pytestmark = pytest.mark.linux

_GUESTS = [
    pytest.param(kernel, cpus, id=f"{kernel}-{cpus}", marks=pytest.mark.intel if cpus == 1 else ())
    for kernel in KERNELS
    for cpus in (1, 2)
]


@pytest.mark.parametrize(("kernel", "cpus"), _GUESTS)
def test_from_boot_to_power_off(kernel: str, cpus: int) -> None:
    with booted(kernel, cpus) as shell:
        messages = shell.wait()
        assert re.search(r"Linux version 6\.\d+", messages)
        assert "Command line: console=ttyS0\n" in messages
        # Nothing that the kernel calls wrong with the machine.
        assert not re.search(
            r"ACPI (BIOS )?(Error|Warning)|Firmware Bug|\[Firmware|unchecked MSR|WARNING: CPU|BUG:", messages
        )

        assert shell("echo $((6 * 7)) apples | sed s/apples/pears/") == "42 pears"
        assert shell("grep -c ^processor /proc/cpuinfo") == str(cpus)
        assert shell("nproc") == str(cpus)
        # 256 MiB, of which the kernel keeps its own text, data and page structures.
        total = int(shell("sed -n 's/MemTotal: *//p' /proc/meminfo").split()[0])
        assert 180 << 10 < total < 256 << 10
        assert shell("grep 'System RAM' /proc/iomem | tail -n 1").startswith("00100000-0fffffff")
        tables = shell("ls /sys/firmware/acpi/tables").split()
        assert {"APIC", "DSDT", "FACP"} <= set(tables)
        assert "kvm-clock" in shell("cat /sys/devices/system/clocksource/clocksource0/available_clocksource")
        assert re.search(r"IO-APIC.* ttyS0$", shell("grep ttyS0 /proc/interrupts"))

        shell.type("poweroff -f")
        assert shell.end().reason is EndReason.POWER_OFF


def test_four_cpus() -> None:
    with booted("vmlinuz-cloud-amd64", 4, cmdline="console=ttyS0 quiet") as shell:
        shell.wait()
        assert shell("cat /sys/devices/system/cpu/online") == "0-3"
        # Work and interrupts on every one of them.
        assert shell("for cpu in 0 1 2 3; do taskset -c $cpu sh -c 'echo -n $((1 + 1))'; done; echo") == "2222"
        assert shell("cat /sys/devices/system/cpu/cpu*/topology/core_id | sort -u | wc -l") == "4"
        shell.type("reboot -f")
        assert shell.end().reason is EndReason.RESET


def test_pvh_kernel() -> None:
    with booted("vmlinux-amd64", cmdline="console=ttyS0 quiet") as shell:
        shell.wait()
        assert shell("cat /proc/cmdline") == "console=ttyS0 quiet"
        assert shell("dmesg | grep -c 'Booting paravirtualized kernel on KVM'") == "1"
        shell.type("poweroff -f")
        assert shell.end().reason is EndReason.POWER_OFF


def test_high_memory() -> None:
    with booted("vmlinuz-cloud-amd64", cmdline="console=ttyS0 quiet", memory="3200M") as shell:
        shell.wait()
        total = int(shell("sed -n 's/MemTotal: *//p' /proc/meminfo").split()[0])
        assert 3000 << 10 < total < 3200 << 10
        assert shell("grep -c 'System RAM' /proc/iomem") == "3"  # below 640 KiB, to 3 GiB, from 4 GiB


def test_the_shell_takes_ctrl_c() -> None:
    with booted("vmlinuz-cloud-amd64", cmdline="console=ttyS0 quiet") as shell:
        shell.wait()
        shell.type("echo started; sleep 1000")
        shell.console.expect(r"\nstarted")  # what is typed before belongs to the shell's line editor
        shell.console.send(b"\x03")
        shell.wait()
        assert shell("echo $?") == "130"


def test_a_panic_is_neither_power_off_nor_reset() -> None:
    with booted("vmlinuz-cloud-amd64", cmdline="console=ttyS0 quiet") as shell:
        shell.wait()
        shell.type("echo c > /proc/sysrq-trigger")
        result = shell.end()
        assert result.reason is EndReason.PANIC
        assert "sysrq triggered crash" in str(result)
        assert result.status == 1


@pytest.mark.parametrize("after", ["", " panic=-1"])
def test_no_root_file_system(after: str) -> None:
    with booted("vmlinuz-cloud-amd64", initrd=None, cmdline="console=ttyS0 quiet" + after) as shell:
        result = shell.end()
        assert result.reason is EndReason.PANIC
        assert "VFS: Unable to mount root fs" in str(result)


def test_an_initrd_that_breaks_off() -> None:
    with booted("vmlinuz-cloud-amd64", initrd="broken.cpio.gz", cmdline="console=ttyS0 quiet panic=-1") as shell:
        result = shell.end()
        assert result.reason is EndReason.PANIC
        assert "nitramfs unpacking failed" in str(result)
