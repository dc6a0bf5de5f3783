"""Gather for the failure report what the machine knows of a vCPU that crashed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvmm.engine import exits
from pyvmm.errors import PyvmmError
from pyvmm.pykvm.module import kvm_module

if TYPE_CHECKING:
    from pyvmm.boot import BootImage
    from pyvmm.debug.report import FailureReport
    from pyvmm.debug.symbols import SymbolTable
    from pyvmm.machine.machine import Machine
    from pyvmm.machine.result import EndReason


def report_failure(machine: Machine, reason: EndReason, detail: str, vcpu: int, exit_: exits.Exit) -> FailureReport:
    """Make the report on vCPU `vcpu`, which left the guest with `exit_`; what cannot be read is left out of it."""
    from pyvmm.debug.report import FailureInputs, FailureReport  # only a crash pays for the disassembler

    engine = machine.engines[vcpu]
    try:
        state = engine.state()
    except PyvmmError:
        state = None
    module = kvm_module()
    info: dict[str, Any] = {"kind": exit_.kind, **exit_.fields()}
    return FailureReport(
        FailureInputs(
            reason=str(reason).replace("-", " "),
            # The report decodes the others itself.
            detail=detail if isinstance(exit_, (exits.SystemEvent, exits.DeviceAction)) else "",
            state=state,
            vcpu=vcpu,
            read=machine.memory.read,
            last_exits=engine.recent_exits(),
            symbols=_symbols(machine.image),
            exit_info=info,
            host={"module": module.name, "paging": module.paging},
        )
    )


def _symbols(image: BootImage | None) -> SymbolTable | None:
    if image is None or image.symbols_path is None:
        return None
    from pyvmm.debug.symbols import SymbolTable

    try:
        with open(image.symbols_path, "rb") as file:
            return SymbolTable.from_elf(file.read())
    except OSError:
        return None  # the file has gone since; the report does without names
