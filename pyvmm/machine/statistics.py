"""What a machine has counted: exits by kind, place and device, and KVM's own counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyvmm.engine.base import Engine
from pyvmm.pykvm import KvmError, MissingCapability, Vcpu, Vm


@dataclass(frozen=True, slots=True)
class ExitCount:
    """Exits of one kind from one place, over all vCPUs.

    Attributes:
        kind: `pio-in`, `pio-out`, `mmio-read`, `mmio-write`, `halt`, `interrupted`, ...
        base: port or first address; 0 where the kind has no place.
        size: length of the range in bytes.
        device: who answered; `-` for nobody.
        count: number of exits.
        seconds: time that devices took to answer them all; past some hundred exits an estimate from samples, as
            `pyvmm.engine.bindings` tells.
    """

    kind: str
    base: int
    size: int
    device: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of a machine's counters, taken while no vCPU runs.

    Attributes:
        exits: one row for each kind and place, most frequent first.
        guest_seconds: time that each vCPU ran, less that of the devices: the guest, KVM, and the exit loop (under 1 us an exit).
        kvm: KVM's counters (KVM_GET_STATS_FD) of the VM and of each vCPU: by name, a `value`, its `unit` and `kind`, and the
            `buckets` of a histogram; empty where KVM has none to give.
    """

    exits: tuple[ExitCount, ...]
    guest_seconds: tuple[float, ...]
    kvm: dict[str, dict[str, Any]]

    @property
    def total(self) -> int:
        """Count all exits, kicks left out: those depend on the clock, the others on the guest alone."""
        return sum(row.count for row in self.exits if row.kind != "interrupted")

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON's types."""
        return {
            "total": self.total,
            "guest_seconds": [round(seconds, 6) for seconds in self.guest_seconds],
            "device_seconds": round(sum(row.seconds for row in self.exits), 6),
            "exits": [
                {
                    "kind": row.kind,
                    "address": row.base,
                    "size": row.size,
                    "device": row.device,
                    "count": row.count,
                    "seconds": round(row.seconds, 9),
                }
                for row in self.exits
            ],
            "kvm": self.kvm,
        }


def take(engines: Sequence[Engine], vm: Vm, vcpus: Sequence[Vcpu]) -> Statistics:
    """Add up the cells of all vCPUs and read KVM's counters."""
    sums: dict[tuple[str, int, int, str], list[float]] = {}
    for engine in engines:
        for cell in engine.dispatcher.cells.values():
            row = sums.setdefault((cell.kind, cell.base, cell.size, cell.device), [0, 0.0])
            row[0] += cell.count
            row[1] += cell.seconds
    rows = [ExitCount(*place, int(count), seconds) for place, (count, seconds) in sums.items() if count]
    rows.sort(key=lambda row: (-row.count, row.kind, row.base))
    sources: dict[str, Vm | Vcpu] = {"vm": vm, **{f"vcpu{vcpu.id}": vcpu for vcpu in vcpus}}
    return Statistics(
        tuple(rows),
        tuple(_guest_seconds(engine) for engine in engines),
        {name: _kvm(source) for name, source in sources.items()},
    )


def _guest_seconds(engine: Engine) -> float:
    return engine.run_seconds - sum(cell.seconds for cell in engine.dispatcher.cells.values())


def _kvm(source: Vm | Vcpu) -> dict[str, Any]:
    try:
        with source.stats_fd() as stats:
            return {
                name: {"value": stat.value, "unit": stat.descriptor.unit_text, "kind": stat.descriptor.kind}
                | ({"buckets": list(stat.values)} if len(stat.values) > 1 else {})
                for name, stat in stats.read().items()
            }
    except (MissingCapability, KvmError):
        return {}
