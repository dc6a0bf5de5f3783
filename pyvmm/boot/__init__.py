"""Loaders: from an image of any known format to guest memory and the state that the boot CPU starts in."""

from pyvmm.boot.e820 import E820Entry
from pyvmm.boot.image import detect, load
from pyvmm.boot.options import FORMATS, MODES, BootImage, BootOptions, BootSegment, Content

__all__ = [
    "FORMATS",
    "MODES",
    "BootImage",
    "BootOptions",
    "BootSegment",
    "Content",
    "E820Entry",
    "detect",
    "load",
]
