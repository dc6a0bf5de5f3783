"""Machine: memory, engines, devices and boot brought together; the run loop and its results."""

from pyvmm.machine.arguments import IRQCHIPS
from pyvmm.machine.machine import Machine
from pyvmm.machine.result import EndReason, Result

__all__ = ["IRQCHIPS", "EndReason", "Machine", "Result"]
