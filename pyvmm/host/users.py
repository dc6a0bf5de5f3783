"""Which processes have KVM open: they keep its modules from being unloaded."""

from __future__ import annotations

import os
from typing import NamedTuple

from pyvmm.host.modules import read_text

_KVM_DEVICE = os.makedev(10, 232)
"""Linux, Documentation/admin-guide/devices.txt: misc character device 232."""
_COMMAND_LENGTH = 60


class KvmUser(NamedTuple):
    """A process that has KVM open.

    Attributes:
        pid: its process id.
        command: its command line, shortened.
    """

    pid: int
    command: str

    def __str__(self) -> str:
        """Name the process for a person."""
        return "this process" if self.pid == os.getpid() else f"pid {self.pid} ({self.command})"


def kvm_users(proc: str = "/proc") -> list[KvmUser]:
    """Find the processes with an open KVM device, VM or vCPU; those of others are visible to root alone."""
    pids = sorted(int(name) for name in _entries(proc) if name.isdecimal())
    return [KvmUser(pid, command_line(pid, proc)) for pid in pids if _has_kvm(f"{proc}/{pid}/fd")]


def command_line(pid: int, proc: str = "/proc") -> str:
    """Return a process's command line, shortened; its name in brackets for one without, as ps(1) does."""
    words = read_text(f"{proc}/{pid}/cmdline").replace("\0", " ").split()
    text = " ".join(words) or f"[{read_text(f'{proc}/{pid}/comm') or '?'}]"
    return text if len(text) <= _COMMAND_LENGTH else text[: _COMMAND_LENGTH - 3] + "..."


def start_time(pid: int, proc: str = "/proc") -> str | None:
    """Return when a process started, in clock ticks since boot (proc_pid_stat(5), field 22): tells it from a later one of the same id."""
    fields = read_text(f"{proc}/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in "ZX":
        return None
    return fields[19]


def _has_kvm(folder: str) -> bool:
    for name in _entries(folder):
        path = f"{folder}/{name}"
        try:
            target = os.readlink(path)
            if target.startswith(("anon_inode:kvm-", "anon_inode:[kvm-")):
                return True
            # In another mount namespace the node may have any path that ends so.
            if target.endswith("kvm") and os.stat(path).st_rdev == _KVM_DEVICE:
                return True
        except OSError:
            continue  # closed since, or another's
    return False


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
