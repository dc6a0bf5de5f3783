"""Kernel panics end a run as what they are: guests of a few bytes that print what Linux prints, and then do what it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm import EndReason, Machine, Result

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

SPIN = "ebfe"
RESET = "b0fee664 ebfe"  # the keyboard controller pulls the reset line
POWER_OFF = "ba0406 b80034 ef ebfe"  # PM1a_CNT: SLP_EN, and the type of soft off
PVPANIC = "ba0505 b001 ee ebfe"
HALT = "fa f4"
PANIC = (
    "[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n[    1.0] CPU: 0\r\n"
)
END = "[    1.1] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0) ]---\r\n"


def printer(text: str, then: str, port: int = 0x3F8) -> bytes:
    """Make a real-mode guest, to be loaded at 0x1000, that prints `text` and goes on with the code `then`."""
    tail = bytes.fromhex(then)
    # mov si, text; mov dx, port; 1: lodsb; test al, al; jz 2f; out dx, al; jmp 1b; 2:
    at = 0x1000 + 14 + len(tail)
    code = (
        b"\xbe"
        + at.to_bytes(2, "little")
        + b"\xba"
        + port.to_bytes(2, "little")
        + bytes.fromhex("ac 84c0 7403 ee ebf8")
    )
    return code + tail + text.encode() + b"\0"


def run(text: str, then: str, port: int = 0x3F8, timeout: float = 20, watch: bool = True) -> Result:
    with Machine("1M", panic_watch=watch) as vm:
        vm.load(printer(text, then, port), format="flat", mode="real", load_addr=0x1000)
        return vm.run(timeout=timeout)


@pytest.mark.parametrize("port", [0x3F8, 0xE9])
def test_a_kernel_that_loops_after_its_panic(port: int) -> None:
    result = run("Linux version\r\n" + PANIC + END, SPIN, port)
    assert (result.reason, result.status, result.report) == (EndReason.PANIC, 1, None)
    assert str(result).startswith(
        "the guest kernel panicked: VFS: Unable to mount root fs on unknown-block(0,0); no root file"
    )
    assert "\n" not in str(result)


@pytest.mark.parametrize("then", [RESET, POWER_OFF, HALT, PVPANIC])
def test_a_kernel_that_resets_after_its_panic_has_not_rebooted(then: str) -> None:
    result = run(PANIC, then)
    assert (result.reason, result.status, result.report) == (EndReason.PANIC, 1, None)
    assert "Unable to mount root fs" in result.detail


@pytest.mark.parametrize(
    ("then", "reason"), [(RESET, EndReason.RESET), (POWER_OFF, EndReason.POWER_OFF), (HALT, EndReason.HALT)]
)
def test_other_ends_without_a_panic(then: str, reason: EndReason) -> None:
    result = run("# echo Kernel panic - not syncing: in the middle of a line\r\n", then)
    assert (result.reason, result.status) == (reason, 0)


def test_the_watch_can_be_switched_off() -> None:
    assert run(PANIC + END, RESET, watch=False).reason is EndReason.RESET


def test_a_panic_that_goes_on_for_ever_is_a_timeout() -> None:
    assert run(PANIC, SPIN, timeout=0.5).reason is EndReason.TIMEOUT


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    guest = tmp_path / "guest.bin"
    guest.write_bytes(printer(PANIC + END, SPIN))
    command = [
        sys.executable,
        "-m",
        "pyvmm",
        "boot",
        str(guest),
        "--format",
        "flat",
        "--load-addr",
        "0x1000",
        "--timeout",
        "20",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert done.stdout == (PANIC + END).replace("\r\n", "\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "pyvmm: the guest kernel panicked: VFS: Unable to mount root fs on unknown-block(0,0); no root"
    )
    done = subprocess.run(
        [*command, "--no-panic-watch", "--max-exits", "2000000", "--timeout", "0.5"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 124
