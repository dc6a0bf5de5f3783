"""Machine: memory, engines, devices and boot brought together; the run loop and its results."""

from pyvmm.machine.machine import IRQCHIPS, Machine
from pyvmm.machine.result import EndReason, Result
from pyvmm.machine.statistics import ExitCount, Statistics

__all__ = ["IRQCHIPS", "EndReason", "ExitCount", "Machine", "Result", "Statistics"]
