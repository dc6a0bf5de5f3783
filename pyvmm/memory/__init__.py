"""Guest-physical memory: regions, memory slots, typed and NumPy access, and the way from GPA to HVA to HPA."""

from pyvmm.memory.guest import HOLE_END, HOLE_START, GuestMemory
from pyvmm.memory.region import PAGE_SIZE, Region
from pyvmm.memory.size import format_size, parse_size
from pyvmm.memory.slots import Slot, SlotTable

__all__ = [
    "HOLE_END",
    "HOLE_START",
    "PAGE_SIZE",
    "GuestMemory",
    "Region",
    "Slot",
    "SlotTable",
    "format_size",
    "parse_size",
]
