"""Load an image of any format: open it, tell what it is, hand it to its loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm.boot import elf, mptable, probe
from pyvmm.boot.options import BootImage, BootOptions, Content
from pyvmm.boot.source import Source
from pyvmm.boot.space import LoadSpace
from pyvmm.errors import ImageError

if TYPE_CHECKING:
    from pyvmm.boot.acpi import Platform
    from pyvmm.memory import GuestMemory


def detect(source: Source) -> str:
    """Tell the format of an image by its content: one of `FORMATS`.

    In this order: Linux bzImage, ELF with a multiboot header, ELF with a PVH note, other ELF, multiboot image that is
    not ELF; then files that are known not to be kernels are refused, and what is left is taken for a flat binary.

    Raises:
        ImageError: damaged ELF, a format that cannot be loaded, or known not to be a kernel.
    """
    if probe.is_bzimage(source):
        return "linux"
    if source.head(4) == elf.MAGIC:
        if probe.multiboot_header(source):
            return "multiboot"
        if probe.pvh_entry(source, elf.parse(source)) is not None:
            return "pvh"
        if probe.has_multiboot2(source):
            raise ImageError(
                "a Multiboot 2 kernel, which is not supported: build it for multiboot 1 or PVH, or force the elf format"
            )
        return "elf"
    header = probe.multiboot_header(source)
    if header and header.flags & probe.MULTIBOOT_ADDRESSES:
        return "multiboot"
    from pyvmm.boot import foreign

    foreign.refuse(source)
    return "flat"


def _loader(name: str) -> Callable[[Source, LoadSpace, BootOptions], BootImage]:
    """Import the loader for a format: one of them is needed in a run, and start-up time counts."""
    if name == "linux":
        from pyvmm.boot.linux import load
    elif name == "multiboot":
        from pyvmm.boot.multiboot import load
    elif name == "pvh":
        from pyvmm.boot.pvh import load
    elif name == "elf":
        from pyvmm.boot.plain import load
    else:
        from pyvmm.boot.flat import load
    return load


def load(content: Content, memory: GuestMemory, options: BootOptions | None = None) -> BootImage:
    """Load an image into guest memory and return what was loaded and how the boot CPU starts.

    Args:
        content: path of the image, or its bytes.
        memory: RAM, all zero: bytes that an image wants to be zero are not written.
        options: what to boot it with.

    Raises:
        ImageError: the image, the initrd or a module is missing, unreadable, damaged, not loadable, or does not fit.
        UsageError: an option is out of range or does not suit the format.
    """
    options = options or BootOptions()
    options.check()
    space = LoadSpace(memory)
    with Source(content) as source:
        image = _loader(options.format or detect(source))(source, space, options)
    if options.acpi is not None:
        _place_acpi(space, options.acpi, image)
    note = mptable.place(space, options.cpus) if options.mp_table else None
    if note and options.cpus > 1:
        image.notes.append(note)
    image.segments = space.segments
    return image


def _place_acpi(space: LoadSpace, platform: Platform, image: BootImage) -> None:
    """Place the ACPI tables, and tell a guest whose boot information has a field for it where they are."""
    from pyvmm.boot import acpi  # programs that load images into a machine of their own need none

    rsdp = acpi.place(space, platform)
    if rsdp is None:
        image.notes.append("no room for ACPI tables in the BIOS area: the guest does not find all devices")
    elif image.rsdp_field is not None:
        space.memory.write(image.rsdp_field, rsdp.to_bytes(8, "little"))
