"""The direct engine: the guest's ring 0 is the VM's ring 0, and KVM does paging with whatever it has.

The loop in `run` is the hot path of pyvmm: between two KVM_RUNs it reads two words of `kvm_run`, looks a binding up,
calls the device, and counts. Everything rarer is out of line.
"""

from __future__ import annotations

import errno
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from itertools import repeat
from operator import length_hint
from time import perf_counter

from pyvmm.engine import exits
from pyvmm.engine.bindings import QUAD_ACCESS, QUAD_MMIO_META, SAMPLE_PERIOD, Bindings, Operation
from pyvmm.engine.dispatch import Dispatcher
from pyvmm.engine.registers import read_rflags, read_state, write_state
from pyvmm.engine.state import RFLAGS_IF, CpuState
from pyvmm.pykvm import ExitReason, KvmError, MpState, Vcpu
from pyvmm.pykvm.errors import from_handler
from pyvmm.pykvm.ioctls import Ioctl
from pyvmm.pykvm.run_area import WORD_EXIT_REASON

KICK_SIGNAL = int(signal.SIGRTMIN) + 5
"""Blocked in the vCPU's thread, let through by KVM_RUN alone (KVM_SET_SIGNAL_MASK): no handler, and no kick is lost."""

RECENT = 16
"""How many exits a vCPU remembers for the failure report; the same access over and over counts as one."""

_RUN = int(Ioctl.RUN)
_IO = int(ExitReason.IO)
_MMIO = int(ExitReason.MMIO)


