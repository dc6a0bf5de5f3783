"""`pyvmm`: pick the command, turn every foreseen failure into one line and an exit status.

Nothing but the standard library's small change is imported at the top: Ctrl-C during the imports must not be a traceback.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn, Protocol, cast

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

COMMANDS = {
    "boot": "boot a kernel",
    "guests": "list the guests that come with pyvmm",
    "initrd": "make an initial RAM file system with busybox, for a Linux kernel",
    "host": "say what this host's KVM can do, and switch EPT and NPT",
    "lab": "run commands on a KVM host in software, with EPT or NPT as wanted",
    "bench": "measure pyvmm on this host",
}
_STATUS_USAGE = 2
_STATUS_SIGNAL = 128


class Command(Protocol):
    """What a command's module has to offer."""

    def configure(self, parser: ArgumentParser) -> None:
        """Declare the command's options."""

    def run(self, options: Namespace) -> int:
        """Do the work and return the exit status."""


def main(arguments: list[str]) -> int:
    """Run one command and return its exit status: see `pyvmm --help` for what each number means."""
    from pyvmm.errors import PyvmmError, Terminated

    try:
        options = _parse(arguments)
        status = _command(options.command).run(options)
        sys.stdout.flush()
        return status
    except PyvmmError as error:
        return _fail(str(error))
    except Terminated as error:
        return _STATUS_SIGNAL + error.signal
    except BrokenPipeError:
        _discard_output()
        return 0  # the reader of our output has seen enough
    except OSError as error:
        _discard_output()
        return _fail(f"cannot write the output: {error.strerror or error}")


def _parse(arguments: list[str]) -> Namespace:
    from pyvmm._version import __version__
    from pyvmm.cli.parser import CommandParser

    parser = CommandParser(
        prog="pyvmm",
        description="A virtual machine monitor on /dev/kvm, and a laboratory for memory virtualization.",
        epilog="exit status: 0 done, or the guest ended by choice; 1 the guest crashed; 2 bad usage, image or host; "
        "124 time limit; (value << 1) | 1 debug-exit port, as QEMU; 128 + N signal N, as 130 for Ctrl-C",
    )
    parser.add_argument("--version", action="version", version=f"pyvmm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # Only the command that is asked for is imported: start-up counts.
    asked = next((word for word in arguments if not word.startswith("-")), "")
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == asked:
            _command(name).configure(sub)
    return parser.parse_args(arguments)


def _command(name: str) -> Command:
    from importlib import import_module

    return cast(Command, import_module(f"pyvmm.cli.{name}"))


def _fail(message: str) -> int:
    sys.stderr.write(f"pyvmm: {' '.join(message.split())}\n")
    return _STATUS_USAGE


def _discard_output() -> None:
    """Let what is left in the buffer of standard output go, or it would raise again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _open_standard_streams() -> None:
    """Open /dev/null where standard input, output or error is closed.

    Else the next file that is opened takes the number: KVM, or the guest's memory, which console output would overwrite.
    """
    for fd, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # stays open to the end
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _raise_on_signals() -> None:
    """Make SIGTERM and its like exceptions, so that every `finally` on the way out runs and the terminal is given back."""
    import signal

    from pyvmm.errors import Terminated

    def terminate(number: int, _frame: object) -> None:
        raise Terminated(number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, terminate)


def entry() -> NoReturn:
    """Run the command of this process."""
    try:
        _open_standard_streams()
        _raise_on_signals()
        status = main(sys.argv[1:])
    except KeyboardInterrupt as error:
        status = _STATUS_SIGNAL + getattr(error, "signal", 2)
    sys.exit(status)
