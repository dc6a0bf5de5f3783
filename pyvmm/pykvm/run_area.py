"""A vCPU's run area: the shared pages through which KVM_RUN tells why it returned (struct kvm_run).

Two ways in. The hot way is memoryview casts, indexed with the constants below: an access costs tens of nanoseconds.
The cold way is properties that return decoded copies.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import HostError
from pyvmm.pykvm.constants import COALESCED_MMIO_PAGE_OFFSET, Sync
from pyvmm.pykvm.handle import Handle, Record

if TYPE_CHECKING:
    import numpy as np

    from pyvmm.pykvm import layout
else:
    from pyvmm.pykvm.lazy import layout, np

# Offsets into `pyvmm.pykvm.layout.RUN`, which is not imported for them.
WORD_EXIT_REASON = 2
"""Index into `words` of the exit reason."""
QUAD_CR8 = 2
EXIT_OFFSET = 32
"""Byte offset of the union that describes the exit."""
BYTE_IO_DIRECTION = 32
BYTE_IO_SIZE = 33
HALF_IO_PORT = 17
"""Index into `halves` of the port."""
WORD_IO_COUNT = 9
QUAD_IO_DATA_OFFSET = 5
"""Index into `quads` of the byte offset, in the run area, of the data of a port access."""
QUAD_MMIO_ADDR = 4
BYTE_MMIO_DATA = 40
QUAD_MMIO_DATA = BYTE_MMIO_DATA // 8
WORD_MMIO_LEN = 12
BYTE_MMIO_IS_WRITE = 52
BYTE_IMMEDIATE_EXIT = 1
QUAD_VALID_REGS = 36
QUAD_DIRTY_REGS = 37
QUAD_SYNC_REGS = 38
"""Index into `quads` of rax in the synchronized registers; the others follow in the order of layout.REGS."""
QUAD_SYNC_SREGS = 56


class IoExit(NamedTuple):
    """ExitReason.IO: `count` accesses of `size` bytes to `port`.

    `direction` is IO_IN or IO_OUT; the data lies at byte `offset` of the run area.
    """

    direction: int
    size: int
    port: int
    count: int  # type: ignore[assignment]
    offset: int


class MmioExit(NamedTuple):
    """ExitReason.MMIO: an access to a GPA that no slot backs, or a write to a read-only slot.

    For a read, only the length of `data` means anything.
    """

    gpa: int
    data: bytes
    is_write: bool


class InternalErrorExit(NamedTuple):
    """ExitReason.INTERNAL_ERROR: `instruction` holds the bytes that KVM could not emulate, where it gives them."""

    suberror: int
    data: tuple[int, ...]
    instruction: bytes


class FailEntryExit(NamedTuple):
    """ExitReason.FAIL_ENTRY: the CPU refused to enter the guest, for a reason that it numbers (Intel: SDM 3C, 27)."""

    reason: int
    cpu: int


class SystemEventExit(NamedTuple):
    """ExitReason.SYSTEM_EVENT: `type` is a SystemEvent."""

    type: int
    data: tuple[int, ...]


class MsrAccessExit(NamedTuple):
    """ExitReason.X86_RDMSR or ExitReason.X86_WRMSR: answer with answer_msr(). `reason` is a MsrExit bit."""

    reason: int
    index: int  # type: ignore[assignment]
    data: int


class DebugExit(NamedTuple):
    """ExitReason.DEBUG: the exception's vector, its RIP and the debug registers that describe it."""

    exception: int
    pc: int
    dr6: int
    dr7: int


class CoalescedWrite(NamedTuple):
    """A guest write that waited in the coalesced ring."""

    addr: int
    data: bytes
    pio: bool


def _released() -> memoryview:
    view = memoryview(b"")
    view.release()
    return view


