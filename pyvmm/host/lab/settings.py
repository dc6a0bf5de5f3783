"""What a lab is to be: CPU, module parameters, memory, share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvmm.errors import UsageError
from pyvmm.host import parameters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pyvmm.host.lab.kernel import LabKernel

CPUS = ("amd", "intel")
VENDOR_MODULES = {"amd": "kvm_amd", "intel": "kvm_intel"}

Parameters = dict[str, dict[str, str]]
"""Module name (with an underscore) to parameter to value, as `{"kvm_amd": {"npt": "0"}}`."""


@dataclass(frozen=True, slots=True)
class LabSpec:
    """Everything that a backend needs to start a lab.

    Attributes:
        cpu: "amd" or "intel".
        parameters: what the KVM modules are loaded with.
        memory: RAM of the lab in bytes.
        cpus: number of CPUs of the lab.
        share: absolute path of the host's folder that is writable in the lab, or None.
        cwd: working directory of the commands.
        environment: environment of the commands.
        kernel: the lab's kernel.
    """

    cpu: str
    parameters: Parameters
    memory: int
    cpus: int
    share: str | None
    cwd: str
    environment: dict[str, str]
    kernel: LabKernel

    @property
    def vendor_module(self) -> str:
        """Return the name of this CPU's KVM module, with an underscore."""
        return VENDOR_MODULES[self.cpu]


def parse_settings(cpu: str, texts: Iterable[str]) -> Parameters:
    """Turn `NAME=VALUE` texts into module parameters.

    Raises:
        UsageError: an unknown CPU, a text without `=`, a parameter that this CPU's modules lack, a value that it cannot take, or two.
    """
    return module_parameters(cpu, parameters.parse_settings(texts))


def module_parameters(cpu: str, settings: Mapping[str, bool | int | str]) -> Parameters:
    """Sort settings by name under the modules that have them, with values as the kernel reads them.

    Raises:
        UsageError: as `parse_settings`.
    """
    if cpu not in VENDOR_MODULES:
        raise UsageError(f"there is no lab for CPU {cpu!r}: choose {' or '.join(CPUS)}")
    found: Parameters = {}
    for name, value in settings.items():
        text = parameters.setting_value(name, value)
        module = parameters.PARAMETERS[name].module
        if module not in (VENDOR_MODULES[cpu], "kvm"):
            owner = next(other for other in CPUS if VENDOR_MODULES[other] == module)
            raise UsageError(
                f"{name} is a parameter of {module}, which the {cpu} lab does not load: use the {owner} lab"
            )
        found.setdefault(module, {})[name] = text
    return found
