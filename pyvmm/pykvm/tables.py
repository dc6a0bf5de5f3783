"""Ioctl arguments that end in an array of any length: CPUID tables and lists of model-specific registers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from errno import E2BIG
from struct import Struct
from typing import TYPE_CHECKING

from pyvmm.pykvm.errors import KvmError, MsrError
from pyvmm.pykvm.handle import Handle, Record
from pyvmm.pykvm.ioctls import Ioctl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyvmm.pykvm import layout
else:
    from pyvmm.pykvm.lazy import layout, np

_FIRST_GUESS = 128
_LARGEST = 16384
_COUNT = Struct("<II")  # the header of all these tables: a count, and padding or flags
_CPUID_ENTRY = Struct("<7I12x")
_MSR_ENTRY = Struct("<I4xQ")
CpuidEntry = tuple[int, int, int, int, int, int, int]
"""Function, index, flags, EAX, EBX, ECX, EDX: struct kvm_cpuid_entry2 less its padding."""
# KVM takes fewer than 256 MSRs in one call (MAX_IO_MSRS).
_MSRS_A_CALL = 200


def table(head: layout.DType, entry: layout.DType, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint32], Record]:
    """Return a zeroed buffer, its header's words and its entries."""
    buffer = np.zeros(head.itemsize + entry.itemsize * count, np.uint8)
    return buffer, buffer[: head.itemsize].view(np.uint32), buffer[head.itemsize :].view(entry)


def _read_cpuid(handle: Handle, request: Ioctl) -> bytearray:
    """Return the entries that an ioctl fills; the buffer grows while KVM says E2BIG."""
    count = _FIRST_GUESS
    while True:
        buffer = bytearray(_COUNT.size + _CPUID_ENTRY.size * count)
        _COUNT.pack_into(buffer, 0, count, 0)
        try:
            handle.exchange(request, buffer)
        except KvmError as error:
            if error.errno != E2BIG or count >= _LARGEST:
                raise
            count *= 2
        else:
            entries = buffer[_COUNT.size : _COUNT.size + _CPUID_ENTRY.size * _COUNT.unpack_from(buffer)[0]]
            # Older kernels (6.1 among them) leave KVM_GET_CPUID2's count as it was: the rest of the buffer is zero then.
            used = -(-len(entries.rstrip(b"\0")) // _CPUID_ENTRY.size) * _CPUID_ENTRY.size
            return entries[:used]


def read_cpuid(handle: Handle, request: Ioctl) -> Record:
    """Return the CPUID table that an ioctl fills: shape (n,), dtype CPUID_ENTRY2."""
    return np.frombuffer(_read_cpuid(handle, request), layout.CPUID_ENTRY2)


def read_cpuid_entries(handle: Handle, request: Ioctl) -> list[CpuidEntry]:
    """Return the CPUID table that an ioctl fills."""
    return list(_CPUID_ENTRY.iter_unpack(_read_cpuid(handle, request)))


def write_cpuid(handle: Handle, entries: Record | Sequence[CpuidEntry]) -> None:
    """Hand a CPUID table to KVM_SET_CPUID2: plain entries, or an array of dtype CPUID_ENTRY2."""
    if isinstance(entries, (list, tuple)):
        data = b"".join(_CPUID_ENTRY.pack(*entry) for entry in entries)
    else:
        data = np.asarray(entries, layout.CPUID_ENTRY2).tobytes()
    handle.exchange(Ioctl.SET_CPUID2, bytearray(_COUNT.pack(len(entries), 0) + data))


def read_msr_list(handle: Handle, request: Ioctl) -> NDArray[np.uint32]:
    """Return the MSR numbers that an ioctl lists, as uint32."""
    head = np.zeros(1, np.uint32)
    try:
        handle.exchange(request, head)
    except KvmError as error:
        if error.errno != E2BIG:
            raise
    # KVM wrote the count it has and refused; with room for that many it answers.
    buffer = np.zeros(layout.MSR_LIST.itemsize // 4 + int(head[0]), np.uint32)
    buffer[0] = head[0]
    handle.exchange(request, buffer)
    return buffer[1 : 1 + int(buffer[0])].copy()


def _exchange_msrs(handle: Handle, request: Ioctl, part: Sequence[tuple[int, int]]) -> tuple[int, bytearray]:
    """Make an ioctl on a list of MSRs; return how many KVM took and the list as it is then."""
    buffer = bytearray(_COUNT.pack(len(part), 0) + b"".join(_MSR_ENTRY.pack(index, value) for index, value in part))
    return handle.exchange(request, buffer), buffer[_COUNT.size :]


def read_msrs(handle: Handle, indices: Iterable[int]) -> dict[int, int]:
    """Return the values of MSRs by number. Raises MsrError naming the first that KVM refuses."""
    wanted = [(int(index), 0) for index in indices]
    values: dict[int, int] = {}
    for start in range(0, len(wanted), _MSRS_A_CALL):
        part = wanted[start : start + _MSRS_A_CALL]
        done, entries = _exchange_msrs(handle, Ioctl.GET_MSRS, part)
        if done < len(part):
            raise MsrError("GET_MSRS", part[done][0], start + done)
        values.update(_MSR_ENTRY.iter_unpack(entries))
    return values


def write_msrs(handle: Handle, values: Mapping[int, int]) -> None:
    """Set MSRs, in the mapping's order. Raises MsrError naming the first that KVM refuses; those before it are set."""
    items = list(values.items())
    for start in range(0, len(items), _MSRS_A_CALL):
        part = items[start : start + _MSRS_A_CALL]
        done, _ = _exchange_msrs(handle, Ioctl.SET_MSRS, part)
        if done < len(part):
            raise MsrError("SET_MSRS", part[done][0], start + done)


def write_routes(handle: Handle, routes: Sequence[Record | np.void]) -> None:
    """Hand GSI routes, records of dtype IRQ_ROUTING_ENTRY, to KVM_SET_GSI_ROUTING."""
    buffer, head, room = table(layout.IRQ_ROUTING, layout.IRQ_ROUTING_ENTRY, len(routes))
    head[0] = len(routes)
    for at, route in enumerate(routes):
        room[at] = route
    handle.exchange(Ioctl.SET_GSI_ROUTING, buffer)
