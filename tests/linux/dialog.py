"""Boot a stock Linux kernel to the shell of a busybox initrd, and talk to it over the serial console."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm import Machine, MemoryConsole, Result

KERNELS = ("vmlinuz-amd64", "vmlinuz-cloud-amd64")
"""Debian's flavours: for PCs, and for virtual machines."""
PROMPT = r"/root # "
LIMIT = 400
"""Seconds: some twenty times what a boot takes in the AMD lab, three times what one takes in the Intel lab."""


def image(name: str) -> str:
    """Return the path of a kernel or initrd in the folder $PYVMM_LINUX, which `tests.everywhere` fills."""
    folder = os.environ.get("PYVMM_LINUX")
    if folder is None:
        pytest.fail(
            "PYVMM_LINUX does not name a folder with kernels; run `make test`, which provides them", pytrace=False
        )
    return str(Path(folder) / name)


class Shell:
    """A guest that runs, and the shell on its console."""

    def __init__(self, vm: Machine, console: MemoryConsole, end: Future[Result]) -> None:
        self.vm = vm
        self.console = console
        self._end = end

    def __call__(self, command: str) -> str:
        """Type a command and return what it printed, with neither its echo nor the next prompt."""
        self.type(command)
        text = self.wait()
        # The shell's line editor breaks a long line where the terminal ends, so the echo is the command with more in between.
        at = -1
        for character in command:
            at = text.index(character, at + 1)
        return text[at + 1 :].strip("\n")

    def wait(self) -> str:
        """Wait for the next prompt and return the output up to it."""
        prompt = self.console.expect(PROMPT, timeout=LIMIT)
        text = prompt.string[: prompt.start()]
        return text.replace("\r", "")

    def type(self, command: str) -> None:
        """Type a command and expect nothing."""
        self.console.send(command + "\n")

    def end(self) -> Result:
        """Wait until the guest has ended."""
        return self._end.result(LIMIT)


@contextmanager
def booted(
    kernel: str,
    cpus: int = 1,
    *,
    initrd: str | None = "initrd.cpio",
    cmdline: str = "console=ttyS0",
    memory: str = "256M",
) -> Iterator[Shell]:
    """Boot and yield the guest, which need not have come to a shell yet."""
    console = MemoryConsole()
    with ThreadPoolExecutor(1) as pool, Machine(memory, cpus, console=console) as vm:
        vm.load(image(kernel), cmdline=cmdline, initrd=None if initrd is None else image(initrd))
        end = pool.submit(vm.run, timeout=LIMIT)
        shell = Shell(vm, console, end)
        try:
            yield shell
        except BaseException:
            print(console.text)  # what the kernel said is what explains the failure
            raise
        finally:
            vm.stop()
            futures.wait([end])
