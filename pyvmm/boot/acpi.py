"""ACPI tables (ACPI 6.5, chapter 5): what a guest finds out about a machine that it cannot probe.

RSDP, XSDT, FADT, FACS, MADT and DSDT lie in the BIOS area, one behind the other, so one reserved E820 range covers them,
a guest that scans for the RSDP finds it, and no kernel takes the memory for its own.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pyvmm.boot import acpi_aml as aml
from pyvmm.boot import layout
from pyvmm.boot.space import LoadSpace
from pyvmm.errors import ImageError

_OEM = b"PYVMM "
_CREATOR = b"PVMM"
_TABLE_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_AT = 9
_RSDP = struct.Struct("<8sB6sBIIQB3x")
_RSDP_V1_SIZE = 20
_FACS = struct.Struct("<4sIIIIIQB31x")
_FACS_ALIGN = 64
_RSDP_ALIGN = 16

# FADT (5.2.9): up to the flags, the reset register to the 64-bit addresses, the blocks in their extended form.
_FADT_LEGACY = struct.Struct("<IIxBHIBBBB8I6BBBHHHHBBBBBHxI")
_FADT_RESET = struct.Struct("<12sBHBQQ")
_ADDRESS = struct.Struct("<BBBBQ")  # generic address structure (5.2.3.2)
_SYSTEM_IO = 1
_WBINVD, _PROC_C1, _SLP_BUTTON, _FIX_RTC, _RESET_REG_SUP, _HEADLESS = (1 << bit for bit in (0, 2, 5, 6, 10, 12))
_LEGACY_DEVICES, _8042, _VGA_NOT_PRESENT = 1 << 0, 1 << 1, 1 << 2
_NO_C2, _NO_C3 = 101, 1001
"""Latencies above which a C-state does not exist (5.2.9, P_LVL2_LAT and P_LVL3_LAT)."""

# MADT (5.2.12)
_LOCAL_APIC = struct.Struct("<BBBBI")
_IO_APIC = struct.Struct("<BBBxII")
_OVERRIDE = struct.Struct("<BBBBIH")
_LOCAL_NMI = struct.Struct("<BBBHB")
_LOCAL_X2APIC = struct.Struct("<BBHIII")
_LOCAL_X2NMI = struct.Struct("<BBHIB3x")
_PCAT_COMPAT = 1
_ENABLED = 1
_ACTIVE_HIGH_LEVEL = 0b1101
_FIRST_X2APIC = 255
"""APIC IDs from here on do not fit a local APIC entry, as 255 means everybody (5.2.12.12)."""


class MmioDevice(NamedTuple):
    """A virtio-mmio device: GPA and size of its registers in bytes, and its GSI."""

    address: int
    size: int
    gsi: int


class Platform(NamedTuple):
    """What the tables have to say about a machine; None where it lacks the device.

    Attributes:
        cpus: number of vCPUs; vCPU n has APIC ID n.
        sci: GSI of the system control interrupt, an ISA interrupt too.
        pm_event, pm_control, pm_timer: ports of PM1a event block, PM1a control block and 24-bit PM timer.
        soft_off: SLP_TYP that means S5.
        reset: port and byte that reset the machine.
        serial: port and ISA interrupt of each 16550A, COM1 first.
        rtc: first port of the real-time clock.
        century: cell of the real-time clock that holds the century.
        keyboard_controller: there is an 8042.
        pvpanic: port by which a guest reports that it panicked.
        virtio_mmio: the virtio-mmio devices.
    """

    cpus: int
    sci: int
    pm_event: int
    pm_control: int
    pm_timer: int
    soft_off: int
    reset: tuple[int, int]
    serial: tuple[tuple[int, int], ...] = ()
    rtc: int | None = None
    century: int = 0
    keyboard_controller: bool = False
    pvpanic: int | None = None
    virtio_mmio: tuple[MmioDevice, ...] = ()


def dsdt(platform: Platform) -> bytes:
    """Build the DSDT: the processors, the devices that no bus can enumerate, and how to enter S5."""
    devices = [
        aml.device(f"C{cpu:03X}", aml.name("_HID", aml.string("ACPI0007")), aml.name("_UID", aml.integer(cpu)))
        for cpu in range(platform.cpus)
    ]
    for number, (port, line) in enumerate(platform.serial, 1):
        devices.append(_device(f"COM{number}", aml.eisa_id("PNP0501"), number, aml.io(port, 8), aml.irq(line)))
    if platform.rtc is not None:
        devices.append(_device("RTC", aml.eisa_id("PNP0B00"), None, aml.io(platform.rtc, 2)))
    if platform.pvpanic is not None:
        devices.append(_device("PEVT", aml.string("QEMU0001"), None, aml.io(platform.pvpanic, 1)))
    for number, (address, size, gsi) in enumerate(platform.virtio_mmio):
        registers = aml.memory(address, size), aml.interrupt(gsi)
        devices.append(_device(f"VR{number:02X}", aml.string("LNRO0005"), number, *registers))
    sleep = aml.integer(platform.soft_off)
    soft_off = aml.name("_S5", aml.package(sleep, sleep, aml.integer(0), aml.integer(0)))
    return _table(b"DSDT", 2, soft_off + aml.scope("\\_SB", *devices))


def _device(name: str, hid: bytes, uid: int | None, *items: bytes) -> bytes:
    objects = [aml.name("_HID", hid)]
    if uid is not None:
        objects.append(aml.name("_UID", aml.integer(uid)))
    return aml.device(name, *objects, aml.name("_CRS", aml.resources(*items)))


def madt(platform: Platform) -> bytes:
    """Build the MADT: a local APIC for each vCPU, KVM's IOAPIC, and how interrupts are wired.

    ISA interrupt n is IOAPIC pin n, KVM's default routing (api.rst, KVM_SET_GSI_ROUTING), interrupt 0 too. That is what a
    guest assumes, so only the SCI, which is level-triggered, needs an override. The IOAPIC's ID is what its register says.
    """
    xapics = min(platform.cpus, _FIRST_X2APIC)
    body = [struct.pack("<II", layout.LAPIC, _PCAT_COMPAT)]
    body += [_LOCAL_APIC.pack(0, _LOCAL_APIC.size, cpu, cpu, _ENABLED) for cpu in range(xapics)]
    body += [_LOCAL_X2APIC.pack(9, _LOCAL_X2APIC.size, 0, cpu, _ENABLED, cpu) for cpu in range(xapics, platform.cpus)]
    body.append(_IO_APIC.pack(1, _IO_APIC.size, 0, layout.IOAPIC, 0))
    body.append(_OVERRIDE.pack(2, _OVERRIDE.size, 0, platform.sci, platform.sci, _ACTIVE_HIGH_LEVEL))
    # All processors have NMI at LINT1.
    body.append(_LOCAL_NMI.pack(4, _LOCAL_NMI.size, 0xFF, 0, 1))
    if platform.cpus > xapics:
        body.append(_LOCAL_X2NMI.pack(10, _LOCAL_X2NMI.size, 0, 0xFFFFFFFF, 1))
    return _table(b"APIC", 5, b"".join(body))


def fadt(platform: Platform, facs_gpa: int, dsdt_gpa: int) -> bytes:
    """Build the FADT, revision 6.3: power management by fixed registers, no SMI command port, so ACPI mode always."""
    boot = _LEGACY_DEVICES | _VGA_NOT_PRESENT | (_8042 if platform.keyboard_controller else 0)
    flags = _WBINVD | _PROC_C1 | _SLP_BUTTON | _FIX_RTC | _RESET_REG_SUP | _HEADLESS
    event, control, timer = platform.pm_event, platform.pm_control, platform.pm_timer
    blocks = (event, 0, control, 0, 0, timer, 0, 0)
    legacy = _FADT_LEGACY.pack(
        *(facs_gpa, dsdt_gpa, 0, platform.sci, 0, 0, 0, 0, 0),
        *blocks,
        *(4, 2, 0, 4, 0, 0),  # lengths of event, control, control 2, timer and both general-purpose blocks
        *(0, 0, _NO_C2, _NO_C3, 0, 0, 0, 0, 0, 0, platform.century),
        *(boot, flags),
    )
    reset_port, reset_value = platform.reset
    reset = _FADT_RESET.pack(_ADDRESS.pack(_SYSTEM_IO, 8, 0, 1, reset_port), reset_value, 0, 3, 0, dsdt_gpa)
    none = bytes(_ADDRESS.size)
    extended = (
        *(_ADDRESS.pack(_SYSTEM_IO, 32, 0, 2, event), none),
        *(_ADDRESS.pack(_SYSTEM_IO, 16, 0, 2, control), none, none),
        *(_ADDRESS.pack(_SYSTEM_IO, 32, 0, 3, timer), none, none),
        *(none, none),  # sleep registers of hardware-reduced machines
    )
    return _table(b"FACP", 6, legacy + reset + b"".join(extended) + bytes(8))


def build(platform: Platform, gpa: int) -> bytes:
    """Build all tables, to lie at `gpa` (a multiple of 64), the RSDP first."""
    facs = _FACS.pack(b"FACS", _FACS.size, 0, 0, 0, 0, 0, 2)
    parts: list[bytes] = []
    at = gpa + _up(_RSDP.size)

    def put(table: bytes) -> int:
        nonlocal at
        address = at
        padded = table + bytes(_up(len(table)) - len(table))
        parts.append(padded)
        at += len(padded)
        return address

    facs_gpa, dsdt_gpa = put(facs), put(dsdt(platform))
    pointers = [put(fadt(platform, facs_gpa, dsdt_gpa)), put(madt(platform))]
    xsdt_gpa = put(_table(b"XSDT", 1, struct.pack(f"<{len(pointers)}Q", *pointers)))
    rsdp = _rsdp(xsdt_gpa)
    return rsdp + bytes(_up(len(rsdp)) - len(rsdp)) + b"".join(parts)


def _rsdp(xsdt_gpa: int) -> bytes:
    """Build the RSDP, revision 2, with its two checksums: of the first 20 bytes, and of all 36."""
    fields = [b"RSD PTR ", 0, _OEM, 2, 0, _RSDP.size, xsdt_gpa, 0]
    fields[1] = -sum(_RSDP.pack(*fields)[:_RSDP_V1_SIZE]) & 0xFF
    fields[-1] = -sum(_RSDP.pack(*fields)) & 0xFF
    return _RSDP.pack(*fields)


def place(space: LoadSpace, platform: Platform) -> int | None:
    """Put the tables into the BIOS area and return the GPA of the RSDP, or None if there is no room.

    A kernel that fills the BIOS area, and guests with less than 1 MiB of RAM, get none.
    """
    size = len(build(platform, 0))
    try:
        gpa = space.place("ACPI tables", size, align=_FACS_ALIGN, low=layout.BIOS, high=layout.HIGH_MEMORY)
    except ImageError:
        return None
    space.memory.write(gpa, build(platform, gpa))
    return gpa


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Put the common header (5.2.6) in front of a table's body."""
    size = _TABLE_HEADER.size + len(body)
    header = _TABLE_HEADER.pack(signature, size, revision, 0, _OEM, _OEM.ljust(8), 1, _CREATOR, 1)
    table = bytearray(header + body)
    table[_CHECKSUM_AT] = -sum(table) & 0xFF
    return bytes(table)


def _up(size: int) -> int:
    return -(-size // _FACS_ALIGN) * _FACS_ALIGN
