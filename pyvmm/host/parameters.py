"""The module parameters that bear on memory virtualization, and the settings that a user may ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pyvmm.errors import UsageError


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of KVM's modules (Linux, Documentation/admin-guide/kernel-parameters.txt, `kvm*.`).

    Attributes:
        module: the module that has it.
        name: its name.
        needs: parameters of which one has to be on for this one to have an effect.
        number: whether it takes a number instead of on and off.
        words: further values that it takes.
    """

    module: str
    name: str
    needs: tuple[str, ...] = ()
    number: bool = False
    words: tuple[str, ...] = ()


_ALL = (
    Parameter("kvm_intel", "ept"),
    Parameter("kvm_intel", "vpid"),
    Parameter("kvm_intel", "unrestricted_guest", needs=("ept",)),
    Parameter("kvm_intel", "eptad", needs=("ept",)),
    Parameter("kvm_intel", "pml", needs=("eptad",)),
    Parameter("kvm_amd", "npt"),
    Parameter("kvm", "tdp_mmu", needs=("ept", "npt")),
    Parameter("kvm", "nx_huge_pages", words=("auto",)),
    Parameter("kvm", "nx_huge_pages_recovery_ratio", number=True),
    Parameter("kvm", "nx_huge_pages_recovery_period_ms", number=True),
    Parameter("kvm", "eager_page_split", needs=("ept", "npt")),
    Parameter("kvm", "mmio_caching"),
    Parameter("kvm", "flush_on_reuse"),
)
PARAMETERS = {parameter.name: parameter for parameter in _ALL}
"""By name, which is unique over the modules."""

_EPT_FOLLOWERS = ("unrestricted_guest", "eptad", "pml", "allow_smaller_maxphyaddr", "pt_mode", "vmentry_l1d_flush")
_TDP_FOLLOWERS = ("tdp_mmu", "mmio_caching")

FOLLOWERS = {
    "ept": frozenset((*_EPT_FOLLOWERS, *_TDP_FOLLOWERS)),
    "eptad": frozenset(("pml",)),
    "npt": frozenset(("sev", "sev_es", "sev_snp", *_TDP_FOLLOWERS)),
}
"""What the module itself changes along with a parameter (Linux, `vmx_hardware_setup`, `svm_hardware_setup`, `kvm_configure_mmu`)."""

CPU_FLAGS = ("ept", "npt", "vpid")
"""Parameters that need the flag of the same name in /proc/cpuinfo."""

_ON = ("on", "1", "y", "yes", "true")
_OFF = ("off", "0", "n", "no", "false")
_MAX_NUMBER = 2**32 - 1


def parse_settings(texts: Iterable[str]) -> dict[str, str]:
    """Parse `NAME=VALUE` texts into values as the kernel takes them: 1, 0, a number or a word.

    Raises:
        UsageError: no such parameter, no such value, or two values for one parameter.
    """
    settings: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is not a setting: write NAME=VALUE, as npt=off")
        name = name.strip()
        parsed = setting_value(name, value)
        if settings.setdefault(name, parsed) != parsed:
            raise UsageError(f"{name} is given two values")
    return settings


def setting_value(name: str, value: bool | int | str) -> str:
    """Return a value for parameter `name` as the kernel takes it.

    Raises:
        UsageError: no such parameter or value.
    """
    parameter = PARAMETERS.get(name)
    if parameter is None:
        raise UsageError(f"there is no setting {name!r}; there are {', '.join(PARAMETERS)}")
    word = str(value).strip().lower()
    if parameter.number:
        if not (word.isascii() and word.isdecimal() and int(word) <= _MAX_NUMBER):
            raise UsageError(f"{name}={value}: this setting takes a number from 0 to {_MAX_NUMBER}")
        return str(int(word))
    if word in _ON:
        return "1"
    if word in _OFF:
        return "0"
    if word in parameter.words:
        return word
    raise UsageError(f"{name}={value}: this setting takes {', '.join(('on', 'off', *parameter.words))}")


def show_value(name: str, value: str) -> str:
    """Return a value as a user writes it: on, off, a number or a word."""
    if name in PARAMETERS and PARAMETERS[name].number:
        return value
    return {"1": "on", "0": "off"}.get(_plain(value), value)


def show_settings(settings: Mapping[str, str]) -> str:
    """Return settings as they are written on the command line of `pyvmm host set`."""
    return " ".join(f"{name}={show_value(name, value)}" for name, value in settings.items())


def same(one: str, other: str) -> bool:
    """Tell whether two values of a parameter mean the same: the kernel shows a boolean as Y or N, an int as 1 or 0."""
    return _plain(one) == _plain(other)


def is_on(value: str | None) -> bool:
    """Tell whether a parameter is there and on."""
    return value is not None and _plain(value) == "1"


def verifiable(name: str, value: str) -> bool:
    """Tell whether the parameter reads back as it was set: what `auto` means is the kernel's choice."""
    return value not in PARAMETERS[name].words


def followers(names: Iterable[str]) -> frozenset[str]:
    """Return the parameters that the modules change by themselves when those in `names` change."""
    found: frozenset[str] = frozenset()
    return found.union(*(FOLLOWERS.get(name, frozenset()) for name in names))


def _plain(value: str) -> str:
    return {"Y": "1", "y": "1", "N": "0", "n": "0"}.get(value, value)
