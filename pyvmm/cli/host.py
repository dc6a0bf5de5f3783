"""`pyvmm host`: what this host's KVM is and how it pages; `set` and `restore` switch that."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from pyvmm.cli.parser import CommandParser, seconds
from pyvmm.host.info import CAPABILITIES, describe_host
from pyvmm.memory.size import format_size

if TYPE_CHECKING:
    from pyvmm.host.switch import Change

_SET = """Change parameters of KVM's modules until the host reboots or the modules are loaded anew. The modules are reloaded where that
is what it takes; their other parameters are kept. All VMs must be closed."""
_RESTORE = "Put back the settings that a switch has left behind whose process was killed."


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--kvm", default="/dev/kvm", metavar="PATH", help="KVM device (default /dev/kvm)")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", parser_class=CommandParser)
    change = actions.add_parser("set", help="change KVM's settings, as npt=off", description=_SET)
    change.add_argument(
        "settings", nargs="+", metavar="NAME=VALUE", help="ept=off, npt=on, tdp_mmu=off...: see `pyvmm host`"
    )
    back = actions.add_parser("restore", help="put back what a killed switch has left", description=_RESTORE)
    for action in (change, back):
        action.add_argument(
            "--wait", type=seconds, default=0.0, metavar="S", help="seconds to wait where another switch is in force"
        )


def run(options: argparse.Namespace) -> int:
    """Print the description, or switch; the status is 2 where KVM cannot be used."""
    if options.action is not None:
        return _set(options) if options.action == "set" else _restore(options)
    host = describe_host(options.kvm)
    print(json.dumps(host, indent=1) if options.json else "\n".join(_lines(host)))
    return 2 if "error" in host["kvm"] else 0


def _set(options: argparse.Namespace) -> int:
    from pyvmm.host.parameters import parse_settings
    from pyvmm.host.switch import left_behind, set_parameters

    settings = parse_settings(options.settings)
    left = left_behind()
    if left is not None and not left.alive():
        print(f"note: {left.describe()}")
    _report(set_parameters(settings, wait=options.wait))
    return 0


def _restore(options: argparse.Namespace) -> int:
    from pyvmm.host.switch import restore

    change = restore(wait=options.wait)
    if change is None:
        print("nothing was left to restore")
    else:
        _report(change)
    return 0


def _report(change: Change) -> None:
    from pyvmm.pykvm.module import kvm_module

    changed = change.changed()
    lines = [f"{name}: {before} -> {after}" for name, (before, after) in changed.items()]
    lines += [f"note: {line}" for line in change.lost]
    how = f" (reloaded: {', '.join(change.reloaded)})" if change.reloaded else ""
    print("\n".join((*(lines or ["nothing to change"]), f"paging: {kvm_module().paging}{how}")))


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
        *([f"switched    {host['switched']}"] if host["switched"] else []),
        "",
        "What could be switched here",
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
