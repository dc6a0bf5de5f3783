"""What a caller asks of a loader, and what a loader hands back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.boot.e820 import E820Entry
from pyvmm.engine.state import CpuState
from pyvmm.errors import UsageError

if TYPE_CHECKING:
    from pyvmm.boot.acpi import Platform

FORMATS = ("linux", "multiboot", "pvh", "elf", "flat")
"""Names that `BootOptions.format` takes."""
MODES = ("real", "protected", "long")

Content = str | os.PathLike[str] | bytes
"""An image: the path of a file, or its bytes."""


@dataclass(slots=True)
class BootOptions:
    """What to boot an image with; the defaults boot whatever the image says it is.

    Attributes:
        format: one of `FORMATS`, or None to detect it from the content.
        cmdline: kernel command line.
        initrd: initial RAM disk: `linux` and `elf` get it in the zero page, `multiboot` and `pvh` as their
            first module.
        modules: further modules of `multiboot` and `pvh` with the string that each is given.
        mode: CPU mode to start in: for `flat` any (default real), for `elf` protected or long (default by ELF class).
        load_addr: GPA to load at: for `flat` (default 0x7C00 in real mode, else 1 MiB) and relocatable `linux` kernels.
        entry: GPA to start at, instead of the image's own entry point; for `flat` the default is `load_addr`.
        cpus: number of CPUs that the MP table names.
        mp_table: whether to place one: not in a machine without interrupt controllers to name in it.
        acpi: what ACPI tables shall say about the machine, or None for no tables.
    """

    format: str | None = None
    cmdline: str = ""
    initrd: Content | None = None
    modules: Sequence[tuple[Content, str]] = ()
    mode: str | None = None
    load_addr: int | None = None
    entry: int | None = None
    cpus: int = 1
    mp_table: bool = True
    acpi: Platform | None = None

    def check(self) -> None:
        """Check each option by itself.

        Raises:
            UsageError: a value is out of its range.
        """
        if self.format is not None and self.format not in FORMATS:
            raise UsageError(f"unknown image format {self.format!r}: use one of {', '.join(FORMATS)}")
        if self.mode is not None and self.mode not in MODES:
            raise UsageError(f"unknown CPU mode {self.mode!r}: use one of {', '.join(MODES)}")
        for name, address in (("load address", self.load_addr), ("entry point", self.entry)):
            if address is not None and not 0 <= address < 1 << 64:
                raise UsageError(f"{name} {address:#x} is no physical address: use 0 to 2**64 - 1")
        if self.cpus < 1:
            raise UsageError(f"{self.cpus} CPUs: use at least 1")

    def refuse(self, image_format: str, *names: str) -> None:
        """Refuse the options `names` where they are set, since `image_format` has no use for them.

        Raises:
            UsageError: one of them is set.
        """
        words = {
            "cmdline": "command line",
            "initrd": "initrd",
            "modules": "modules",
            "mode": "CPU mode",
            "load_addr": "load address",
        }
        for name in names:
            value: object = getattr(self, name)
            if value is not None and value != "" and value != () and value != []:
                raise UsageError(f"a {image_format} image takes no {words[name]}: drop it or force another format")


class BootSegment(NamedTuple):
    """A piece of guest memory that a loader filled or set aside."""

    name: str
    gpa: int
    size: int


@dataclass(slots=True)
class BootImage:
    """What was loaded, and the state that the boot CPU starts in.

    Attributes:
        format: one of `FORMATS`.
        state: registers of the boot CPU; the other CPUs wait for their start-up IPI.
        segments: what lies where in guest memory, ascending.
        cmdline: the command line as the guest gets it.
        e820: the memory map that the guest is told (empty for formats that tell none).
        symbols_path: file to take symbols from, or None.
        notes: remarks on what the image asked for and did not get.
        rsdp_field: GPA of the 8 bytes of the boot information that tell where the RSDP is, or None if the format has none.
    """

    format: str
    state: CpuState
    segments: list[BootSegment]
    cmdline: str = ""
    e820: list[E820Entry] = field(default_factory=list)
    symbols_path: str | None = None
    notes: list[str] = field(default_factory=list)
    rsdp_field: int | None = None

    @property
    def entry(self) -> int:
        """Tell the linear address of the first instruction, which is also its GPA."""
        return self.state.linear_rip

    def describe(self) -> str:
        """Describe format, entry, memory layout and memory map, a few lines for `--verbose`."""
        lines = [f"format {self.format}, starts in {self.state.mode} mode at {self.entry:#x}"]
        if self.cmdline:
            lines.append(f"command line: {self.cmdline}")
        lines += [f"  {s.gpa:#012x}-{s.gpa + s.size:#012x} {s.size:>10} bytes  {s.name}" for s in self.segments]
        if self.e820:
            lines.append("memory map:")
            lines += [f"  {entry}" for entry in self.e820]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
