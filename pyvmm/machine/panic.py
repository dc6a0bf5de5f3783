"""Tell from its console that a Linux kernel has panicked, and why.

A distribution's kernel that panics loops for ever (panic=0) or resets the machine (panic=N). A paravirtual device could
tell the two from work and from a reboot, but its driver is a module that is not loaded yet when the usual panics happen.
What is always there is the text, printed at the highest level: "Kernel panic - not syncing: REASON", and at the end, if
the kernel does not reboot, "---[ end Kernel panic - not syncing" (kernel/panic.c).

A program in the guest that prints such a line at the start of a line on the console is taken for the kernel.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

_MARK = b"Kernel panic - not syncing"
_PREFIX = rb"^(?:<\d+>)?(?:\[ *\d+\.\d+\] ?)?(?:\[ *[TC]\d+\] ?)?"
"""Level, time stamp and caller (printk.time, CONFIG_PRINTK_CALLER), as far as the kernel prints them."""
_PANIC = re.compile(_PREFIX + _MARK + rb"(?:: *(.*))?$")
_END = re.compile(_PREFIX + rb"---\[ end " + _MARK)
_CLUES = re.compile(
    _PREFIX + rb"(?:(?P<initrd>Initramfs unpacking failed: .+|rootfs image is not initramfs \(.+?\))"
    rb"|(?P<bug>(?:BUG:|Oops:|general protection fault|invalid opcode:|kernel BUG at|Unable to handle).+)"
    rb"|(?P<init>Failed to execute /\S+ \(error -\d+\)|Starting init: .+ \(error -\d+\)))",
    re.MULTILINE,
)
_KILLED_INIT = re.compile(r"Attempted to kill init! exitcode=0x([0-9a-f]{8})")
_LONGEST_LINE = 1024
_LONGEST_REASON = 200
_HISTORY = 1024
"""Pieces of output that are kept for the lines that explain a panic: the log of a whole boot."""


class PanicWatch:
    """Reads console output for the lines of a panic.

    Attributes:
        reason: what the kernel said, with what explains it, or None as long as it has not panicked.
    """

    def __init__(self, on_panic: Callable[[str], object], on_end: Callable[[str], object]) -> None:
        """Call `on_panic` with the reason when the panic begins, `on_end` once the kernel will do nothing more."""
        self.reason: str | None = None
        self._on_panic = on_panic
        self._on_end = on_end
        self._rest = b""
        self._history: deque[bytes] = deque(maxlen=_HISTORY)

    def feed(self, data: bytes) -> None:
        """Take output, in pieces of any size; best in whole lines, as each piece costs about a microsecond."""
        end = data.rfind(b"\n") + 1
        if not end:
            # A longer line is none of the kernel's: what is cut off is not looked at.
            self._rest = (self._rest + data)[:_LONGEST_LINE]
            return
        lines, self._rest = self._rest + data[:end], data[end : end + _LONGEST_LINE]
        if _MARK in lines:
            before, _, after = lines.partition(_MARK)
            self._history.append(before)
            for line in (before.rpartition(b"\n")[2] + _MARK + after).split(b"\n"):
                self._line(line.rstrip(b"\r"))
        elif self.reason is None:
            self._history.append(lines)

    def _line(self, line: bytes) -> None:
        if (panic := _PANIC.match(line)) is not None:
            if self.reason is None:
                self.reason = _explain(_text(panic[1] or b""), b"".join(self._history))
                self._history.clear()
                self._on_panic(self.reason)
        elif self.reason is not None and _END.match(line):
            self._on_end(self.reason)


def _text(line: bytes) -> str:
    """Return a line of the guest's in a form that every terminal can show, of bounded length."""
    text = "".join(char if char.isprintable() else "?" for char in line.decode(errors="replace").rstrip())
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "..."


def _explain(reason: str, log: bytes) -> str:
    """Join a panic's reason with the line before it that explains it, or with what to do about it."""
    clues: dict[str, str] = {}
    for clue in _CLUES.finditer(log):
        kind = clue.lastgroup or ""
        # The first fault is the cause of those that follow; of the programs tried as init the last one counts.
        if kind != "bug" or kind not in clues:
            clues[kind] = _text(clue[kind])
    return "; ".join(filter(None, (reason or "no reason given", _hint(reason, clues))))


def _hint(reason: str, clues: dict[str, str]) -> str:
    if "Unable to mount root fs" in reason:
        if "initrd" in clues:
            return f"{clues['initrd']}: give a good initrd with --initrd"
        return "no root file system: give an initrd that has an /init with --initrd, or name a disk with root="
    if reason.startswith(("No working init found", "Requested init")):
        return clues.get("init") or "put a program that can run into the root file system as /sbin/init"
    if (killed := _KILLED_INIT.match(reason)) is not None:
        code = int(killed[1], 16)
        return (
            f"process 1 was killed by signal {code & 0x7F}"
            if code & 0x7F
            else f"process 1 ended with status {code >> 8}"
        )
    if "deadlocked on memory" in reason or "Out of memory" in reason:
        return "give the guest more memory with --mem"
    return clues.get("bug", "")
