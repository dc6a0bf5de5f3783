"""`pyvmm host`: what this host's KVM is, how it pages, and what could be switched."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pyvmm.host.info import CAPABILITIES, describe_host
from pyvmm.memory.size import format_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--kvm", default="/dev/kvm", metavar="PATH", help="KVM device (default /dev/kvm)")


def run(options: argparse.Namespace) -> int:
    """Print the description; the status is 2 where KVM cannot be used."""
    host = describe_host(options.kvm)
    print(json.dumps(host, indent=1) if options.json else "\n".join(_lines(host)))
    return 2 if "error" in host["kvm"] else 0


def _lines(host: dict[str, Any]) -> list[str]:
    kvm, cpu, memory = host["kvm"], host["cpu"], host["memory"]
    pages = memory["hugepages"]
    lines = [
        f"KVM         {kvm['error']}"
        if "error" in kvm
        else f"KVM         {kvm['device']}, API version {kvm['api_version']}",
        f"module      {kvm['module']}",
        f"paging      {kvm['paging']}",
        f"CPU         {cpu['model']}, {cpu['cpus']} CPUs ({' '.join(cpu['flags'])})",
        f"kernel      {host['kernel']}",
        f"memory      {format_size(memory['total'])}",
        f"huge pages  2 MiB: {pages['2M_free']} free of {pages['2M_total']}; "
        f"transparent: {pages['thp']}, for shared memory {pages['thp_shmem']}",
        "",
        "Paging that could be switched here",
    ]
    for row in host["switch"]:
        can = "yes" if row["possible"] else "no "
        lines.append(f"  {can} {row['module']}.{row['parameter']} = {row['value']}: {row['reason']}")
    if "capabilities" in kvm:
        lines += ["", "Capabilities"]
        for cap, purpose in CAPABILITIES.items():
            value = kvm["capabilities"][cap.name]
            lines.append(f"  {value or 'no':>8}  {cap.name:28} {purpose}")
    lines += ["", "Parts of the lab"]
    for name, part in host["lab"].items():
        lines.append(f"  {'found  ' if part['path'] else 'missing'} {name:20} {part['for']}")
    return lines
