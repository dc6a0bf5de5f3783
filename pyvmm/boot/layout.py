"""The guest-physical address map: every fixed address that a loader or the machine uses, and why it is that one.

Low memory, as a guest finds it when it starts (a loader moves its own structures when the kernel wants their place):

    0x00000  real-mode interrupt vectors and BIOS data area
    0x00500  GDT
    0x01000  boot information (multiboot info or hvm_start_info, with their lists and strings)
    0x07000  zero page (Linux boot_params)
    0x07c00  flat real-mode images
    0x09000  page tables of the identity map
    0x10000  stack, growing down from 0x20000
    0x20000  kernel command line
    0x9fc00  extended BIOS data area (reserved)
    0xa0000  legacy video and option ROM space
    0xf0000  BIOS area: ACPI tables, MP table
    0x100000 kernels
"""

from __future__ import annotations

from pyvmm.memory import HOLE_START as HOLE_START
from pyvmm.memory import PAGE_SIZE as PAGE_SIZE

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

LOW_START = 0x500
"""First byte past the real-mode vectors (0x000 to 0x3ff) and the BIOS data area (0x400 to 0x4ff)."""

GDT = 0x500
"""The GDT that protected- and long-mode guests start on; four 8-byte entries."""

BOOT_INFO = 0x1000
"""Multiboot information or `hvm_start_info`; both must lie below 4 GiB, nothing else is asked of their place."""

ZERO_PAGE = 0x7000
"""Linux `boot_params`, one page (Documentation/arch/x86/zero-page.rst)."""

REAL_MODE_IMAGE = 0x7C00
"""Where a BIOS puts a boot sector, hence the default for flat real-mode images; their stack grows down from here."""

REAL_MODE_STACK_SEGMENT = 0x9000
REAL_MODE_STACK_POINTER = 0xFC00
"""SS:SP (0x9fc00, the top of conventional memory) for a real-mode image that covers the place of the usual stack."""

PAGE_TABLES = 0x9000
"""PML4, PDPT and four page directories: 4 GiB identity-mapped in 2 MiB pages take 0x9000 to 0xefff."""

IDENTITY_MAP_SIZE = 4 * GIB

STACK_TOP = 0x20000
STACK_SIZE = 0x10000
"""For guests that set up no stack of their own: the protocols promise none, C code called at entry needs one."""

CMDLINE = 0x20000
"""The kernel command line, below 640 KiB so that 16-bit code reaches it too."""

EBDA = 0x9FC00
"""Extended BIOS data area: the last KiB of the 640, reserved, so conventional memory ends here."""

LOW_END = EBDA
VIDEO = 0xA0000
BIOS = 0xF0000
"""Firmware area, reserved in the memory map. Operating systems look for the MP table in it (MP specification 1.4, section
4) and for ACPI's RSDP from 0xe0000 to 1 MiB (ACPI 6.5, 5.2.5.1), each on a 16-byte boundary. All ACPI tables lie here
too: none is written but the FACS, whose lock and waking vector only firmware would look at, so RAM that is reserved will do."""

HIGH_MEMORY = 0x100000
"""1 MiB, where kernels start by convention (boot.rst, "Memory Layout"), and flat 32- and 64-bit images by default."""

IOAPIC = 0xFEC00000
"""In-kernel IOAPIC (KVM_CREATE_IRQCHIP), the address of the MP specification, table 4-8."""
LAPIC = 0xFEE00000
"""Local APIC, the architectural reset value of IA32_APIC_BASE (SDM vol. 3, 11.4.4)."""

KVM_IDENTITY_MAP = 0xFFFBC000
"""One page for KVM's real-mode identity map on VT-x (KVM_SET_IDENTITY_MAP_ADDR), outside any memory slot."""
KVM_TSS = 0xFFFBD000
"""Three pages for KVM's real-mode TSS on VT-x (KVM_SET_TSS_ADDR), outside any memory slot."""
KVM_RESERVED_SIZE = 4 * PAGE_SIZE
"""Both together, as the E820 map reserves them."""
