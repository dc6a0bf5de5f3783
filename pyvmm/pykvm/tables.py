"""Ioctl arguments that end in an array of any length: CPUID tables and lists of model-specific registers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from errno import E2BIG

import numpy as np
from numpy.typing import NDArray

from pyvmm.pykvm.errors import KvmError, MsrError
from pyvmm.pykvm.handle import Handle, Record
from pyvmm.pykvm.ioctls import Ioctl
from pyvmm.pykvm.layout import CPUID2, CPUID_ENTRY2, IRQ_ROUTING, IRQ_ROUTING_ENTRY, MSR_ENTRY, MSR_LIST, MSRS, DType

_FIRST_GUESS = 128
_LARGEST = 16384
# KVM takes fewer than 256 MSRs in one call (MAX_IO_MSRS).
_MSRS_A_CALL = 200


def table(head: DType, entry: DType, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint32], Record]:
    """Return a zeroed buffer, its header's words and its entries."""
    buffer = np.zeros(head.itemsize + entry.itemsize * count, np.uint8)
    return buffer, buffer[: head.itemsize].view(np.uint32), buffer[head.itemsize :].view(entry)


def read_cpuid(handle: Handle, request: Ioctl) -> Record:
    """Return the CPUID table that an ioctl fills: shape (n,), dtype CPUID_ENTRY2.

    The buffer grows while KVM says E2BIG.
    """
    count = _FIRST_GUESS
    while True:
        buffer, head, entries = table(CPUID2, CPUID_ENTRY2, count)
        head[0] = count
        try:
            handle.exchange(request, buffer)
        except KvmError as error:
            if error.errno != E2BIG or count >= _LARGEST:
                raise
            count *= 2
        else:
            # Older kernels (6.1 among them) leave KVM_GET_CPUID2's count as it was: the rest of the buffer is zero then.
            used = np.flatnonzero(entries.view(np.uint32).reshape(count, -1).any(axis=1))
            last = int(used[-1]) + 1 if used.size else 0
            return entries[: min(int(head[0]), last)].copy()


def write_cpuid(handle: Handle, entries: Record) -> None:
    """Hand a CPUID table of dtype CPUID_ENTRY2 to KVM_SET_CPUID2."""
    buffer, head, room = table(CPUID2, CPUID_ENTRY2, len(entries))
    head[0] = len(entries)
    room[:] = entries
    handle.exchange(Ioctl.SET_CPUID2, buffer)


def read_msr_list(handle: Handle, request: Ioctl) -> NDArray[np.uint32]:
    """Return the MSR numbers that an ioctl lists, as uint32."""
    head = np.zeros(1, np.uint32)
    try:
        handle.exchange(request, head)
    except KvmError as error:
        if error.errno != E2BIG:
            raise
    # KVM wrote the count it has and refused; with room for that many it answers.
    buffer = np.zeros(MSR_LIST.itemsize // 4 + int(head[0]), np.uint32)
    buffer[0] = head[0]
    handle.exchange(request, buffer)
    return buffer[1 : 1 + int(buffer[0])].copy()


def read_msrs(handle: Handle, indices: Iterable[int]) -> dict[int, int]:
    """Return the values of MSRs by number. Raises MsrError naming the first that KVM refuses."""
    wanted = [int(index) for index in indices]
    values: dict[int, int] = {}
    for start in range(0, len(wanted), _MSRS_A_CALL):
        part = wanted[start : start + _MSRS_A_CALL]
        buffer, head, entries = table(MSRS, MSR_ENTRY, len(part))
        head[0] = len(part)
        entries["index"] = part
        done = handle.exchange(Ioctl.GET_MSRS, buffer)
        if done < len(part):
            raise MsrError("GET_MSRS", part[done], start + done)
        values.update(zip(part, entries["data"].tolist(), strict=True))
    return values


def write_msrs(handle: Handle, values: Mapping[int, int]) -> None:
    """Set MSRs, in the mapping's order. Raises MsrError naming the first that KVM refuses; those before it are set."""
    items = list(values.items())
    for start in range(0, len(items), _MSRS_A_CALL):
        part = items[start : start + _MSRS_A_CALL]
        buffer, head, entries = table(MSRS, MSR_ENTRY, len(part))
        head[0] = len(part)
        entries["index"] = [index for index, _ in part]
        entries["data"] = [value for _, value in part]
        done = handle.exchange(Ioctl.SET_MSRS, buffer)
        if done < len(part):
            raise MsrError("SET_MSRS", part[done][0], start + done)


def write_routes(handle: Handle, routes: Sequence[Record | np.void]) -> None:
    """Hand GSI routes, records of dtype IRQ_ROUTING_ENTRY, to KVM_SET_GSI_ROUTING."""
    buffer, head, room = table(IRQ_ROUTING, IRQ_ROUTING_ENTRY, len(routes))
    head[0] = len(routes)
    for at, route in enumerate(routes):
        room[at] = route
    handle.exchange(Ioctl.SET_GSI_ROUTING, buffer)
