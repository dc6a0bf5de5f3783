"""Flat binaries: bytes that go to one address and run from there."""

from __future__ import annotations

from pyvmm.boot import layout
from pyvmm.boot.handoff import check_mode, long_state, protected_state
from pyvmm.boot.options import BootImage, BootOptions
from pyvmm.boot.source import Source
from pyvmm.boot.space import LoadSpace
from pyvmm.engine.state import CpuState
from pyvmm.errors import ImageError, UsageError


def load(source: Source, space: LoadSpace, options: BootOptions) -> BootImage:
    """Load the whole image at the load address and start it there, or at `options.entry`.

    In real mode (the default) the load address defaults to 0x7C00, where a BIOS puts a boot sector: CS = 0 for entries
    below 64 KiB, all data segments 0, SS:SP = 0:7C00, interrupts off. In protected and long mode it defaults to 1 MiB,
    with the flat segments, stack and identity map that ELF kernels get. There is no BIOS and no boot information.

    Raises:
        ImageError: the image does not fit.
        UsageError: an option does not suit the format, or the entry point lies outside the image.
    """
    options.refuse("flat", "cmdline", "initrd", "modules")
    mode = check_mode(options, "flat", "real", "protected", "long")
    default = layout.REAL_MODE_IMAGE if mode == "real" else layout.HIGH_MEMORY
    base = default if options.load_addr is None else options.load_addr
    entry = base if options.entry is None else options.entry
    if not base <= entry < base + source.size:
        raise UsageError(f"the entry point {entry:#x} lies outside the image ({base:#x}-{base + source.size:#x})")
    if mode == "real":
        _check_real(base, entry, source.size)
    space.claim("flat image", base, source.size)
    source.copy_to(space.memory, base, 0, source.size)
    if mode == "real":
        state = _real_state(space, entry)
    elif mode == "protected":
        state = protected_state(space, entry)
    else:
        state = long_state(space, entry)
    return BootImage("flat", state, space.segments)


def _check_real(base: int, entry: int, size: int) -> None:
    if entry >= layout.HIGH_MEMORY:
        raise UsageError(f"the entry point {entry:#x} is out of real mode's reach (1 MiB): choose another mode")
    if base < layout.EBDA < base + size:
        raise ImageError(
            f"taken for a flat real-mode image, but its {size} bytes do not fit in {base:#x}-{layout.EBDA:#x}: "
            "choose protected or long mode, or check that this is a kernel"
        )


def _real_state(space: LoadSpace, entry: int) -> CpuState:
    code = 0 if entry < 0x10000 else entry >> 4
    state = CpuState.real(code, entry - (code << 4), layout.REAL_MODE_IMAGE)
    room = 0x100
    if not space.free(layout.REAL_MODE_IMAGE - room, room):
        state.ss.selector = layout.REAL_MODE_STACK_SEGMENT
        state.ss.base = layout.REAL_MODE_STACK_SEGMENT << 4
        state.rsp = layout.REAL_MODE_STACK_POINTER
    return state
