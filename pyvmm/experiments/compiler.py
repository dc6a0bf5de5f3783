"""Compile a C program that comes with pyvmm: the floors that its own costs are compared with."""

from __future__ import annotations

import os
import shutil
import subprocess

from pyvmm.errors import HostError


def compile_c(name: str, folder: str) -> str:
    """Compile `NAME.c` of this package with optimisation into `folder` and return the program's path.

    Raises:
        HostError: there is no C compiler, or it fails (as without the kernel's headers).
    """
    compiler = next((path for path in map(shutil.which, ("cc", "gcc", "clang")) if path), None)
    if compiler is None:
        raise HostError("this measurement compares with C and needs a compiler: install gcc and libc6-dev")
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.c")
    program = os.path.join(folder, name)
    done = subprocess.run([compiler, "-O2", "-o", program, source], capture_output=True, text=True, check=False)
    if done.returncode:
        first = (done.stderr.strip() or "no message").splitlines()[0]
        raise HostError(f"{compiler} cannot compile {source}: {first}")
    return program