class RunArea(Handle):
    """The mapped run area of a vCPU.

    Attributes:
        run_view: the whole area as bytes, writable.
        halves, words, quads: the same as unsigned 16-, 32- and 64-bit numbers.

    After close() the views refuse access (ValueError). NumPy views that someone still holds stay valid and keep the
    mapping, and the descriptor that Python's mmap keeps for it, until they are dropped.
    """

    def __init__(self, fd: int, name: str, size: int, vm: Handle) -> None:
        super().__init__(fd, name, vm)
        try:
            self._map: mmap.mmap | None = mmap.mmap(fd, size)
        except (OSError, ValueError) as error:
            self.close()
            why = error.strerror if isinstance(error, OSError) else error
            raise HostError(f"the run area of {name} cannot be mapped: {why}; raise the limits (ulimit)") from None
        self.run_view = memoryview(self._map)
        self.halves = self.run_view.cast("H")
        self.words = self.run_view.cast("I")
        self.quads = self.run_view.cast("Q")

    def close(self) -> None:
        """Close the vCPU and unmap its run area, unless someone still holds a view of it."""
        if self.fd < 0:
            return
        super().close()
        gone = _released()
        for name in ("halves", "words", "quads", "run_view"):
            view = getattr(self, name, gone)
            setattr(self, name, gone)
            try:
                view.release()
            except BufferError:  # a NumPy view hangs on it: the mapping goes when that view does
                continue
        area, self._map = getattr(self, "_map", None), None
        if area is not None:
            try:
                area.close()
            except BufferError:
                return

    @property
    def run_record(self) -> Record:
        """The run area as a live record of dtype RUN, shape (): every field by its C name, unions overlapping."""
        return self._live(layout.RUN, 0)

    def _live(self, dtype: layout.DType, offset: int) -> Record:
        return np.frombuffer(self.run_view, dtype, 1, offset).reshape(())

    @property
    def exit_reason(self) -> int:
        """Why KVM_RUN returned last: an ExitReason."""
        return self.words[WORD_EXIT_REASON]

    @property
    def immediate_exit(self) -> bool:
        """Whether the next KVM_RUN returns at once with EINTR (KVM_CAP_IMMEDIATE_EXIT). Settable, from any thread."""
        return self.run_view[BYTE_IMMEDIATE_EXIT] != 0

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self.run_view[BYTE_IMMEDIATE_EXIT] = 1 if value else 0

    @property
    def request_interrupt_window(self) -> bool:
        """Whether KVM_RUN is to return as soon as the guest can take an interrupt.

        Settable; for VMs without in-kernel APIC.
        """
        return self.run_view[0] != 0

    @request_interrupt_window.setter
    def request_interrupt_window(self, value: bool) -> None:
        self.run_view[0] = 1 if value else 0

    @property
    def ready_for_interrupt_injection(self) -> bool:
        """Whether interrupt() would be taken now."""
        return bool(self.run_record["ready_for_interrupt_injection"])

    @property
    def if_flag(self) -> bool:
        """The guest's RFLAGS.IF at the last exit."""
        return bool(self.run_record["if_flag"])

    @property
    def io(self) -> IoExit:
        """The port access of ExitReason.IO."""
        return IoExit(*(int(x) for x in self.run_record["io"].item()))

    @property
    def io_data(self) -> memoryview:
        """The data of ExitReason.IO, `size * count` bytes: to read for an OUT, to fill for an IN."""
        io = self.io
        return self.run_view[io.offset : io.offset + io.size * io.count]

    @property
    def mmio(self) -> MmioExit:
        """The memory access of ExitReason.MMIO."""
        record = self.run_record["mmio"]
        data = record["data"].tobytes()[: int(record["len"])]
        return MmioExit(int(record["phys_addr"]), data, bool(record["is_write"]))

    def answer_mmio(self, data: bytes) -> None:
        """Give the data of an MMIO read, up to 8 bytes; the guest gets it with the next KVM_RUN."""
        self.run_view[BYTE_MMIO_DATA : BYTE_MMIO_DATA + len(data)] = data

    @property
    def internal_error(self) -> InternalErrorExit:
        """What ExitReason.INTERNAL_ERROR says."""
        record = self.run_record
        internal, failure = record["internal"], record["emulation_failure"]
        data = tuple(internal["data"][: int(internal["ndata"])].tolist())
        has_bytes = int(internal["suberror"]) == 1 and len(data) >= 3 and bool(int(failure["flags"]) & 1)
        instruction = failure["insn_bytes"].tobytes()[: int(failure["insn_size"])] if has_bytes else b""
        return InternalErrorExit(int(internal["suberror"]), data, instruction)

    @property
    def fail_entry(self) -> FailEntryExit:
        """What ExitReason.FAIL_ENTRY says."""
        record = self.run_record["fail_entry"]
        return FailEntryExit(int(record["hardware_entry_failure_reason"]), int(record["cpu"]))

    @property
    def system_event(self) -> SystemEventExit:
        """What ExitReason.SYSTEM_EVENT says."""
        record = self.run_record["system_event"]
        return SystemEventExit(int(record["type"]), tuple(record["data"][: int(record["ndata"])].tolist()))

    @property
    def debug_exit(self) -> DebugExit:
        """What ExitReason.DEBUG says."""
        record = self.run_record["debug"]["arch"]
        return DebugExit(int(record["exception"]), int(record["pc"]), int(record["dr6"]), int(record["dr7"]))

    @property
    def msr_access(self) -> MsrAccessExit:
        """The access of ExitReason.X86_RDMSR or ExitReason.X86_WRMSR."""
        record = self.run_record["msr"]
        return MsrAccessExit(int(record["reason"]), int(record["index"]), int(record["data"]))

    def answer_msr(self, data: int | None = None, error: bool = False) -> None:
        """Answer an MSR exit: `data` for a read; `error` makes the instruction raise #GP."""
        record = self.run_record["msr"]
        record["error"] = error
        if data is not None:
            record["data"] = data

    def sync_enable(self, classes: Sync) -> None:
        """Have KVM_RUN leave these register classes in the run area at every exit (KVM_CAP_SYNC_REGS)."""
        self.quads[QUAD_VALID_REGS] = classes

    def sync_dirty(self, classes: Sync) -> None:
        """Have the next KVM_RUN load these register classes from the run area; KVM clears the request."""
        self.quads[QUAD_DIRTY_REGS] |= classes

    @property
    def sync_regs(self) -> Record:
        """Live record of the synchronized general registers: dtype REGS, shape ()."""
        return self._live(layout.REGS, layout.offset_of(layout.RUN, "s.regs.regs"))

    @property
    def sync_sregs(self) -> Record:
        """Live record of the synchronized special registers: dtype SREGS, shape ()."""
        return self._live(layout.SREGS, layout.offset_of(layout.RUN, "s.regs.sregs"))

    @property
    def sync_events(self) -> Record:
        """Live record of the synchronized events: dtype VCPU_EVENTS, shape ()."""
        return self._live(layout.VCPU_EVENTS, layout.offset_of(layout.RUN, "s.regs.events"))

    def drain_coalesced(self) -> list[CoalescedWrite]:
        """Take the writes out of the VM's coalesced ring, oldest first. One thread at a time may do this for a VM."""
        base = COALESCED_MMIO_PAGE_OFFSET * mmap.PAGESIZE
        head = layout.COALESCED_MMIO_RING.itemsize
        count = (mmap.PAGESIZE - head) // layout.COALESCED_MMIO.itemsize
        first, last = base // 4, base // 4 + 1
        words = self.words
        if words[first] == words[last]:
            return []
        ring = np.frombuffer(self.run_view, layout.COALESCED_MMIO, count, base + head)
        writes = []
        while (at := words[first]) != words[last]:
            entry = ring[at % count]
            data = entry["data"].tobytes()[: int(entry["len"])]
            writes.append(CoalescedWrite(int(entry["phys_addr"]), data, bool(entry["pio"])))
            words[first] = (at + 1) % count
        return writes
