"""`pyvmm boot`: run an image until the guest ends."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pyvmm.boot.options import FORMATS, MODES
from pyvmm.cli.files import write_json
from pyvmm.cli.parser import address, seconds, size
from pyvmm.devices.console import Console, parse_console
from pyvmm.errors import UsageError
from pyvmm.machine import IRQCHIPS, Machine, Result
from pyvmm.machine.result import STATUS_USAGE
from pyvmm.memory.region import HUGEPAGE_MODES


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("image", help="kernel image, or guest:NAME for one that comes with pyvmm (`pyvmm guests`)")
    parser.add_argument(
        "-m", "--mem", type=size, default=128 << 20, metavar="SIZE", help="RAM, as 64M or 2G (default 128M)"
    )
    parser.add_argument("-c", "--cpus", type=int, default=1, metavar="N", help="number of vCPUs (default 1)")
    parser.add_argument(
        "-a", "--append", "--cmdline", default="", metavar="TEXT", dest="cmdline", help="kernel command line"
    )
    parser.add_argument("-i", "--initrd", metavar="FILE", help="initial RAM disk")
    parser.add_argument(
        "--module",
        action="append",
        default=[],
        metavar="FILE[ TEXT]",
        help="multiboot or PVH module and its string; repeatable",
    )
    parser.add_argument(
        "--console", default="stdio", metavar="WHERE", help="stdio (default), pty, file:PATH, unix:PATH or none"
    )
    parser.add_argument("--timeout", type=seconds, metavar="S", help="end the run after S seconds, with status 124")
    parser.add_argument("--max-exits", type=address, metavar="N", help="end the run after N exits")
    parser.add_argument(
        "--stats", metavar="FILE", help="write result, exit counts, KVM's counters and the host as JSON"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say what was loaded where")
    parser.add_argument("-q", "--quiet", action="store_true", help="no closing line")
    image = parser.add_argument_group("image")
    image.add_argument("--format", choices=FORMATS, help="do not detect the format")
    image.add_argument("--mode", choices=MODES, help="CPU mode that a flat image starts in (default real)")
    image.add_argument(
        "--load-addr", type=address, metavar="GPA", help="where a flat image goes (default 0x7c00 real, else 1 MiB)"
    )
    image.add_argument(
        "--entry", type=address, metavar="GPA", help="where it starts (default: the image's entry or load address)"
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--irqchip", choices=IRQCHIPS, default="kernel", help="interrupt controller (default kernel)")
    machine.add_argument(
        "--hugepages", choices=HUGEPAGE_MODES, default="auto", help="back RAM with huge pages (default auto)"
    )
    machine.add_argument(
        "--paging", metavar="HOW", help="run only if KVM pages with ept, npt or kvm-shadow: `pyvmm host set` switches"
    )
    machine.add_argument(
        "--no-panic-watch",
        action="store_false",
        dest="panic_watch",
        help="do not end the run when the console shows a Linux kernel panic",
    )
    machine.add_argument("--kvm", default="/dev/kvm", metavar="PATH", help="KVM device (default /dev/kvm)")


def run(options: argparse.Namespace) -> int:
    """Boot, run, report; return the guest's exit status."""
    if options.paging is not None:
        from pyvmm.machine.paging import require_paging

        require_paging(options.paging)
    modules = [_module(text) for text in options.module]
    stats = None if options.stats is None else write_json(options.stats)
    console = parse_console(options.console)
    try:
        if options.console == "pty":
            _say(f"pyvmm: the console is {getattr(console, 'path', '?')}")
        with Machine(
            options.mem,
            options.cpus,
            console=console,
            irqchip=options.irqchip,
            hugepages=options.hugepages,
            kvm=options.kvm,
            panic_watch=options.panic_watch,
        ) as vm:
            loaded = vm.load(
                options.image,
                cmdline=options.cmdline,
                initrd=options.initrd,
                modules=modules,
                format=options.format,
                mode=options.mode,
                load_addr=options.load_addr,
                entry=options.entry,
            )
            if options.verbose:
                _say(loaded.describe())
            try:
                result = vm.run(timeout=options.timeout, max_exits=options.max_exits)
            finally:
                console.close()
                if stats is not None and vm.result is not None:
                    stats(_statistics(vm, options))
            _close(result, options.quiet)
            return _lost_output(console) or result.status
    finally:
        console.close()


def _lost_output(console: Console) -> int:
    """Say so if the guest's output could not be written; a reader that has seen enough and gone is no error."""
    if console.error is None or isinstance(console.error, BrokenPipeError):
        return 0
    _say(f"pyvmm: console output was lost: {console.error.strerror}")
    return STATUS_USAGE


def _module(text: str) -> tuple[str, str]:
    path, _, string = text.partition(" ")
    if not path:
        raise UsageError(f"--module {text!r}: name a file, then its string")
    return path, string


def _statistics(vm: Machine, options: argparse.Namespace) -> dict[str, Any]:
    from pyvmm._version import __version__
    from pyvmm.host.info import describe_host

    result = vm.result
    lost = vm.console.error
    return {
        "pyvmm": __version__,
        "arguments": {name: value for name, value in vars(options).items() if name != "command"},
        "image_format": None if vm.image is None else vm.image.format,
        "console_error": None if lost is None else lost.strerror,
        "result": None if result is None else result.to_dict(),
        "statistics": vm.statistics().to_dict(),
        "memory": {"size": vm.memory.size, "slots": [_slot(vm, slot.number) for slot in vm.slots]},
        "host": describe_host(options.kvm),
    }


def _slot(vm: Machine, number: int) -> dict[str, Any]:
    region = next(slot.region for slot in vm.slots if slot.number == number)
    hpa = vm.memory.hpa(region.gpa)
    return {"number": number, "gpa": region.gpa, "size": region.size, "hva": region.hva, "hpa_of_first_page": hpa}


def _close(result: Result, quiet: bool) -> None:
    if result.report is not None:
        _say(result.report.text())
    if not quiet:
        _say(f"pyvmm: {result}, after {result.seconds:.3f} s and {result.exits} exits")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
