"""The one place where an ioctl is made: descriptors that close once and turn failures into typed errors."""

from __future__ import annotations

import os
from errno import EINTR
from fcntl import ioctl
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast
from weakref import WeakSet

from pyvmm.pykvm.constants import Cap
from pyvmm.pykvm.errors import ClosedError, KvmError, MissingCapability, from_handler
from pyvmm.pykvm.ioctls import Ioctl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Record = NDArray[np.void]
else:
    from pyvmm.pykvm.lazy import np

    Record = Any

HandleT = TypeVar("HandleT", bound="Handle")
"""`Record` is a NumPy array of a structured dtype; the records of this package have shape ()."""


def as_c_int(value: int) -> int:
    """Return a 32-bit ioctl argument as the signed C int that Python's ioctl takes."""
    return value - (1 << 32) if value >= 1 << 31 else value


def address_of(array: NDArray[Any]) -> int:
    """Return the HVA of an array's first byte; the caller keeps the array alive while the kernel uses it."""
    address: int = array.__array_interface__["data"][0]
    return address


class Handle:
    """An open KVM file descriptor: closes once, closes what was created from it first, refuses use after that.

    Attributes:
        fd: the file descriptor, -1 once closed.
        name: what this is, for messages.
    """

    fd: int = -1
    name: str = "KVM handle"

    def __init__(self, fd: int, name: str, parent: Handle | None = None) -> None:
        self.fd = fd
        self.name = name
        self._parent = parent
        self._children: WeakSet[Handle] = WeakSet()

    @property
    def closed(self) -> bool:
        """Tell whether close() was called."""
        return self.fd < 0

    def close(self) -> None:
        """Close this and everything created from it. Closing again does nothing."""
        if self.fd < 0:
            return
        for child in list(self._children):
            child.close()
        fd, self.fd = self.fd, -1
        os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {'closed' if self.closed else f'fd {self.fd}'}>"

    def call(self, request: Ioctl, argument: int = 0) -> int:
        """Make an ioctl whose argument is a number and return its result.

        Interrupted calls are repeated, after Python's signal handlers have run. Raises KvmError, or ClosedError after
        close().
        """
        if self.fd < 0:
            raise ClosedError(self.name)
        while True:
            try:
                return ioctl(self.fd, request, as_c_int(argument))
            except OSError as error:
                if from_handler(error):
                    raise
                if error.errno != EINTR:
                    raise KvmError(request.name, error.errno or 0) from None

    def exchange(self, request: Ioctl, argument: NDArray[Any] | bytearray) -> int:
        """Make an ioctl whose argument is a buffer, which the kernel may change in place, and return its result.

        Errors as for call().
        """
        if self.fd < 0:
            raise ClosedError(self.name)
        while True:
            try:
                result: int = ioctl(self.fd, request, cast(Any, argument))
                return result
            except OSError as error:
                if from_handler(error):
                    raise
                if error.errno != EINTR:
                    raise KvmError(request.name, error.errno or 0) from None

    def adopt(self, child: HandleT) -> HandleT:
        """Remember a handle made from this one, so that it is closed first, and return it."""
        self._children.add(child)
        return child

    def check_extension(self, capability: Cap | int) -> int:
        """Return what KVM_CHECK_EXTENSION says: 0 for missing, else 1 or a value that depends on the capability.

        A VM may answer differently from the system: ask the VM where there is one.
        """
        # A vCPU does not take the call; what its VM answers holds for it.
        asked = self._parent or self
        return asked.call(Ioctl.CHECK_EXTENSION, capability)

    def require(self, capability: Cap) -> int:
        """Return check_extension(capability), or raise MissingCapability when it is 0."""
        value = self.check_extension(capability)
        if value <= 0:
            raise MissingCapability(f"KVM_CAP_{capability.name}")
        return value

    def fetch_bytes(self, request: Ioctl, size: int) -> bytearray:
        """Return `size` fresh bytes that the ioctl has filled: a structure for those who do without NumPy."""
        data = bytearray(size)
        self.exchange(request, data)
        return data

    def fetch(self, request: Ioctl, dtype: np.dtype[np.void]) -> Record:
        """Return a fresh record of shape () that the ioctl has filled."""
        record = np.zeros((), dtype)
        self.exchange(request, record)
        return record


def record_of(value: Record | np.void, dtype: np.dtype[np.void]) -> Record:
    """Return a value as a contiguous record of exactly this dtype, ready to be handed to the kernel.

    Raises TypeError when its dtype differs.
    """
    if value.dtype != dtype:
        raise TypeError(f"expected a record with fields {dtype.names}, got {value.dtype.names or value.dtype}")
    return np.asarray(value).reshape(()).copy()
