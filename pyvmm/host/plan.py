"""What a switch would take: which modules to reload, which parameters to write, and everything that forbids it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pyvmm.errors import HostError
from pyvmm.host.modules import Kernel, Options
from pyvmm.host.parameters import CPU_FLAGS, PARAMETERS, is_on, same, show_settings
from pyvmm.host.users import kvm_users
from pyvmm.pykvm.module import KvmModule

_VENDORS = {"kvm_intel": "intel", "kvm_amd": "amd"}
_TWO_DIMENSIONAL = {"ept": "intel", "npt": "amd"}


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a switch.

    Attributes:
        vendor: the vendor module.
        settings: the settings that are not in force yet.
        reload: modules to reload, in the order to load them.
        options: what to load them with.
        writes: parameters to write without a reload: module, name, value.
    """

    vendor: str
    settings: dict[str, str]
    reload: tuple[str, ...] = ()
    options: Options = field(default_factory=dict)
    writes: tuple[tuple[str, str, str], ...] = ()


def make_plan(kernel: Kernel, settings: Mapping[str, str]) -> Plan:
    """Work out how to bring `settings` (values as the kernel takes them) into force.

    Raises:
        HostError: this host cannot; the message says why.
    """
    kvm = kernel.kvm()
    if kvm.name == "unknown":
        raise HostError(f"no KVM module is loaded: {_how_to_load(kernel)}")
    for name, value in settings.items():
        reason = missing(kvm, name) or without_effect(kvm, name, value, settings) or unsupported(kernel, name, value)
        if reason is not None:
            raise HostError(reason)
    wanted = {name: value for name, value in settings.items() if not same(current(kvm, name), value)}
    writes: list[tuple[str, str, str]] = []
    options: dict[str, dict[str, str]] = {}
    for name, value in wanted.items():
        module = PARAMETERS[name].module
        if kernel.writable(module, name):
            writes.append((module, name, value))
        else:
            options.setdefault(module, {})[name] = value
    # The vendor module stands on `kvm`: it has to go first and to come back last.
    reload = ("kvm", kvm.name) if "kvm" in options else (kvm.name,) if options else ()
    reason = reload_obstacle(kernel, reload) if reload else write_obstacle(kernel, writes)
    if reason is not None:
        raise HostError(f"cannot set {show_settings(wanted)}: {reason}")
    return Plan(kvm.name, wanted, reload, options, tuple(writes))


def current(kvm: KvmModule, name: str) -> str:
    """Return the present value of a parameter of the loaded modules."""
    return (kvm.common if PARAMETERS[name].module == "kvm" else kvm.parameters).get(name, "")


def missing(kvm: KvmModule, name: str) -> str | None:
    """Say why the loaded modules do not have a parameter, and which there are; None if they have it."""
    module = PARAMETERS[name].module
    values = kvm.common if module == "kvm" else kvm.parameters
    if module in (kvm.name, "kvm") and name in values:
        return None
    cpu = _TWO_DIMENSIONAL.get(name)
    if cpu is not None and kvm.name not in _VENDORS:
        return (
            f"this KVM ({kvm.name}) has no two-dimensional paging at all, so there is no {name} to switch: "
            f"`pyvmm lab run --cpu {cpu} --set {name}=on -- COMMAND` has"
        )
    there = [known for known in PARAMETERS if current(kvm, known)]
    names = " and ".join((kvm.name, "kvm"))
    return f"{names} have no parameter {name} on this host; there are {', '.join(there) or 'none'}"


def reload_obstacle(kernel: Kernel, modules: Iterable[str]) -> str | None:
    """Say what forbids to reload `modules`, open VMs apart; None if nothing does."""
    for module in modules:
        if kernel.built_in(module):
            return f"{module} is built into the kernel: put {module}.PARAMETER=VALUE on its command line and reboot"
        if kernel.uses(module) is None:
            return f"this kernel cannot unload modules, {module} among them"
        others = set(kernel.holders(module)) - set(_VENDORS)
        if others:
            return f"{module} is in use by the modules {', '.join(sorted(others))}"
    if not kernel.may_load():
        return "only root may reload a module: use sudo"
    if kernel.loading_disabled():
        return "this kernel loads no modules until it reboots (kernel.modules_disabled is 1)"
    for tool in ("modprobe", "rmmod"):
        if kernel.find(tool) is None:
            return f"{tool} is missing (Debian: kmod)"
    return None


def users_obstacle(kernel: Kernel, modules: Iterable[str]) -> str | None:
    """Say who has KVM open; None if nobody does."""
    for module in modules:
        uses = (kernel.uses(module) or 0) - len(kernel.holders(module))
        if uses > 0:
            found = kvm_users(kernel.proc)
            if not found:
                return f"{module} is in use {uses} times by processes that cannot be seen from here"
            return f"{module} is in use: KVM is open in {', '.join(map(str, found))}; end that first"
    return None


def without_effect(kvm: KvmModule, name: str, value: str, settings: Mapping[str, str]) -> str | None:
    """Say what a parameter needs to have an effect once `settings` are in force; None if that is there, or if it is set to off."""
    needs = PARAMETERS[name].needs
    if value == "0" or not needs or any(is_on(settings.get(need, current(kvm, need))) for need in needs):
        return None
    there = [need for need in needs if current(kvm, need)]
    if not there:
        return f"{name} has no effect here: this KVM ({kvm.name}) has no two-dimensional paging at all"
    return f"{name} has no effect without {there[0]}=on: `pyvmm host set {there[0]}=on {name}=on` sets both"


def unsupported(kernel: Kernel, name: str, value: str) -> str | None:
    """Say which flag the CPU lacks for a parameter to be on; None if none is known to be missing."""
    flags = kernel.cpu_flags()
    if name not in CPU_FLAGS or value != "1" or name in flags or not flags & {"vmx", "svm"}:
        return None
    return f"this CPU has no {name.upper()} (its flags in /proc/cpuinfo lack {name})"


def write_obstacle(kernel: Kernel, writes: Iterable[tuple[str, str, str]]) -> str | None:
    """Say which of the files this process may not write; None if it may write all."""
    for module, name, _ in writes:
        path = f"{kernel.sysfs}/{module}/parameters/{name}"
        if not os.access(path, os.W_OK):
            return f"only root may write {path}: use sudo"
    return None


def _how_to_load(kernel: Kernel) -> str:
    flags = kernel.cpu_flags()
    for flag, module in (("vmx", "kvm_intel"), ("svm", "kvm_amd")):
        if flag in flags:
            return f"`sudo modprobe {module}`"
    return "this CPU shows neither VMX nor SVM; `pyvmm lab run --cpu amd -- COMMAND` has a KVM"
