"""Plain ELF kernels: long mode for ELF64, protected mode for ELF32, with the zero page of a Linux `vmlinux`."""

from __future__ import annotations

from pyvmm.boot import elf, layout
from pyvmm.boot.cmdline import LINUX_LIMIT, encode_cmdline
from pyvmm.boot.handoff import check_mode, long_state, place_cmdline, place_initrd, protected_state
from pyvmm.boot.options import BootImage, BootOptions
from pyvmm.boot.probe import is_linux
from pyvmm.boot.source import Source
from pyvmm.boot.space import LoadSpace
from pyvmm.boot.zeropage import ACPI_RSDP_ADDR, ZeroPage


def load(source: Source, space: LoadSpace, options: BootOptions) -> BootImage:
    """Load an ELF executable that follows no other protocol.

    The guest starts at the physical address of its entry point, interrupts off, flat segments, with a stack, RSI (ESI)
    = GPA of a Linux zero page with memory map, command line and initrd, and all other general registers 0. In long mode
    the low 4 GiB are identity-mapped. This is how Firecracker starts a `vmlinux`, and what boot.rst calls the 64-bit
    (32-bit) boot protocol.

    Raises:
        ImageError: the image is damaged or does not fit.
        UsageError: an option does not suit it.
    """
    options.refuse("plain ELF", "modules", "load_addr")
    encode_cmdline(options.cmdline, LINUX_LIMIT)
    image = elf.parse(source)
    modes = ("long", "protected") if image.bits == 64 else ("protected", "long")
    mode = check_mode(options, "ELF", *modes)
    elf.load_segments(source, image, space)
    entry = elf.start_address(image, options.entry)
    state = long_state(space, entry) if mode == "long" else protected_state(space, entry)
    zero_page = ZeroPage()
    zero_page.set_cmdline(place_cmdline(space, options.cmdline, LINUX_LIMIT), LINUX_LIMIT)
    if options.initrd is not None:
        low = (layout.HIGH_MEMORY, layout.HOLE_START)
        zero_page.set_initrd(place_initrd(space, options.initrd, low, linux=is_linux(source, image)))
    e820 = zero_page.set_memory(space)
    state.rsi = zero_page.write(space)
    rsdp_field = state.rsi + ACPI_RSDP_ADDR
    return BootImage("elf", state, space.segments, options.cmdline, e820, source.path, rsdp_field=rsdp_field)
