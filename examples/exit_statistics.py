"""Exit statistics as a table: who made the guest leave, how often, and what it cost.

Run: python examples/exit_statistics.py [IMAGE]        (default: guest:timer; needs rich: pip install rich)
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pyvmm import Machine

image = sys.argv[1] if len(sys.argv) > 1 else "guest:timer"

with Machine("64M") as vm:
    vm.load(image)
    result = vm.run(timeout=30)
    statistics = vm.statistics()

table = Table("exit", "where", "device", "count", "us each", title=f"{Path(image).name}: {result}")
for row in statistics.exits:
    where = f"{row.base:#x}" if row.size else ""
    table.add_row(row.kind, where, row.device, str(row.count), f"{row.seconds / row.count * 1e6:.2f}")
Console().print(table)
vcpu = statistics.kvm.get("vcpu0", {})
print(
    "KVM's own counters:",
    ", ".join(f"{name} {vcpu[name]['value']}" for name in ("exits", "io_exits", "irq_injections") if name in vcpu),
)
