"""PVH: 32-bit entry by an ELF note, `hvm_start_info` (Xen docs/misc/pvh.pandoc, arch-x86/hvm/start_info.h)."""

from __future__ import annotations

import struct

from pyvmm.boot import elf, layout
from pyvmm.boot.cmdline import LIMIT, encode_cmdline
from pyvmm.boot.e820 import E820Entry, memory_map
from pyvmm.boot.handoff import Module, check_mode, place_cmdline, place_modules, protected_state
from pyvmm.boot.options import BootImage, BootOptions
from pyvmm.boot.probe import is_linux, pvh_entry
from pyvmm.boot.source import Source
from pyvmm.boot.space import LoadSpace
from pyvmm.errors import ImageError

START_MAGIC = 0x336EC578

# magic, version, flags, nr_modules, modlist, cmdline, rsdp, memmap, memmap_entries, reserved
_START_INFO = struct.Struct("<IIIIQQQQII")
_RSDP_FIELD = 32
_MODULE = struct.Struct("<QQQQ")
_MAP_ENTRY = struct.Struct("<QQII")


def load(source: Source, space: LoadSpace, options: BootOptions) -> BootImage:
    """Load an ELF kernel with a PVH note and start it in protected mode, EBX = GPA of `hvm_start_info`.

    The initrd, if any, is the first module.

    Raises:
        ImageError: no PVH note, or an image that is damaged or does not fit.
        UsageError: an option does not suit the format.
    """
    options.refuse("PVH", "load_addr")
    check_mode(options, "PVH", "protected")
    encode_cmdline(options.cmdline, LIMIT)
    image = elf.parse(source)
    entry = pvh_entry(source, image)
    if entry is None:
        raise ImageError("no PVH note (XEN_ELFNOTE_PHYS32_ENTRY) in the image: leave the format to detection")
    elf.load_segments(source, image, space)
    # The note's address is physical already.
    if options.entry is not None:
        entry = elf.start_address(image, options.entry)
    elif not any(header.paddr <= entry < header.paddr + header.memsz for header in image.loads):
        raise ImageError(f"the PVH entry point {entry:#x} lies in no segment: check the note in the kernel's source")
    state = protected_state(space, entry)
    modules = place_modules(space, options, linux=is_linux(source, image))
    e820 = memory_map(space.memory.ranges)
    state.rbx = _place_start_info(space, place_cmdline(space, options.cmdline), modules, e820)
    rsdp_field = state.rbx + _RSDP_FIELD
    return BootImage("pvh", state, space.segments, options.cmdline, e820, source.path, rsdp_field=rsdp_field)


def _place_start_info(space: LoadSpace, cmdline: int, modules: list[Module], e820: list[E820Entry]) -> int:
    """Write `hvm_start_info`, version 1, with its lists and strings behind it, and return its GPA."""
    texts = [encode_cmdline(module.text) for module in modules]
    map_size = _MAP_ENTRY.size * len(e820)
    mods_size = _MODULE.size * len(modules)
    size = _START_INFO.size + map_size + mods_size + sum(map(len, texts))
    base = space.place("hvm_start_info", size, preferred=layout.BOOT_INFO)
    map_at = base + _START_INFO.size
    mods_at = map_at + map_size
    text_at = mods_at + mods_size
    blob = bytearray(
        _START_INFO.pack(START_MAGIC, 1, 0, len(modules), mods_at if modules else 0, cmdline, 0, map_at, len(e820), 0)
    )
    for entry in e820:
        blob += _MAP_ENTRY.pack(*entry, 0)
    for module, text in zip(modules, texts, strict=True):
        blob += _MODULE.pack(module.gpa, module.size, text_at if module.text else 0, 0)
        text_at += len(text)
    blob += b"".join(texts)
    space.memory.write(base, blob)
    return base
