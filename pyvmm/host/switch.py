"""Switch EPT, NPT and what else of KVM bears on memory, for a while or for good.

    with switched(npt=False):
        ...  # KVM's shadow MMU does the paging here

On the way out the former settings are back: after success, an exception, SIGINT, SIGTERM and SIGHUP. After SIGKILL a record
is left, from which `restore` (`pyvmm host restore`) puts them back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from pyvmm.errors import HostError
from pyvmm.host.guard import SignalGuard
from pyvmm.host.modules import Kernel
from pyvmm.host.parameters import PARAMETERS, same, setting_value
from pyvmm.host.plan import Plan, current, make_plan
from pyvmm.host.record import Record, RunFolder, this_process
from pyvmm.host.reload import HalfSwitched, apply, put_back

__all__ = ["Change", "HalfSwitched", "Switch", "left_behind", "restore", "set_parameters", "switched"]


@dataclass(frozen=True, slots=True)
class Change:
    """What a switch did.

    Attributes:
        before: value of each setting that this host has, by `MODULE.NAME`, as the kernel shows it.
        after: the same afterwards. The modules change some along with others.
        reloaded: the modules that were reloaded.
        lost: further parameters of those modules that could not be kept, one line each.
    """

    before: dict[str, str]
    after: dict[str, str]
    reloaded: tuple[str, ...]
    lost: tuple[str, ...]

    def changed(self) -> dict[str, tuple[str, str]]:
        """Return the former and the present value of what differs."""
        names = [*self.before, *(name for name in self.after if name not in self.before)]
        pairs = {name: (self.before.get(name, "-"), self.after.get(name, "-")) for name in names}
        return {name: pair for name, pair in pairs.items() if not same(*pair)}


def switched(*, wait: float = 0.0, **settings: bool | int | str) -> Switch:
    """Return a context in which KVM runs with these settings: `with switched(ept=False, vpid=False): ...`.

    The VMs of the process must be closed before it is entered and before it is left. Enter it in the main thread: Python handles
    signals there alone.

    Args:
        wait: seconds to wait where another switch is in force.
        settings: parameters by name, see `pyvmm.host.parameters`; booleans, numbers or text as `pyvmm host set` takes it.

    Raises:
        UsageError: no such setting or value.
        HostError: on entry, where this host cannot: VMs open, module built in, no root, no such parameter, no hardware for it,
            modprobe missing, another switch in force. Nothing has changed then.
        HalfSwitched: neither the settings nor the former ones could be brought into force.
    """
    return Switch(settings, wait=wait)


class Switch:
    """The context that `switched` returns; entering it returns the `Change`."""

    def __init__(
        self,
        settings: Mapping[str, bool | int | str],
        *,
        wait: float = 0.0,
        kernel: Kernel | None = None,
        folder: RunFolder | None = None,
    ) -> None:
        """Check the settings; nothing is done yet."""
        self._settings = {name: setting_value(name, value) for name, value in settings.items()}
        self._wait = wait
        self._kernel = kernel or Kernel()
        self._folder = folder or RunFolder()
        self._guard = SignalGuard()
        self._record: Record | None = None
        self._pid = 0

    def __enter__(self) -> Change:
        """Bring the settings into force."""
        self._pid = os.getpid()
        self._guard = SignalGuard(Switch.__enter__.__code__, Switch.__exit__.__code__)
        _refuse_early(self._kernel, self._settings)
        try:
            self._folder.acquire(self._wait)
            self._guard.install()
            change, self._record = _switch(self._kernel, self._folder, self._settings)
            self._guard.release()
            return change
        except BaseException:
            self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the former settings back."""
        if os.getpid() != self._pid:
            self._guard.remove()
            return  # a forked child: the switch is its parent's
        try:
            self._leave()
        except HostError as failure:
            raise failure from error
        self._guard.deliver()

    def _leave(self) -> None:
        self._guard.hold = True
        try:
            record, self._record = self._record, None
            if record is not None:
                _restore(self._kernel, self._folder, record)
        finally:
            self._folder.release()
            self._guard.remove()


def set_parameters(
    settings: Mapping[str, bool | int | str],
    *,
    wait: float = 0.0,
    kernel: Kernel | None = None,
    folder: RunFolder | None = None,
) -> Change:
    """Bring settings into force until the modules are loaded anew; arguments and errors as of `switched`."""
    wanted = {name: setting_value(name, value) for name, value in settings.items()}
    kernel, folder = kernel or Kernel(), folder or RunFolder()
    guard = SignalGuard()
    _refuse_early(kernel, wanted)
    try:
        folder.acquire(wait)
        guard.install()
        change, record = _switch(kernel, folder, wanted)
        if record is not None:
            _keep(folder, record, wanted)
    finally:
        folder.release()
        guard.remove()
    guard.deliver()
    return change


