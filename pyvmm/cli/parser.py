"""The argument parser, with errors in one line."""

from __future__ import annotations

import argparse
import os
from typing import Any, NoReturn

from pyvmm.errors import UsageError
from pyvmm.memory.size import parse_size


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Make argparse's formatter, of which it makes one for each option, without the modules that it looks the width up with."""
    try:
        width = os.get_terminal_size().columns
    except OSError:
        width = 80
    return argparse.HelpFormatter(prog, width=width - 2)


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and point to the help."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_formatter, **options)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def size(text: str) -> int:
    """Parse a memory size for argparse."""
    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def address(text: str) -> int:
    """Parse an address or count, decimal or 0x..., for argparse."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number: write 4096 or 0x1000")
    return value


def seconds(text: str) -> float:
    """Parse a positive number of seconds for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write seconds above 0")
    return value
