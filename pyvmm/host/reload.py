"""Carry a switch out: reload, keep the other parameters, check the outcome, go back when it is not what was asked for."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping

from pyvmm.errors import HostError
from pyvmm.host.modules import Kernel, Options
from pyvmm.host.parameters import PARAMETERS, followers, same, show_settings, verifiable
from pyvmm.host.plan import Plan, current, reload_obstacle, users_obstacle
from pyvmm.host.record import Record
from pyvmm.host.users import kvm_users

_ENTRY_SECONDS = 1.0
"""How long a VM that is closed already may take to let go of the module."""
_RESTORE_SECONDS = 5.0
"""How long the processes of a switch's own may take to end: without them the former settings cannot come back."""


class HalfSwitched(HostError):
    """The settings that were asked for are not in force, nor are the former ones; the message says what is."""


def apply(kernel: Kernel, plan: Plan, back: Record) -> tuple[str, ...]:
    """Bring a plan into force; return the other parameters that could not be kept, one line each.

    Args:
        back: the way back for when it fails.

    Raises:
        HostError: it failed, and the former settings are in force.
        HalfSwitched: it failed, and so did the way back.
    """
    if plan.reload:
        await_idle(kernel, plan.reload, _ENTRY_SECONDS, patient=False)
        try:
            kernel.check_loadable(plan.vendor)
        except HostError as error:
            raise HostError(f"{plan.vendor} could not be loaded again, so it stays: {error}") from None
    free = {*plan.settings, *followers(plan.settings)}
    kept = {module: _without(back.former[module], free) for module in plan.reload}
    try:
        if plan.reload:
            _reload(kernel, plan.reload, plan.options, kept)
        for module, name, value in plan.writes:
            kernel.write(module, name, value)
        _check(kernel, plan.settings)
    except HostError as error:
        try:
            put_back(kernel, back)
        except HostError as further:
            raise HalfSwitched(f"{error}; {further}") from None
        raise HostError(f"{error}; the former settings are in force again") from None
    return _lost(kernel, kept)


def put_back(kernel: Kernel, record: Record) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Bring the former settings of a record back; return the modules reloaded, and what could not be brought back, one line each.

    Raises:
        HalfSwitched: a setting could not be brought back.
    """
    former = record.former
    options = {
        module: {name: values[name] for name in record.settings if name in values} for module, values in former.items()
    }
    try:
        reload = _needed(kernel, record)
        if reload:
            reason = reload_obstacle(kernel, [module for module in reload if kernel.loaded(module)])
            if reason is not None:
                raise HostError(reason)
            await_idle(kernel, reload, _RESTORE_SECONDS, patient=True)
            _reload(kernel, reload, options, {module: former.get(module, {}) for module in reload})
        for module, values in options.items():
            for name in _differing(kernel, module, values):
                kernel.write(module, name, values[name])
        _check(kernel, record.formerly())
    except HostError as error:
        raise HalfSwitched(
            f"cannot restore {show_settings(record.formerly())}: {error}; now {state(kernel, record.settings)}; "
            f"`sudo pyvmm host restore` tries again"
        ) from None
    return reload, _lost(kernel, former)


def await_idle(kernel: Kernel, modules: Collection[str], seconds: float, patient: bool) -> None:
    """Wait until nothing has KVM open: the last file of a VM is let go of a little after it is closed.

    Args:
        patient: wait for processes that are there, too.

    Raises:
        HostError: KVM is in use, with the processes.
    """
    end = time.monotonic() + seconds
    while (reason := users_obstacle(kernel, modules)) is not None:
        if time.monotonic() >= end or (not patient and kvm_users(kernel.proc)):
            raise HostError(reason)
        time.sleep(0.02)


def state(kernel: Kernel, names: Iterable[str]) -> str:
    """Say which modules are loaded, with the present values of some settings."""
    kvm = kernel.kvm()
    if kvm.name == "unknown":
        return "kvm is loaded without a vendor module" if kernel.loaded("kvm") else "no KVM module is loaded"
    values = ", ".join(f"{name}={value}" for name in names if (value := current(kvm, name)))
    return f"{kvm.name} is loaded with {values or 'other settings'}"


def _reload(kernel: Kernel, modules: tuple[str, ...], options: Options, kept: Options) -> None:
    """Reload modules; every parameter in `kept` shall end up with its value there.

    What had been given by hand when the modules were loaded is known only by what differs from the defaults of a first load. To
    give all of them would be wrong: some mark the kernel as tainted, and not every value that is shown can be given.
    """
    kernel.reload(modules, options)
    further = {
        module: {
            name: value
            for name, value in _differing(kernel, module, kept.get(module, {})).items()
            if not kernel.writable(module, name) and name not in options.get(module, {})
        }
        for module in modules
    }
    if any(further.values()):
        try:
            kernel.reload(modules, {module: {**options.get(module, {}), **further[module]} for module in modules})
        except HostError:
            kernel.reload(modules, options)
    for module in modules:
        for name, value in _differing(kernel, module, kept.get(module, {})).items():
            if kernel.writable(module, name):
                try:
                    kernel.write(module, name, value)
                except HostError:
                    continue  # reported as lost


def _needed(kernel: Kernel, record: Record) -> tuple[str, ...]:
    """Return the modules that have to be reloaded for the former settings, in the order to load them."""

    def stale(module: str) -> bool:
        values = _differing(kernel, module, record.former.get(module, {}))
        return not kernel.loaded(module) or any(not kernel.writable(module, name) for name in values)

    if "kvm" in record.reload and stale("kvm"):
        return ("kvm", record.vendor)
    return (record.vendor,) if not kernel.loaded(record.vendor) or (record.reload and stale(record.vendor)) else ()


def _check(kernel: Kernel, settings: Mapping[str, str]) -> None:
    kvm = kernel.kvm()
    for name, value in settings.items():
        found = current(kvm, name)
        if verifiable(name, value) and not same(found, value):
            raise HostError(
                f"{PARAMETERS[name].module} took {name}={value} but reports {name}={found or '?'}: "
                "the CPU or the kernel lacks what it takes"
            )


def _lost(kernel: Kernel, kept: Options) -> tuple[str, ...]:
    return tuple(
        f"{module}.{name} was {value} and is {kernel.parameters(module).get(name, 'gone')}"
        for module, values in kept.items()
        for name, value in _differing(kernel, module, values).items()
    )


def _differing(kernel: Kernel, module: str, values: Mapping[str, str]) -> dict[str, str]:
    now = kernel.parameters(module)
    return {name: value for name, value in values.items() if not same(now.get(name, ""), value)}


def _without(values: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if name not in names}