def restore(*, wait: float = 0.0, kernel: Kernel | None = None, folder: RunFolder | None = None) -> Change | None:
    """Put back what a switch has left behind that could not restore it itself; None where nothing was left.

    Raises:
        HostError: a switch is in force whose process lives, or this host cannot.
        HalfSwitched: the settings could not be put back.
    """
    kernel, folder = kernel or Kernel(), folder or RunFolder()
    if left_behind(kernel, folder) is None:
        return None
    guard = SignalGuard()
    try:
        folder.acquire(wait)
        guard.install()
        record = left_behind(kernel, folder)
        change = None if record is None else _restore(kernel, folder, record)
    finally:
        folder.release()
        guard.remove()
    guard.deliver()
    return change


def left_behind(kernel: Kernel | None = None, folder: RunFolder | None = None) -> Record | None:
    """Return the record of a switch in force, or of one that did not restore the former settings; None where there is none.

    Raises:
        HostError: the record is damaged.
    """
    kernel, folder = kernel or Kernel(), folder or RunFolder()
    record = folder.read()
    if record is None or record.alive(kernel.proc):
        return record
    kvm = kernel.kvm()
    back = all(same(current(kvm, name), value) for name, value in record.formerly().items())
    return None if kvm.name == record.vendor and back else record


def _refuse_early(kernel: Kernel, wanted: dict[str, str]) -> None:
    """Give the reason to a process that may not even take the lock, whatever the reason is."""
    if not kernel.may_load():
        make_plan(kernel, wanted)


def _switch(kernel: Kernel, folder: RunFolder, wanted: dict[str, str]) -> tuple[Change, Record | None]:
    """Bring settings into force; return the change and the way back, None where there is nothing to go back to."""
    left = left_behind(kernel, folder)
    before = _values(kernel)
    plan = make_plan(kernel, wanted)
    own = _way_back(kernel, plan)
    record = own if left is None or left.vendor != own.vendor else _merged(left, own)
    if not record.settings:
        folder.forget()
        return Change(before, before, (), ()), None
    folder.write(record)
    try:
        lost = apply(kernel, plan, own)
    except BaseException as error:
        if not isinstance(error, HostError) or isinstance(error, HalfSwitched):
            record.pid = 0
            folder.write(record)
        elif left is None:
            folder.forget()
        else:
            folder.write(left)
        raise
    return Change(before, _values(kernel), plan.reload, lost), record


def _restore(kernel: Kernel, folder: RunFolder, record: Record) -> Change:
    before = _values(kernel)
    try:
        reloaded, lost = put_back(kernel, record)
    except HostError:
        record.pid = 0
        folder.write(record)
        raise
    folder.forget()
    return Change(before, _values(kernel), reloaded, lost)


def _way_back(kernel: Kernel, plan: Plan) -> Record:
    former = {module: kernel.parameters(module) for module in plan.reload}
    for module, name, _ in plan.writes:
        former.setdefault(module, {})[name] = kernel.parameters(module)[name]
    pid, started, command = this_process()
    return Record(plan.vendor, dict(plan.settings), former, plan.reload, pid, started, command)


def _merged(left: Record, own: Record) -> Record:
    """Return the way back over a switch that was left behind: the settings before that one."""
    modules = (*left.former, *(module for module in own.former if module not in left.former))
    former = {module: {**own.former.get(module, {}), **left.former.get(module, {})} for module in modules}
    reload = tuple(module for module in ("kvm", own.vendor) if module in left.reload or module in own.reload)
    return Record(own.vendor, {**left.settings, **own.settings}, former, reload, own.pid, own.started, own.command)


def _keep(folder: RunFolder, record: Record, wanted: dict[str, str]) -> None:
    """Let settings stay: what a killed switch has left of others stays on record, to go back to these."""
    record.settings = {name: value for name, value in record.settings.items() if name not in wanted}
    for name, value in wanted.items():
        for values in record.former.values():
            if name in values:
                values[name] = value
    record.pid = 0
    if record.settings:
        folder.write(record)
    else:
        folder.forget()


def _values(kernel: Kernel) -> dict[str, str]:
    kvm = kernel.kvm()
    return {
        f"{parameter.module}.{name}": value
        for name, parameter in PARAMETERS.items()
        if parameter.module in (kvm.name, "kvm") and (value := current(kvm, name))
    }
