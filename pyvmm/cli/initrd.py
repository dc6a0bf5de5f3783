"""`pyvmm initrd`: make an initial RAM file system with busybox, to try a Linux kernel with."""

from __future__ import annotations

import argparse

from pyvmm.boot.cpio import SHELL_INIT, busybox_initrd
from pyvmm.cli.files import write_file
from pyvmm.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("output", help="file to write, for `pyvmm boot --initrd`")
    parser.add_argument(
        "--init", metavar="SCRIPT", help="file with the shell script that runs as /init (default: a root shell)"
    )
    parser.add_argument("--busybox", metavar="FILE", help="static busybox (default: the one on PATH)")


def run(options: argparse.Namespace) -> int:
    """Write the archive."""
    write = write_file(options.output)
    init = SHELL_INIT
    if options.init is not None:
        try:
            with open(options.init, encoding="utf-8") as file:
                init = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{options.init}: {getattr(error, 'strerror', None) or 'not text'}") from error
        if not init.startswith("#!"):
            raise UsageError(f"{options.init}: not a script; start it with #!/bin/busybox sh")
    write(busybox_initrd(init, options.busybox))
    return 0
