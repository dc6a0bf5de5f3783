"""Linux bzImage by the x86 boot protocol (Documentation/arch/x86/boot.rst), 64-bit entry or 32-bit."""

from __future__ import annotations

import struct

from pyvmm.boot import layout
from pyvmm.boot import zeropage as zp
from pyvmm.boot.cmdline import encode_cmdline
from pyvmm.boot.handoff import check_mode, long_state, place_cmdline, place_initrd, protected_state
from pyvmm.boot.options import BootImage, BootOptions
from pyvmm.boot.probe import is_bzimage
from pyvmm.boot.source import Source
from pyvmm.boot.space import LoadSpace
from pyvmm.boot.zeropage import ZeroPage
from pyvmm.errors import ImageError, UsageError

_SECTOR = 512
_PARAGRAPH = 16
_ENTRY_64 = 0x200
"""The 64-bit entry point lies this far behind the 32-bit one (boot.rst, "64-bit Boot Protocol")."""

_LOADED_HIGH = 1 << 0
_XLF_KERNEL_64 = 1 << 0
_XLF_ABOVE_4G = 1 << 1

_OLDEST = 0x0202
"""The command line pointer in the header, on which the 32-bit protocol rests, came with 2.02."""
_DEFAULT_INITRD_MAX = 0x37FFFFFF
_DEFAULT_CMDLINE_SIZE = 255
_WORKSPACE = 1 << 20
"""Room left behind a kernel that does not say what it needs (protocols before 2.10)."""
_ADDRESS_LIMIT = 1 << 46


class _Setup:
    """The setup header of a kernel, fields of later protocol versions replaced by what boot.rst has for older ones."""

    def __init__(self, source: Source) -> None:
        if not is_bzimage(source):
            raise ImageError("not a Linux bzImage (no HdrS header): leave the format to detection")
        sectors = source.read(zp.SETUP_SECTS, 1)[0] or 4
        self.setup_size = (sectors + 1) * _SECTOR
        # The jump over the header tells where the header ends.
        end = zp.HEADER + source.read(zp.JUMP + 1, 1)[0]
        self.header = source.read(zp.SETUP_HEADER, min(end, zp.SETUP_HEADER_END) - zp.SETUP_HEADER, "setup header")
        self.version = self._get("H", zp.VERSION)
        if self.version < _OLDEST:
            major, minor = self.version >> 8, self.version & 0xFF
            raise ImageError(f"boot protocol {major}.{minor:02} is too old: use a kernel with 2.02 or later")
        if not self._get("B", zp.LOADFLAGS) & _LOADED_HIGH:
            raise ImageError("a zImage, made to be loaded below 640 KiB: build a bzImage")
        xload = self._since(0x20C, "H", zp.XLOADFLAGS, 0)
        self.is_64 = bool(xload & _XLF_KERNEL_64)
        self.above_4g = bool(xload & _XLF_ABOVE_4G)
        self.initrd_max = self._since(0x203, "I", zp.INITRD_ADDR_MAX, _DEFAULT_INITRD_MAX)
        self.cmdline_size = self._since(0x206, "I", zp.CMDLINE_SIZE, _DEFAULT_CMDLINE_SIZE)
        self.relocatable = bool(self._since(0x205, "B", zp.RELOCATABLE_KERNEL, 0))
        self.alignment = self._since(0x205, "I", zp.KERNEL_ALIGNMENT, 0)
        self.pref_address = self._since(0x20A, "Q", zp.PREF_ADDRESS, layout.HIGH_MEMORY)
        self.init_size = self._since(0x20A, "I", zp.INIT_SIZE, 0)
        rest = source.size - self.setup_size
        size = self._get("I", zp.SYSSIZE) * _PARAGRAPH if self.version >= 0x204 else rest
        # syssize counts in paragraphs, rounded up: the file may end inside the last one.
        self.size = min(size, rest)
        if rest <= 0 or size - rest >= _PARAGRAPH:
            raise ImageError(
                f"truncated bzImage: its code ends at byte {self.setup_size + size:#x}, the file at {source.size:#x}: "
                "get a complete copy"
            )
        if self.size <= (_ENTRY_64 if self.is_64 else 0):
            raise ImageError("damaged bzImage: it has no protected-mode code")

    def _get(self, code: str, offset: int) -> int:
        layout_ = struct.Struct("<" + code)
        at = offset - zp.SETUP_HEADER
        if at + layout_.size > len(self.header):
            raise ImageError("damaged bzImage: its setup header is shorter than its protocol version has it")
        value: int = layout_.unpack_from(self.header, at)[0]
        return value

    def _since(self, version: int, code: str, offset: int, default: int) -> int:
        return self._get(code, offset) if self.version >= version else default

    def need(self) -> int:
        """Return the bytes that the kernel needs from its load address on until it knows the memory map."""
        return max(self.size, self.init_size or self.size + _WORKSPACE)

    def load_address(self, wanted: int | None) -> int:
        """Choose where to load: at `pref_address`, which old kernels do not have, then at 1 MiB, or at `wanted`."""
        if wanted is None:
            address = self.pref_address
            if not layout.HIGH_MEMORY <= address < _ADDRESS_LIMIT:
                raise ImageError(f"damaged bzImage: it asks to be loaded at {address:#x}")
            return address
        if not self.relocatable:
            raise UsageError(f"this kernel is not relocatable: drop the load address {wanted:#x}")
        if self.alignment.bit_count() != 1:
            raise ImageError(f"damaged bzImage: kernel_alignment {self.alignment:#x} is no power of two")
        if wanted < layout.HIGH_MEMORY or wanted % self.alignment:
            raise UsageError(
                f"load address {wanted:#x}: this kernel wants a multiple of {self.alignment:#x}, and not below 1 MiB"
            )
        return wanted


