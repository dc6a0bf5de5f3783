"""`pyvmm guests`: list the guests that come with pyvmm."""

from __future__ import annotations

import argparse

from pyvmm.errors import HostError
from pyvmm.machine.guests import list_guests


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options: none."""


def run(options: argparse.Namespace) -> int:
    """Print name and path of each guest."""
    guests = list_guests()
    if not guests:
        raise HostError("no guests are built: run make -C guests, which needs gcc and binutils")
    width = max(map(len, guests))
    for name, path in guests.items():
        print(f"{name:{width}}  {path}")
    print("\nBoot one with: pyvmm boot guest:NAME")
    return 0
