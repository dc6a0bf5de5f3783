"""The same Linux with and without EPT/NPT: what the hardware's second dimension of page tables saves, counted.

Run: python examples/linux_with_and_without.py [amd] [intel]      (default: both; the Intel lab takes some minutes)

Needs neither an Intel nor an AMD host: each boot runs under the real kvm_intel or kvm_amd in a lab (`pyvmm lab check`
says what that needs). Counts are facts of the module and the guest; seconds are those of the lab's emulator.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from pyvmm.boot.cpio import busybox_initrd
from pyvmm.host.lab import Lab
from pyvmm.host.lab.kernel import lab_kernel

# Processes come and go: each one is an address space that is made, filled on demand and torn down.
INIT = """#!/bin/busybox sh
/bin/busybox echo user space
for i in 1 2 3 4 5 6 7 8 9 10; do /bin/busybox true; done
/bin/busybox poweroff -f
"""
SWITCHES = {"amd": "npt", "intel": "ept"}
BOOT = ["-m", "pyvmm", "boot", "vmlinuz", "-m", "128M", "--initrd", "initrd", "--append", "console=ttyS0 quiet"]
WHY = {
    "pf_guest": "page faults of the guest that KVM had to pass on to it: with two-dimensional paging the CPU delivers them by itself",
    "invlpg": "the guest's own table is the one that the CPU walks, so invalidating an entry of it concerns nobody else",
    "mmu_pte_write": "writes to guest page tables that KVM had to see, to keep its shadow of them true: there is no shadow to keep",
    "mmu_shadow_zapped": "shadow tables thrown away, because the guest changed or freed what they mirrored",
    "mmu_unsync": "shadow tables that were let go out of step until the guest's next flush",
    "tlb_flush": "flushes that KVM made: many follow a change of a shadow table, or a CR3 load that left the guest",
}
COUNTERS = ("exits", "io_exits", "irq_exits", "halt_exits", "pf_taken", "pf_fixed", *WHY)


def boot(cpu: str, on: bool, folder: Path) -> dict[str, int | float]:
    """Boot the guest in a lab; return its seconds, exits by kind and KVM's counters."""
    with Lab(cpu, share=str(folder), **{SWITCHES[cpu]: on}) as lab:
        lab.run([sys.executable, *BOOT, "--stats", "stats.json"], cwd=str(folder), check=True)
    run = json.loads((folder / "stats.json").read_text())
    column: dict[str, int | float] = {"seconds": run["result"]["seconds"]}
    for row in run["statistics"]["exits"]:
        kind = f"exit to pyvmm: {row['kind']}"
        column[kind] = column.get(kind, 0) + row["count"]
    groups = run["statistics"]["kvm"]
    for name in COUNTERS:
        column[name] = sum(group[name]["value"] for group in groups.values() if name in group)
    return column


def main() -> None:
    """Boot under each setting, then print the columns and what they mean."""
    columns: dict[str, dict[str, int | float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(lab_kernel("cloud-amd64").vmlinuz, folder / "vmlinuz")
        (folder / "initrd").write_bytes(busybox_initrd(INIT))
        for cpu in sys.argv[1:] or SWITCHES:
            for on in (True, False):
                columns[f"{SWITCHES[cpu]}={'on' if on else 'off'}"] = boot(cpu, on, folder)
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    print(f"\n{'':28}" + "".join(f"{title:>12}" for title in columns))
    for name in names:
        print(f"{name:28}" + "".join(f"{column.get(name, 0):>12,.6g}" for column in columns.values()))
    titles = list(columns)
    for nested, shadow in zip(titles[::2], titles[1::2], strict=True):
        print(f"\nNothing under {nested}, paid for under {shadow}:")
        for name, why in WHY.items():
            if columns[nested][name] == 0 < columns[shadow][name]:
                print(f"  {name} {columns[shadow][name]:,}: {why}")


if __name__ == "__main__":
    main()
