"""`pyvmm lab`: run commands on a KVM host in software, with EPT or NPT as wanted."""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from typing import TYPE_CHECKING, Any

from pyvmm.cli.parser import seconds, size
from pyvmm.errors import UsageError

if TYPE_CHECKING:
    from pyvmm.host.lab import Lab

_STATUS_TIMEOUT = 124
_STATUS_MISSING = 2
_PIECE = 4096  # pipe(7), PIPE_BUF: a pipe that is ready takes so much without blocking


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser(
        "run",
        help="run a command in a lab",
        description="Start a lab, run a command in it, end the lab. Output, input and exit status are the command's. "
        "It sees this host's files under the same names; what it writes is gone afterwards, except below --share.",
        epilog="example: pyvmm lab run --set npt=off -- python3 -m pyvmm host",
    )
    run.add_argument(
        "--cpu", choices=("amd", "intel"), default="amd", help="kvm_amd under QEMU (default), or kvm_intel under Bochs"
    )
    _common(run)
    run.add_argument("--timeout", type=seconds, metavar="S", help="kill the command after S seconds, with status 124")
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND...", help="the command and its arguments")
    shell = actions.add_parser(
        "shell",
        help="a shell in an AMD lab",
        description="Start an AMD lab and a shell in it, on this terminal.",
    )
    _common(shell)
    shell.set_defaults(cpu="amd")
    check = actions.add_parser(
        "check",
        help="say what the labs need and whether it is there",
        description="Say what each lab needs, whether it is there, and which package brings it. "
        "The exit status is 0 if everything is there, else 2.",
    )
    check.add_argument("--cpu", choices=("amd", "intel"), help="this lab only")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="parameter of the KVM modules, as npt=off, ept=on, vpid=off, tdp_mmu=off; repeatable",
    )
    parser.add_argument("--mem", type=size, default=2 << 30, metavar="SIZE", help="RAM of the lab (default 2G)")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="CPUs of the lab (default 1; amd only)")
    parser.add_argument("--share", metavar="DIR", help="folder of this host that the command may write to")


def run(options: argparse.Namespace) -> int:
    """Do what the action says."""
    if options.action == "check":
        return _check(options.cpu)
    argv = options.argv[1:] if options.action == "run" and options.argv[:1] == ["--"] else getattr(options, "argv", [])
    if options.action == "run" and not argv:
        raise UsageError("there is no command to run: pyvmm lab run [options] -- COMMAND...")
    if options.action == "shell" and not (os.isatty(0) and os.isatty(1)):
        raise UsageError("a shell needs a terminal: use pyvmm lab run -- COMMAND...")
    lab = _lab(options)
    return _shell(lab) if options.action == "shell" else _run(lab, argv, options.timeout)


def _lab(options: argparse.Namespace) -> Lab:
    from pyvmm.host.lab import Lab
    from pyvmm.host.lab.kernel import lab_kernel
    from pyvmm.host.lab.packages import require
    from pyvmm.host.lab.settings import parse_settings

    settings: dict[str, Any] = {
        name: value
        for module in parse_settings(options.cpu, options.settings).values()
        for name, value in module.items()
    }
    lab = Lab(options.cpu, memory=options.mem, cpus=options.cpus, share=options.share, **settings)
    require(options.cpu)
    lab_kernel(say=_say)  # here, and not by the lab alone, to say so if it takes long
    return lab


def _run(lab: Lab, argv: list[str], timeout: float | None) -> int:
    with lab:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            return lab.run(
                argv, timeout=timeout, input=0, stdout=_Output(1, deadline), stderr=_Output(2, deadline)
            ).status
        except _TimeUpError:
            return _STATUS_TIMEOUT


def _shell(lab: Lab) -> int:
    import signal
    import termios
    import tty

    _say("starting an AMD lab")
    with lab:
        before = termios.tcgetattr(0)
        resized = signal.signal(signal.SIGWINCH, lambda *_: lab.resize(*_window()))
        try:
            tty.setraw(0)
            terminal = {"TERM": os.environ.get("TERM", "dumb")}
            return lab.run([_shell_program()], env=terminal, input=0, stdout=_Output(1, None), size=_window()).status
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
            signal.signal(signal.SIGWINCH, resized)


def _window() -> tuple[int, int]:
    columns, rows = os.get_terminal_size(1)
    return rows, columns


def _shell_program() -> str:
    return next((path for path in (os.environ.get("SHELL", ""), "/bin/bash") if os.access(path, os.X_OK)), "/bin/sh")


class _TimeUpError(Exception):
    """The command's time is up while its output waits for a reader."""


class _Output:
    """Passes the command's output on at once, without waiting for a stalled reader longer than the command may run."""

    def __init__(self, fd: int, deadline: float | None) -> None:
        self._fd = fd
        self._deadline = deadline

    def __call__(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            wait = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            if not select.select([], [self._fd], [], wait)[1]:
                raise _TimeUpError
            try:
                view = view[os.write(self._fd, view[:_PIECE]) :]
            except BlockingIOError:
                time.sleep(0.001)  # ready, yet with less room than a piece


def _check(cpu: str | None) -> int:
    from pyvmm.host.lab.packages import install_hint, lab_parts

    parts = lab_parts(cpu)
    for lab in ("amd", "intel") if cpu is None else (cpu,):
        needed = lab_parts(lab)
        missing = [part for part in needed if part.path is None]
        print(f"{lab} lab: {'ready' if not missing else f'{len(missing)} of {len(needed)} parts missing'}")
        width = max(len(part.name) for part in parts)
        for part in needed:
            state = "missing" if part.path is None else "found  "
            print(f"  {state} {part.name:{width}}  {part.path or part.package:44}  {part.purpose}")
    missing = [part for part in parts if part.path is None]
    if missing:
        print(f"\nTo install what is missing: {install_hint(missing)}")
    return _STATUS_MISSING if missing else 0


def _say(text: str) -> None:
    sys.stderr.write(f"pyvmm: {text}\n")
    sys.stderr.flush()
