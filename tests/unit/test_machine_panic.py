"""Recognizing a kernel panic on a console, whatever else is written there and however it is cut up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.machine.control import Control
from pyvmm.machine.panic import PanicWatch
from pyvmm.machine.result import EndReason, Result

MOUNT = "VFS: Unable to mount root fs on unknown-block(0,0)"
PREFIXES = ["", "[    1.234567] ", "[  101.000001][    T1] ", "<0>[    1.234567] ", "[    1.234567] [   C0] ", "<0>"]


class Seen:
    """A watch, and what it reported."""

    def __init__(self) -> None:
        self.panics: list[str] = []
        self.ends: list[str] = []
        self.watch = PanicWatch(self.panics.append, self.ends.append)

    def feed(self, text: str | bytes) -> None:
        self.watch.feed(text.encode() if isinstance(text, str) else text)


def panic(reason: str, prefix: str = "[    1.234567] ", end: bool = True, before: str = "") -> str:
    lines = [*before.splitlines(), f"Kernel panic - not syncing: {reason}", "CPU: 0 PID: 1 Comm: swapper/0"]
    if end:
        lines.append(f"---[ end Kernel panic - not syncing: {reason} ]---")
    return "".join(f"{prefix}{line}\r\n" for line in lines)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_that_kernels_print(prefix: str) -> None:
    seen = Seen()
    seen.feed(panic("Fatal exception", prefix))
    assert seen.panics == seen.ends == ["Fatal exception"] == [seen.watch.reason]


def test_without_end_marker_the_kernel_may_go_on_to_reset() -> None:
    seen = Seen()
    seen.feed(panic("Fatal exception", end=False))
    assert (seen.panics, seen.ends) == (["Fatal exception"], [])


@pytest.mark.parametrize(
    ("before", "reason", "words"),
    [
        ("", MOUNT, "no root file system: give an initrd that has an /init with --initrd, or name a disk with root="),
        (
            "Trying to unpack rootfs image as initramfs...\n"
            "Initramfs unpacking failed: invalid magic at start of compressed archive\n" + "something\n" * 300,
            MOUNT,
            "Initramfs unpacking failed: invalid magic at start of compressed archive: give a good initrd with --initrd",
        ),
        ("", "No working init found.  Try passing init= option to kernel.", "put a program that can run"),
        ("Failed to execute /init (error -8)", "No working init found.", "Failed to execute /init (error -8)"),
        ("", "Requested init /nope failed (error -2).", "put a program that can run"),
        ("", "Attempted to kill init! exitcode=0x00000300", "process 1 ended with status 3"),
        ("", "Attempted to kill init! exitcode=0x0000000b", "process 1 was killed by signal 11"),
        ("", "System is deadlocked on memory", "give the guest more memory with --mem"),
        (
            "BUG: kernel NULL pointer dereference, address: 0000000000000008\nOops: 0002 [#1] PREEMPT SMP",
            "Fatal exception",
            "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        ),
    ],
)
def test_lines_before_it_explain_it(before: str, reason: str, words: str) -> None:
    seen = Seen()
    for line in panic(reason, before=before).splitlines(keepends=True):
        seen.feed(line)
    assert seen.panics[0].startswith(f"{reason}; {words}")
    assert seen.ends == seen.panics


def test_only_the_first_panic_counts() -> None:
    seen = Seen()
    seen.feed(panic("one") + panic("two"))
    assert seen.panics == ["one"]
    assert set(seen.ends) == {"one"}


@pytest.mark.parametrize(
    "line",
    [
        "~ # echo Kernel panic - not syncing: joke",
        "Rebooting after Kernel panic - not syncing",
        "kernel panic - not syncing: lower case",
        "Kernel panic - not syncing elsewhere: no colon",
        "---[ end Kernel panic - not syncing: never began ]---",
        "[1.2] x Kernel panic - not syncing: y",
    ],
)
def test_lines_that_are_none(line: str) -> None:
    seen = Seen()
    seen.feed(f"{line}\n")
    assert (seen.panics, seen.ends) == ([], [])


def test_a_reason_is_one_short_printable_line() -> None:
    seen = Seen()
    seen.feed(b"Kernel panic - not syncing: \x1b[31m\xff" + b"x" * 900 + b"\r\n")
    assert len(seen.panics[0]) < 220
    assert seen.panics[0].isprintable()
    seen = Seen()
    seen.feed(b"Kernel panic - not syncing\n")
    assert seen.panics == ["no reason given"]


@given(
    before=st.binary(max_size=200).filter(lambda data: b"Kernel panic" not in data),
    after=st.binary(max_size=200).filter(lambda data: b"Kernel panic" not in data),
    cuts=st.lists(st.integers(0, 1000), max_size=20),
    prefix=st.sampled_from(PREFIXES),
)
def test_it_is_found_however_the_output_is_cut(before: bytes, after: bytes, cuts: list[int], prefix: str) -> None:
    seen = Seen()
    data = before + b"\n" + panic("Fatal exception", prefix).encode() + after
    start = 0
    for cut in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        seen.watch.feed(data[start:cut])
        start = cut
    assert [reason.partition(";")[0] for reason in seen.panics] == ["Fatal exception"]
    assert seen.ends == seen.panics


@given(st.lists(st.binary(max_size=3000), max_size=10))
def test_any_other_output_is_none(pieces: list[bytes]) -> None:
    seen = Seen()
    for piece in pieces:
        seen.watch.feed(piece.replace(b"panic", b"PANIC"))
    assert (seen.panics, seen.ends) == ([], [])


def test_endless_lines_and_logs_take_no_memory() -> None:
    seen = Seen()
    for _ in range(3000):
        seen.watch.feed(b"x" * 4096)  # never a newline
    for _ in range(3000):
        seen.watch.feed(b"y" * 4096 + b"\n")
    kept = sum(len(piece) for piece in seen.watch._history) + len(seen.watch._rest)
    assert kept < 8 << 20
    seen.feed(panic("after all"))
    assert seen.ends == ["after all"]


@pytest.mark.parametrize("reason", [EndReason.RESET, EndReason.POWER_OFF, EndReason.HALT, EndReason.TRIPLE_FAULT])
def test_what_follows_a_panic_is_its_end(reason: EndReason) -> None:
    control = Control([])
    control.panic = "Fatal exception"
    control.stop(reason, "whatever", 1)
    assert control.end == (EndReason.PANIC, "Fatal exception", 1, None)


@pytest.mark.parametrize("reason", [EndReason.TIMEOUT, EndReason.USER, EndReason.DEBUG_EXIT, EndReason.MAX_EXITS])
def test_other_ends_stay_what_they_are(reason: EndReason) -> None:
    control = Control([])
    control.panic = "Fatal exception"
    control.stop(reason)
    assert control.end is not None and control.end[0] is reason


def test_the_result_of_a_panic() -> None:
    result = Result(EndReason.PANIC, "Fatal exception")
    assert str(result) == "the guest kernel panicked: Fatal exception"
    assert (result.status, result.crashed, result.to_dict()["reason"]) == (1, True, "panic")
