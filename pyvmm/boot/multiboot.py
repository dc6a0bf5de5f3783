"""Multiboot 1 (Multiboot Specification 0.6.96): header, image and boot information."""

from __future__ import annotations

import struct

from pyvmm.boot import elf, layout
from pyvmm.boot.cmdline import LIMIT, encode_cmdline
from pyvmm.boot.e820 import E820Entry, lower_upper_kib, memory_map
from pyvmm.boot.handoff import Module, check_mode, place_cmdline, place_modules, protected_state
from pyvmm.boot.options import BootImage, BootOptions
from pyvmm.boot.probe import MULTIBOOT_ADDRESSES, MULTIBOOT_SEARCH, multiboot_header
from pyvmm.boot.source import Source
from pyvmm.boot.space import LoadSpace
from pyvmm.errors import ImageError, UsageError

LOADER_MAGIC = 0x2BADB002
"""In EAX at entry."""
LOADER_NAME = b"pyvmm\0"

# Header flags (section 3.1.2). Page-aligned modules and memory information come in any case.
_FLAG_VIDEO = 1 << 2
_MUST_UNDERSTAND = 0xFFFF
_UNDERSTOOD = 0b111

# Information flags (section 3.3).
_INFO_MEMORY = 1 << 0
_INFO_CMDLINE = 1 << 2
_INFO_MODULES = 1 << 3
_INFO_MAP = 1 << 6
_INFO_LOADER = 1 << 9

_HEADER_SIZE = 12
_ADDRESSES = struct.Struct("<IIIII")
# flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr,
# drives_length, drives_addr, config_table, boot_loader_name; the graphics fields behind stay zero.
_INFO = struct.Struct("<17I48x")
_MODULE = struct.Struct("<4I")
_MAP_ENTRY = struct.Struct("<IQQI")


def load(source: Source, space: LoadSpace, options: BootOptions) -> BootImage:
    """Load a multiboot 1 kernel and its modules, and start it in protected mode (section 3.2).

    The command line that the kernel gets starts with the image's file name, as GRUB Legacy and QEMU have it. The
    initrd, if any, is the first module.

    Raises:
        ImageError: no header, a feature that cannot be had, or an image that is damaged or does not fit.
        UsageError: an option does not suit the format.
    """
    options.refuse("multiboot", "load_addr")
    check_mode(options, "multiboot", "protected")
    cmdline = _full_cmdline(source, options)
    encode_cmdline(cmdline, LIMIT)
    header = multiboot_header(source)
    if header is None:
        raise ImageError(f"no multiboot header in the first {MULTIBOOT_SEARCH} bytes: leave the format to detection")
    unknown = header.flags & _MUST_UNDERSTAND & ~_UNDERSTOOD
    if unknown:
        raise ImageError(f"the multiboot header demands unknown features (flags {unknown:#x}): there are none such")
    is_elf = source.head(4) == elf.MAGIC
    if header.flags & MULTIBOOT_ADDRESSES:
        entry = _load_by_header(source, space, header.offset, options.entry)
    elif is_elf:
        image = elf.parse(source)
        elf.load_segments(source, image, space)
        entry = elf.start_address(image, options.entry)
    else:
        raise ImageError("the multiboot header has no addresses and the image is not ELF: set flag bit 16 or use ELF")
    state = protected_state(space, entry)
    modules = place_modules(space, options)
    e820 = memory_map(space.memory.ranges)
    state.rax = LOADER_MAGIC
    state.rbx = _place_info(space, place_cmdline(space, cmdline), modules, e820)
    result = BootImage("multiboot", state, space.segments, cmdline, e820, source.path if is_elf else None)
    if header.flags & _FLAG_VIDEO:
        result.notes.append("the kernel asks for a video mode; there is no display, it is told of none")
    return result


def _full_cmdline(source: Source, options: BootOptions) -> str:
    name = (source.path or "kernel").rpartition("/")[2].replace(" ", "_") or "kernel"
    return f"{name} {options.cmdline}" if options.cmdline else name


def _load_by_header(source: Source, space: LoadSpace, at: int, wanted: int | None) -> int:
    """Load by the header's address fields (section 3.1.3) and return the entry point."""
    fields = _ADDRESSES.unpack(source.read(at + _HEADER_SIZE, _ADDRESSES.size, "multiboot header"))
    header_addr, load_addr, load_end, bss_end, entry = fields
    offset = at - (header_addr - load_addr)
    if load_addr > header_addr or offset < 0:
        raise ImageError(
            f"damaged multiboot header: load_addr {load_addr:#x} does not fit header_addr {header_addr:#x} at {at:#x}"
        )
    size = load_end - load_addr if load_end else source.size - offset
    total = bss_end - load_addr if bss_end else size
    if size <= 0 or total < size:
        raise ImageError(
            f"damaged multiboot header: load_addr {load_addr:#x}, load_end {load_end:#x}, bss_end {bss_end:#x}"
        )
    space.claim("multiboot image", load_addr, total)
    source.copy_to(space.memory, load_addr, offset, size, "multiboot image")
    start = entry if wanted is None else wanted
    if not load_addr <= start < load_addr + total:
        if wanted is None:
            raise ImageError(f"damaged multiboot header: the entry point {entry:#x} lies outside the image")
        raise UsageError(f"the entry point {wanted:#x} lies outside the image: choose one that does not")
    return start


def _place_info(space: LoadSpace, cmdline: int, modules: list[Module], e820: list[E820Entry]) -> int:
    """Write the information structure with its lists and strings behind it, and return its GPA."""
    texts = [encode_cmdline(module.text) for module in modules]
    map_size = _MAP_ENTRY.size * len(e820)
    mods_size = _MODULE.size * len(modules)
    size = _INFO.size + map_size + mods_size + len(LOADER_NAME) + sum(map(len, texts))
    base = space.place("multiboot information", size, preferred=layout.BOOT_INFO)
    map_at = base + _INFO.size
    mods_at = map_at + map_size
    name_at = mods_at + mods_size
    lower, upper = lower_upper_kib(space.memory.ranges)
    flags = _INFO_MEMORY | _INFO_CMDLINE | _INFO_MODULES | _INFO_MAP | _INFO_LOADER
    mods = (len(modules), mods_at)
    blob = bytearray(_INFO.pack(flags, lower, upper, 0, cmdline, *mods, 0, 0, 0, 0, map_size, map_at, 0, 0, 0, name_at))
    for entry in e820:
        # The entry's size field does not count itself.
        blob += _MAP_ENTRY.pack(_MAP_ENTRY.size - 4, *entry)
    text_at = name_at + len(LOADER_NAME)
    for module, text in zip(modules, texts, strict=True):
        blob += _MODULE.pack(module.gpa, module.gpa + module.size, text_at, 0)
        text_at += len(text)
    blob += LOADER_NAME + b"".join(texts)
    space.memory.write(base, blob)
    return base
