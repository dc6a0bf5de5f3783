"""Errors that pyvmm raises: one root, one subclass for each thing that a caller can react to.

Every message is one line that names the problem and, where there is one, the way out: the command line prints it as it is.
"""

from __future__ import annotations


class PyvmmError(Exception):
    """Root of everything that pyvmm raises on purpose."""


class UsageError(PyvmmError):
    """An option or argument has a value that cannot work."""


class HostError(PyvmmError):
    """This host lacks something that was asked for: the device, a right, a capability, memory."""


class ImageError(PyvmmError):
    """A kernel, initrd or module image cannot be loaded.

    Attributes:
        path: the file it came from, or None for bytes that came from memory.
    """

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message if path is None else f"{path}: {message}")
        self.path = path


class GuestMemoryError(PyvmmError):
    """An access reaches guest-physical memory that is not there.

    Attributes:
        gpa: first guest-physical address of the access.
        size: length of the access in bytes.
    """

    def __init__(self, gpa: int, size: int, what: str = "access") -> None:
        super().__init__(f"{what} of {size} bytes at GPA {gpa:#x} is outside guest RAM")
        self.gpa = gpa
        self.size = size


class DeviceError(PyvmmError):
    """A device was attached, named or accessed in a way that the bus refuses."""


class Terminated(KeyboardInterrupt):
    """A signal that ends the process arrived; like Ctrl-C it surfaces after every vCPU has stopped.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"signal {signal}")
        self.signal = signal
