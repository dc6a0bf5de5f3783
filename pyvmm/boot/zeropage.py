"""The Linux zero page, `struct boot_params` (Documentation/arch/x86/zero-page.rst and boot.rst)."""

from __future__ import annotations

import struct

from pyvmm.boot import layout
from pyvmm.boot.e820 import E820Entry, lower_upper_kib, memory_map
from pyvmm.boot.handoff import Module
from pyvmm.boot.space import LoadSpace

# Offsets of the fields in boot_params; those from 0x1f1 on make up the setup header.
ACPI_RSDP_ADDR = 0x070
EXT_RAMDISK_IMAGE = 0x0C0
EXT_RAMDISK_SIZE = 0x0C4
EXT_CMD_LINE_PTR = 0x0C8
ALT_MEM_K = 0x1E0
E820_ENTRIES = 0x1E8
SETUP_HEADER = 0x1F1
SETUP_SECTS = 0x1F1
SYSSIZE = 0x1F4
BOOT_FLAG = 0x1FE
JUMP = 0x200
HEADER = 0x202
VERSION = 0x206
TYPE_OF_LOADER = 0x210
LOADFLAGS = 0x211
CODE32_START = 0x214
RAMDISK_IMAGE = 0x218
RAMDISK_SIZE = 0x21C
CMD_LINE_PTR = 0x228
INITRD_ADDR_MAX = 0x22C
KERNEL_ALIGNMENT = 0x230
RELOCATABLE_KERNEL = 0x234
MIN_ALIGNMENT = 0x235
XLOADFLAGS = 0x236
CMDLINE_SIZE = 0x238
SETUP_DATA = 0x250
PREF_ADDRESS = 0x258
INIT_SIZE = 0x260
SETUP_HEADER_END = 0x290
E820_TABLE = 0x2D0

BOOT_MAGIC = 0xAA55
HEADER_MAGIC = b"HdrS"
LOADER_UNDEFINED = 0xFF
"""`type_of_loader` of a boot loader that has no number assigned."""
VERSION_64 = 0x020C
"""Protocol 2.12, the first with the 64-bit entry point."""

_E820 = struct.Struct("<QQI")


class ZeroPage:
    """A `boot_params` that is being filled in."""

    def __init__(self, setup_header: bytes = b"") -> None:
        """Start with zeros and the kernel's setup header, or one of our own for kernels that bring none.

        Args:
            setup_header: the bytes from 0x1f1 on, at most up to 0x290.
        """
        self.data = bytearray(layout.PAGE_SIZE)
        self.data[SETUP_HEADER : SETUP_HEADER + len(setup_header)] = setup_header
        if not setup_header:
            self.put("H", BOOT_FLAG, BOOT_MAGIC)
            self.data[HEADER : HEADER + 4] = HEADER_MAGIC
            self.put("H", VERSION, VERSION_64)
        self.put("B", TYPE_OF_LOADER, LOADER_UNDEFINED)

    def put(self, code: str, offset: int, value: int) -> None:
        """Store one little-endian field; `code` is its `struct` letter."""
        struct.pack_into("<" + code, self.data, offset, value)

    def get(self, code: str, offset: int) -> int:
        """Read one little-endian field."""
        value: int = struct.unpack_from("<" + code, self.data, offset)[0]
        return value

    def set_cmdline(self, gpa: int, size: int) -> None:
        """Name the command line: its GPA (below 4 GiB), its length without the NUL."""
        self.put("I", CMD_LINE_PTR, gpa)
        if not self.get("I", CMDLINE_SIZE):
            self.put("I", CMDLINE_SIZE, size)

    def set_initrd(self, initrd: Module) -> None:
        """Name the initrd, above 4 GiB too."""
        self.put("I", RAMDISK_IMAGE, initrd.gpa & 0xFFFFFFFF)
        self.put("I", EXT_RAMDISK_IMAGE, initrd.gpa >> 32)
        self.put("I", RAMDISK_SIZE, initrd.size & 0xFFFFFFFF)
        self.put("I", EXT_RAMDISK_SIZE, initrd.size >> 32)

    def set_memory(self, space: LoadSpace) -> list[E820Entry]:
        """Fill in the E820 table and return it."""
        entries = memory_map(space.memory.ranges)
        for number, entry in enumerate(entries):
            _E820.pack_into(self.data, E820_TABLE + number * _E820.size, *entry)
        self.put("B", E820_ENTRIES, len(entries))
        self.put("I", ALT_MEM_K, lower_upper_kib(space.memory.ranges)[1])
        return entries

    def write(self, space: LoadSpace) -> int:
        """Place the page in guest memory and return its GPA."""
        gpa = space.place("zero page", len(self.data), preferred=layout.ZERO_PAGE, align=layout.PAGE_SIZE)
        space.memory.write(gpa, self.data)
        return gpa
