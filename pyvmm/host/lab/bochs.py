"""Bochs, as the Intel lab uses it: its configuration, and a place for it in which nobody reaches its display."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pyvmm.errors import UsageError
from pyvmm.host.lab.packages import find_tool

CPU_MODEL = "broadwell_ult"
"""A CPU with EPT, its accessed and dirty bits, VPID and unrestricted guests. Of Bochs 2.7's later models `corei7_skylake_x` hangs."""

INSTRUCTIONS_PER_SECOND = 50_000_000
"""Emulated instructions in one second of the lab's clocks. Time there is instructions divided by this, whatever this host does."""

BOOT_TIME = 1_700_000_000
"""What the lab's real-time clock says at power-on, in seconds since 1970: fixed, for runs that repeat."""

CYLINDER = 16 * 63 * 512
"""Bytes in a cylinder of Bochs' disks. A disk has whole cylinders: what lies behind the last is not seen."""

_BIOS = "/usr/share/bochs/BIOS-bochs-latest"
_VGA_BIOSES = ("/usr/share/vgabios/vgabios.bin", "/usr/share/bochs/VGABIOS-lgpl-latest")

# Bochs' configuration has words between commas and quotes; this keeps paths from being taken apart.
_HARMLESS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk: path of its image, and whether what is written to it is thrown away and the image never touched."""

    path: str
    volatile: bool = False


@dataclass(frozen=True, slots=True)
class Wiring:
    """What connects the emulator with us.

    Attributes:
        memory: RAM in bytes.
        disks: up to four, in order; the first is booted.
        console: file for what comes out of COM1, the kernel's console.
        output: FIFO for what comes out of COM2; a full one stops the emulator, so nothing is lost.
        input: FIFO for what goes into COM3.
        log: file for Bochs' own messages.
    """

    memory: int
    disks: tuple[Disk, ...]
    console: str
    output: str
    input: str
    log: str


def bochsrc(wiring: Wiring) -> str:
    """Write Bochs' configuration for a repeatable run of one CPU.

    A triple fault, with which the lab's kernel answers a panic, and every other thing that Bochs cannot do end it.

    Raises:
        UsageError: a path that the configuration cannot express.
    """
    lines = [
        "config_interface: textconfig",
        'display_library: rfb, options="timeout=0"',
        f"cpu: model={CPU_MODEL}, count=1, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, ignore_bad_msrs=1",
        f"memory: guest={wiring.memory >> 20}, host={wiring.memory >> 20}",
        f"romimage: file={_BIOS}, options=fastboot",
        f"vgaromimage: file={next((path for path in _VGA_BIOSES if os.path.exists(path)), _VGA_BIOSES[0])}",
        "vga: extension=vbe, update_freq=1, realtime=0",
        "pci: enabled=1, chipset=i440fx",
        f"clock: sync=none, time0={BOOT_TIME}",
        "boot: disk",
        "floppy_bootsig_check: disabled=1",
        "speaker: enabled=0",
        "sound: driver=dummy",
        "mouse: enabled=0",
        f"com1: enabled=1, mode=file, dev={_plain(wiring.console)}",
        f"com2: enabled=1, mode=file, dev={_plain(wiring.output)}",
        f"com3: enabled=1, mode=term, dev={_plain(wiring.input)}",
        f"log: {_plain(wiring.log)}",
        "panic: action=fatal",
        "error: action=report",
        "info: action=ignore",
        "debug: action=ignore",
    ]
    channels = (
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14",
        "ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15",
    )
    places = ("ata0-master", "ata0-slave", "ata1-master", "ata1-slave")
    lines += channels[: (len(wiring.disks) + 1) // 2]
    if len(wiring.disks) < 3:
        lines.append("ata1: enabled=0")
    for place, disk in zip(places, wiring.disks, strict=False):
        mode = f"volatile, journal={_plain(disk.path)}.journal" if disk.volatile else "flat"
        lines.append(f"{place}: type=disk, path={_plain(disk.path)}, mode={mode}")
    return "\n".join(lines) + "\n"


def command(folder: str, configuration: str) -> list[str]:
    """Write the configuration into `folder` and return the command that starts Bochs with it.

    Bochs' only display that needs no screen is a server that listens on every network interface. It is not wanted here, so
    where the kernel allows it Bochs gets a network of its own, with nothing in it.
    """
    path, commands = os.path.join(folder, "bochsrc"), os.path.join(folder, "debugger")
    for name, text in ((path, configuration), (commands, "c\n")):
        with open(name, "w", encoding="ascii") as file:
            file.write(text)
    # Debian builds Bochs with its debugger, which waits for commands: the one in this file is to continue.
    return [*_alone(), find_tool("bochs") or "bochs", "-q", "-f", path, "-rc", commands]


def _alone() -> list[str]:
    import subprocess

    unshare = find_tool("unshare")
    variants = (["--net"], ["--user", "--map-current-user", "--net"]) if unshare else ()
    for options in variants:
        command = [str(unshare), *options, "--"]
        try:
            done = subprocess.run([*command, "true"], capture_output=True, check=False, stdin=subprocess.DEVNULL)
        except OSError:
            continue
        if done.returncode == 0:
            return command
    return []


def _plain(path: str) -> str:
    if not _HARMLESS.issuperset(path):
        raise UsageError(
            f"Bochs cannot be given the path {path!r}: choose one of letters, digits and the signs / . _ - +"
        )
    return path