def load(source: Source, space: LoadSpace, options: BootOptions) -> BootImage:
    """Load a bzImage with command line and initrd, and start it by the 64-bit boot protocol, or the 32-bit one.

    The kernel lies at its `pref_address` (or `options.load_addr`, if it is relocatable) and starts at its own entry
    point with RSI = GPA of the zero page, selectors 0x10 and 0x18, interrupts off; in long mode the low 4 GiB are
    identity-mapped. `init_size` bytes behind the load address are kept free for it to unpack itself.

    Raises:
        ImageError: an old, damaged or truncated kernel, or one that does not fit, or an initrd that does not.
        UsageError: an option does not suit the format.
    """
    options.refuse("Linux", "modules")
    if options.entry is not None:
        raise UsageError("a Linux image has its own entry point: drop the option or force another format")
    setup = _Setup(source)
    modes = ("long", "protected") if setup.is_64 else ("protected",)
    mode = check_mode(options, "64-bit Linux" if setup.is_64 else "32-bit Linux", *modes)
    encode_cmdline(options.cmdline, setup.cmdline_size)
    address = setup.load_address(options.load_addr)
    need = setup.need()
    if not space.memory.contains(address, need):
        raise ImageError(
            f"this kernel needs RAM from {address:#x} to {address + need:#x} to start, the guest has {space.ram()}: "
            f"give it {-(-(address + need) // layout.MIB)} MiB or more"
        )
    space.claim("Linux kernel", address, need)
    source.copy_to(space.memory, address, setup.setup_size, setup.size, "kernel")
    state = long_state(space, address + _ENTRY_64) if mode == "long" else protected_state(space, address)
    zero_page = ZeroPage(setup.header)
    zero_page.put("I", zp.CODE32_START, address & 0xFFFFFFFF)
    zero_page.put("I", zp.CMD_LINE_PTR, place_cmdline(space, options.cmdline, setup.cmdline_size))
    if options.initrd is not None:
        ranges = [(layout.HIGH_MEMORY, min(setup.initrd_max + 1, layout.HOLE_START))]
        # Only where there is such RAM, so that an error names the range that more memory would widen.
        if setup.above_4g and mode == "long" and len(space.memory.ranges) > 1:
            base, size = space.memory.ranges[-1]
            ranges.append((base, base + size))
        zero_page.set_initrd(place_initrd(space, options.initrd, *ranges, linux=True))
    e820 = zero_page.set_memory(space)
    state.rsi = zero_page.write(space)
    rsdp_field = state.rsi + zp.ACPI_RSDP_ADDR
    return BootImage("linux", state, space.segments, options.cmdline, e820, rsdp_field=rsdp_field)
