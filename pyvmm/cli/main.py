"""`pyvmm`: pick the command, turn every foreseen failure into one line and an exit status."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from typing import NoReturn, Protocol, cast

from pyvmm._version import __version__
from pyvmm.cli.parser import CommandParser
from pyvmm.errors import PyvmmError, Terminated

COMMANDS = {
    "boot": "boot a kernel",
    "guests": "list the guests that come with pyvmm",
    "host": "say what this host's KVM can do",
    "bench": "measure pyvmm on this host",
}
_STATUS_USAGE = 2
_STATUS_SIGINT = 130
_STATUS_SIGTERM = 143


def main(arguments: list[str]) -> int:
    """Run one command and return its exit status: see `pyvmm --help` for what each number means."""
    parser = CommandParser(
        prog="pyvmm",
        description="A virtual machine monitor on /dev/kvm, and a laboratory for memory virtualization.",
        epilog="exit status: 0 done, or the guest ended by choice; 1 the guest crashed; 2 bad usage, image or host; "
        "124 time limit; (value << 1) | 1 debug-exit port, as QEMU; 130 Ctrl-C; 143 SIGTERM",
    )
    parser.add_argument("--version", action="version", version=f"pyvmm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # Only the command that is asked for is imported: start-up counts.
    asked = next((word for word in arguments if not word.startswith("-")), "")
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == asked:
            _command(name).configure(sub)
    options = parser.parse_args(arguments)
    try:
        status = _command(options.command).run(options)
        sys.stdout.flush()
        return status
    except PyvmmError as error:
        sys.stderr.write(f"pyvmm: {' '.join(str(error).split())}\n")
        return _STATUS_USAGE
    except Terminated:
        return _STATUS_SIGTERM
    except KeyboardInterrupt:
        return _STATUS_SIGINT
    except BrokenPipeError:
        # The reader of our output has gone; what is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class Command(Protocol):
    """What a command's module has to offer."""

    def configure(self, parser: ArgumentParser) -> None:
        """Declare the command's options."""

    def run(self, options: Namespace) -> int:
        """Do the work and return the exit status."""


def _command(name: str) -> Command:
    from importlib import import_module

    return cast(Command, import_module(f"pyvmm.cli.{name}"))


def entry() -> NoReturn:
    """Run the command of this process."""
    sys.exit(main(sys.argv[1:]))
