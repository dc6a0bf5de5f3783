"""The MP table (Intel MultiProcessor Specification 1.4): CPUs, IOAPIC and interrupts for systems without ACPI."""

from __future__ import annotations

import struct

from pyvmm.boot import layout
from pyvmm.boot.space import LoadSpace
from pyvmm.errors import ImageError

MOST_CPUS = 254
"""APIC IDs have 8 bits; one is the IOAPIC's and 255 means everybody."""

_POINTER = struct.Struct("<4sIBBB5s")
_HEADER = struct.Struct("<4sHBB8s12sIHHIHBx")
_CPU = struct.Struct("<BBBBII8x")
_BUS = struct.Struct("<BB6s")
_IOAPIC = struct.Struct("<BBBBI")
_INTERRUPT = struct.Struct("<BBHBBBB")

_CPU_ENTRY, _BUS_ENTRY, _IOAPIC_ENTRY, _IO_INTERRUPT, _LOCAL_INTERRUPT = range(5)
_ENABLED, _BOOT_CPU = 1, 2
_APIC_VERSION = 0x14
_SIGNATURE = 0x600
_FEATURES = 0x201  # FPU and APIC, the two that the specification's flags need
_INT, _NMI, _EXTINT = 0, 1, 3
_ISA_BUS = 0
_CASCADE = 2
_EVERYBODY = 0xFF


def build(gpa: int, cpus: int) -> bytes:
    """Build the floating pointer and, right behind it, the configuration table for `cpus` CPUs, to lie at `gpa`.

    ISA interrupt n goes to IOAPIC pin n, KVM's default routing (api.rst, KVM_SET_GSI_ROUTING).
    """
    entries = [
        _CPU.pack(_CPU_ENTRY, cpu, _APIC_VERSION, _ENABLED | (0 if cpu else _BOOT_CPU), _SIGNATURE, _FEATURES)
        for cpu in range(cpus)
    ]
    ioapic = cpus
    entries.append(_BUS.pack(_BUS_ENTRY, _ISA_BUS, b"ISA   "))
    entries.append(_IOAPIC.pack(_IOAPIC_ENTRY, ioapic, 0x11, _ENABLED, layout.IOAPIC))
    entries += [
        _INTERRUPT.pack(_IO_INTERRUPT, _INT, 0, _ISA_BUS, irq, ioapic, irq) for irq in range(16) if irq != _CASCADE
    ]
    entries.append(_INTERRUPT.pack(_LOCAL_INTERRUPT, _EXTINT, 0, _ISA_BUS, 0, 0, 0))
    entries.append(_INTERRUPT.pack(_LOCAL_INTERRUPT, _NMI, 0, _ISA_BUS, 0, _EVERYBODY, 1))
    body = b"".join(entries)
    size = _HEADER.size + len(body)

    def header(checksum: int) -> bytes:
        return _HEADER.pack(
            b"PCMP", size, 4, checksum, b"PYVMM   ", b"PYVMM       ", 0, 0, len(entries), layout.LAPIC, 0, 0
        )

    def pointer(checksum: int) -> bytes:
        return _POINTER.pack(b"_MP_", gpa + _POINTER.size, 1, 4, checksum, bytes(5))

    return pointer(-sum(pointer(0)) & 0xFF) + header(-sum(header(0) + body) & 0xFF) + body


def place(space: LoadSpace, cpus: int) -> str | None:
    """Put the table into the BIOS area; return a remark where that cannot be, for then the guest sees one CPU.

    A kernel that fills the BIOS area, and guests with less than 1 MiB of RAM, get none.
    """
    listed = min(cpus, MOST_CPUS)
    try:
        gpa = space.place("MP table", len(build(0, listed)), low=layout.BIOS, high=layout.HIGH_MEMORY)
    except ImageError:
        return "no room for an MP table in the BIOS area: the guest finds one CPU unless it looks elsewhere"
    space.memory.write(gpa, build(gpa, listed))
    return None if listed == cpus else f"the MP table names {listed} of {cpus} CPUs, all that it can hold"
