"""What a guest is handed besides its image: GDT, page tables, stack, command line, modules, start state."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pyvmm.boot import layout
from pyvmm.boot.cmdline import LIMIT, encode_cmdline
from pyvmm.boot.initrd import check_initrd
from pyvmm.boot.options import BootOptions, Content
from pyvmm.boot.source import Source
from pyvmm.boot.space import LoadSpace
from pyvmm.engine.state import CpuState, DescriptorTable
from pyvmm.errors import ImageError, UsageError

# Segment descriptors as in SDM vol. 3, 3.4.5: base 0, limit 4 GiB, present, DPL 0, accessed.
_CODE32 = 0x00CF9B000000FFFF
_CODE64 = 0x00AF9B000000FFFF
_DATA = 0x00CF93000000FFFF
_GDT = struct.Struct("<4Q")

_SMALLEST_STACK = 0x1000


class Module(NamedTuple):
    """A module in guest memory: first GPA, size in bytes, the string it was given."""

    gpa: int
    size: int
    text: str


def protected_state(space: LoadSpace, entry: int) -> CpuState:
    """Make the 32-bit start state: flat segments 0x10 and 0x18, their GDT, paging and interrupts off, a stack.

    Raises:
        ImageError: no room for the GDT, or the entry point lies above 4 GiB.
    """
    if entry >= 1 << 32:
        raise ImageError(f"the entry point {entry:#x} lies above 4 GiB, beyond 32-bit code: link the kernel lower")
    state = CpuState.protected(entry)
    state.gdt = _place_gdt(space, _CODE32)
    state.rsp = _place_stack(space)
    return state


def long_state(space: LoadSpace, entry: int) -> CpuState:
    """Make the 64-bit start state: as `protected_state`, in long mode with the low 4 GiB identity-mapped.

    Raises:
        ImageError: no room for GDT or page tables, or the entry point lies above 4 GiB.
    """
    if entry >= layout.IDENTITY_MAP_SIZE:
        raise ImageError(f"the entry point {entry:#x} lies above the 4 GiB mapped at start: link the kernel lower")
    # Imported here: only 64-bit guests need page tables, and start-up time counts.
    from pyvmm.paging.build import identity_words

    pages = 2 + layout.IDENTITY_MAP_SIZE // layout.GIB
    root = space.place("page tables", pages * layout.PAGE_SIZE, preferred=layout.PAGE_TABLES, align=layout.PAGE_SIZE)
    words = identity_words(root, layout.IDENTITY_MAP_SIZE)
    space.memory.write(root, struct.pack(f"<{len(words)}Q", *words))
    state = CpuState.long(entry, root)
    state.gdt = _place_gdt(space, _CODE64)
    # The System V ABI has RSP + 8 on a 16-byte boundary at a function's entry: as if called, returning to 0.
    state.rsp = max(0, _place_stack(space) - 8)
    return state


def _place_gdt(space: LoadSpace, code: int) -> DescriptorTable:
    gdt = space.place("GDT", _GDT.size, preferred=layout.GDT)
    space.memory.write(gdt, _GDT.pack(0, 0, code, _DATA))
    return DescriptorTable(gdt, _GDT.size - 1)


def _place_stack(space: LoadSpace) -> int:
    """Return the top of a stack, or 0 if there is no room: kernels that bring their own do not need one."""
    size = layout.STACK_SIZE
    preferred = layout.STACK_TOP - size
    while size >= _SMALLEST_STACK:
        try:
            return space.place("stack", size, preferred=preferred, align=layout.PAGE_SIZE) + size
        except ImageError:
            size //= 2
    return 0


def place_cmdline(space: LoadSpace, text: str, limit: int = LIMIT) -> int:
    """Write the command line, NUL-terminated, and return its GPA.

    Raises:
        UsageError: the command line cannot be encoded or is too long.
        ImageError: no room.
    """
    data = encode_cmdline(text, limit)
    gpa = space.place("command line", len(data), preferred=layout.CMDLINE)
    space.memory.write(gpa, data)
    return gpa


def place_modules(space: LoadSpace, options: BootOptions, *, linux: bool = False) -> list[Module]:
    """Load the initrd (first) and the modules above the kernel, each on a page boundary below the device hole.

    Raises:
        ImageError: a file cannot be read or does not fit, or (`linux`) the initrd is none that Linux can use.
        UsageError: a module's string cannot be encoded.
    """
    wanted: list[tuple[str, Content, str]] = []
    if options.initrd is not None:
        wanted.append(("initrd", options.initrd, ""))
    wanted += [(f"module {number}", content, text) for number, (content, text) in enumerate(options.modules)]
    # Above the kernel, not in a gap of it: kernels take the memory around their segments for theirs.
    low = max([layout.HIGH_MEMORY] + [s.gpa + s.size for s in space.segments if s.gpa < layout.HOLE_START])
    loaded = []
    for name, content, text in wanted:
        encode_cmdline(text, what=f"string of {name}")
        with Source(content, name) as source:
            gpa = space.place(name, source.size, align=layout.PAGE_SIZE, low=low, high=layout.HOLE_START)
            if linux and name == "initrd":
                check_initrd(source)
            source.copy_to(space.memory, gpa, 0, source.size, name)
            loaded.append(Module(gpa, source.size, text))
    return loaded


def place_initrd(space: LoadSpace, content: Content, *ranges: tuple[int, int], linux: bool) -> Module:
    """Load an initrd as high as possible in the first of `ranges`, (start, end) GPAs, that has room for it.

    High, because a kernel unpacks itself upwards from where it was loaded.

    Raises:
        ImageError: it cannot be read or does not fit anywhere, or (`linux`) is none that Linux can use.
    """
    with Source(content, "initrd") as source:
        for low, high in ranges[:-1]:
            try:
                gpa = space.place_high("initrd", source.size, low=low, high=high)
                break
            except ImageError:
                continue
        else:
            low, high = ranges[-1]
            gpa = space.place_high("initrd", source.size, low=low, high=high)
        if linux:
            check_initrd(source)
        source.copy_to(space.memory, gpa, 0, source.size, "initrd")
        return Module(gpa, source.size, "")


def check_mode(options: BootOptions, image_format: str, *modes: str) -> str:
    """Return the CPU mode to start in: the one asked for, or the first of `modes`.

    Raises:
        UsageError: the mode asked for is none of `modes`.
    """
    mode = options.mode or modes[0]
    if mode not in modes:
        raise UsageError(f"{image_format} images start in {' or '.join(modes)} mode, not in {mode} mode")
    return mode