class DirectEngine:
    """One vCPU on KVM as it is; `pyvmm.engine.base.Engine` documents the interface."""

    def __init__(self, vcpu: Vcpu, dispatcher: Dispatcher, *, irqchip: bool = True) -> None:
        """Run `vcpu`; `irqchip` tells whether its LAPIC is in the kernel."""
        self._irqchip = irqchip
        self.index = vcpu.id
        self.vcpu = vcpu
        self.dispatcher = dispatcher
        self.run_seconds = 0.0
        self.unspent = 0
        self._bindings = Bindings(vcpu, dispatcher)
        self._recent: deque[Operation | exits.Exit] = deque(maxlen=RECENT)
        self._thread: int | None = None
        self._guard = threading.RLock()  # a signal handler may kick while its thread kicks
        self._settling = False
        self._stale = False
        self._kicked = False

    def run(self, budget: int | None = None) -> exits.Exit:
        """Run until an exit that devices cannot serve, or for `budget` exits; exceptions of devices pass through."""
        if self._stale:
            self._stale = False
            self._bindings.forget()
        vcpu = self.vcpu
        fd, words, quads = vcpu.fd, vcpu.words, vcpu.quads
        bindings = self._bindings
        pio, mmio = bindings.pio.get, bindings.mmio.get
        enter, request = ioctl, _RUN  # locals: a global costs a look at a dictionary's version
        io, memory, reason_at, access_at, meta_at = _IO, _MMIO, WORD_EXIT_REASON, QUAD_ACCESS, QUAD_MMIO_META
        remember = self._recent.append
        interrupted = 0
        operation: Operation | None = None
        last: Operation | None = None
        left = SAMPLE_PERIOD if budget is None else budget
        turns = repeat(None, 0)
        began = perf_counter()
        try:
            while True:
                turns = repeat(None, min(left, SAMPLE_PERIOD))
                for _turn in turns:
                    try:
                        enter(fd, request)
                    except OSError as error:
                        interrupted = 1
                        return self._not_entered(error)
                    reason = words[reason_at]
                    if reason == io:
                        operation = pio(quads[access_at])
                    elif reason == memory:
                        accesses = mmio(quads[access_at])
                        operation = None if accesses is None else accesses.get(quads[meta_at])
                    else:
                        return self._leave(reason)
                    if operation is None:
                        operation = bindings.port() if reason == io else bindings.memory()
                    if operation is not last:
                        last = operation
                        remember(operation)
                    is_write, method, offset, size, tally, data, _ = operation
                    tally.count += 1
                    if is_write:
                        action = method(offset, size, data[0])
                        if action is not None:
                            return exits.DeviceAction(action)
                    else:
                        data[0] = method(offset, size)
                if budget is not None:
                    left -= min(left, SAMPLE_PERIOD)
                    if not left:
                        return exits.BudgetSpent()
                bindings.sample()
        except BaseException as error:
            if operation is not None and _came_from(operation, error):
                _annotate(error, operation)
            raise
        finally:
            self.run_seconds += perf_counter() - began
            if budget is not None:
                self.unspent = max(left - SAMPLE_PERIOD, 0) + length_hint(turns) + interrupted if left else 0

    def _leave(self, reason: int) -> exits.Exit:
        """Decode an exit that is no device access."""
        left = self._decode(reason)
        self.dispatcher.cell(left.kind).add()
        self._recent.append(left)
        return left

    def _decode(self, reason: int) -> exits.Exit:
        vcpu = self.vcpu
        if reason == ExitReason.HLT:
            return exits.Halt()
        if reason == ExitReason.SHUTDOWN:
            return exits.Shutdown()
        if reason in (ExitReason.INTR, ExitReason.SET_TPR):
            return exits.Interrupted()  # SET_TPR: the guest lowered CR8, and no in-kernel LAPIC cares
        if reason == ExitReason.DEBUG:
            debug = vcpu.debug_exit
            return exits.Debug(debug.exception, debug.pc, debug.dr6, debug.dr7)
        if reason == ExitReason.INTERNAL_ERROR:
            error = vcpu.internal_error
            return exits.InternalError(error.suberror, error.data)
        if reason == ExitReason.FAIL_ENTRY:
            entry = vcpu.fail_entry
            return exits.FailEntry(entry.reason, entry.cpu)
        if reason == ExitReason.SYSTEM_EVENT:
            return exits.SystemEvent(vcpu.system_event.type)
        return exits.UnknownExit(reason, vcpu.quads[QUAD_ACCESS])

    def _not_entered(self, error: OSError) -> exits.Exit:
        """Sort out why KVM_RUN returned an error: a kick, a signal, a vCPU that waits for SIPI, or a real failure."""
        # All of it before the caller looks what it was kicked for, and none of it while somebody kicks: to take a signal and
        # to believe afterwards that it is still under way would keep back every later one.
        with self._guard:
            self._kicked = False
            if from_handler(error):
                raise error
            if error.errno not in (errno.EINTR, errno.EAGAIN):
                raise KvmError("KVM_RUN", error.errno or 0) from None
            self.vcpu.immediate_exit = False
            while signal.sigtimedwait((KICK_SIGNAL,), 0):
                pass  # KVM_RUN left it pending; left there it would end the next KVM_RUN too
        if not self._settling:
            self.dispatcher.cell("interrupted").add()
        return exits.Interrupted()

    def forget_bindings(self) -> None:
        """Resolve every access anew, as the devices on a bus have changed; callable from any thread."""
        if self._thread is None or self._thread == threading.get_ident():
            self._bindings.forget()
        else:
            self._stale = True  # the tables are the running thread's own: it drops them when the kick reaches it
            self.kick()

    def recent_exits(self) -> list[str]:
        """Describe the last exits, oldest first, for the failure report."""
        return [one.kind if isinstance(one, exits.Exit) else _access_words(one) for one in self._recent]

    def settle(self) -> None:
        """Finish the access that the last exit left half done, so that the state is at an instruction boundary.

        With `immediate_exit` set KVM completes it and returns before any guest code runs (KVM API, section 5).
        """
        self._settling = True
        try:
            while True:
                self.vcpu.immediate_exit = True
                if not isinstance(self.run(), exits.DeviceAction):
                    return
        finally:
            self.vcpu.immediate_exit = False
            self._settling = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the calling thread this vCPU's: within, `kick` reaches it."""
        thread = threading.get_ident()
        former = signal.pthread_sigmask(signal.SIG_BLOCK, (KICK_SIGNAL,))
        self.vcpu.set_signal_mask({int(number) for number in former} - {KICK_SIGNAL})
        self._thread = thread
        self._kicked = False
        try:
            yield
        finally:
            with self._guard:
                self._thread = None
                self._kicked = False
            while signal.sigtimedwait((KICK_SIGNAL,), 0):
                pass
            signal.pthread_sigmask(signal.SIG_SETMASK, former)

    @property
    def busy(self) -> bool:
        """Tell whether another thread is running this vCPU."""
        return self._thread not in (None, threading.get_ident())

    def kick(self) -> None:
        """Make `run` return `Interrupted` soon; callable from any thread and from signal handlers."""
        with self._guard:
            if self.vcpu.closed:
                return
            self.vcpu.immediate_exit = True
            # Real-time signals queue: one that has not arrived yet does for all who kick meanwhile.
            if self._thread not in (None, threading.get_ident()) and not self._kicked:
                self._kicked = True
                signal.pthread_kill(self._thread or 0, KICK_SIGNAL)

    def state(self) -> CpuState:
        """Read the vCPU's registers."""
        return read_state(self.vcpu)

    def set_state(self, state: CpuState) -> None:
        """Replace the vCPU's registers; one that has halted runs again."""
        write_state(self.vcpu, state)
        if self._irqchip and self.vcpu.mp_state() == MpState.HALTED:
            self.vcpu.set_mp_state(MpState.RUNNABLE)

    def idle(self) -> str | None:
        """Tell why only another vCPU could wake this one: `halted` (HLT, IF=0), `waiting` (for SIPI), or None."""
        mode = self.vcpu.mp_state()
        if mode == MpState.HALTED:
            return None if read_rflags(self.vcpu) & RFLAGS_IF else "halted"
        return "waiting" if mode in (MpState.UNINITIALIZED, MpState.INIT_RECEIVED) else None

    def close(self) -> None:
        """Release the vCPU."""
        with self._guard:
            self._bindings.close()
            self._recent.clear()
            self.vcpu.close()


def _access_words(operation: Operation) -> str:
    _, _, offset, size, _, _, cell = operation
    where = f"port {cell.base:#x}" if cell.kind.startswith("pio") else f"GPA {cell.base + offset:#x}"
    return f"{cell.kind} of {size} bytes at {where} ({cell.device})"


def _came_from(operation: Operation, error: BaseException) -> bool:
    """Tell an exception of the device, or of the data that it returned, from one of a signal handler inside KVM_RUN."""
    trace = error.__traceback__
    deeper = trace.tb_next if trace is not None else None
    if deeper is None:
        return isinstance(error, (ValueError, TypeError))
    return deeper.tb_frame.f_code is getattr(operation[1], "__code__", None)


def _annotate(error: BaseException, operation: Operation) -> None:
    """Tell the reader of a traceback which access the device was serving."""
    error.add_note(f"pyvmm: raised while a device served a {_access_words(operation)}")
