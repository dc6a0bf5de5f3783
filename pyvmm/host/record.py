"""What a switch leaves in /run for others to find: a lock, and a record to restore from when its process was killed."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

from pyvmm.errors import HostError
from pyvmm.host.parameters import show_settings
from pyvmm.host.users import command_line, start_time

FOLDER = "/run/pyvmm"
"""Only root writes there, and a reboot empties it, as it does the modules' parameters."""
_POLL_SECONDS = 0.05


@dataclass(slots=True)
class Record:
    """A switch that is in force, and the way back.

    Attributes:
        vendor: the vendor module.
        settings: the settings asked for, in the kernel's values.
        former: what to put back: module, parameter, value. A module that is reloaded has all its parameters there.
        reload: modules that the way back may reload, in the order to load them.
        pid, started: the process whose switch it is, and when that process started; 0 once nobody will restore it.
        command: its command line.
    """

    vendor: str
    settings: dict[str, str]
    former: dict[str, dict[str, str]]
    reload: tuple[str, ...]
    pid: int
    started: str
    command: str

    def alive(self, proc: str = "/proc") -> bool:
        """Tell whether the process that will restore it still runs."""
        return self.pid != 0 and start_time(self.pid, proc) == self.started

    def formerly(self) -> dict[str, str]:
        """Return the former values of the settings."""
        return {name: values[name] for name in self.settings for values in self.former.values() if name in values}

    def describe(self, proc: str = "/proc") -> str:
        """Say in one line what is switched, by whom, and how to get back."""
        settings, former = show_settings(self.settings), show_settings(self.formerly())
        if self.alive(proc):
            return f"{settings} (formerly {former}), for as long as pid {self.pid} ({self.command}) wants"
        return f"{settings} was left behind by a switch that could not restore {former}: `sudo pyvmm host restore` does"


def this_process() -> tuple[int, str, str]:
    """Return pid, start time and command line of the calling process."""
    pid = os.getpid()
    return pid, start_time(pid) or "?", command_line(pid)


def _refusal(holder: str) -> str:
    if holder.startswith(f"pid {os.getpid()} "):
        return "this process has KVM's settings switched already: give all settings in one switch"
    return f"KVM's settings are switched by {holder or 'another process'}: wait for its end (--wait S does)"


def _checked(data: dict[str, Any]) -> Record:
    """Make a record of what JSON gave, text for text."""
    former = {module: _texts(values) for module, values in data["former"].items()}
    reload = tuple(str(module) for module in data["reload"])
    texts = _texts({name: data[name] for name in ("vendor", "started", "command")})
    return Record(settings=_texts(data["settings"]), former=former, reload=reload, pid=int(data["pid"]), **texts)


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in values.items()}


class RunFolder:
    """The lock and the record of one host.

    Attributes:
        path: the folder, which is made where it is missing.
    """

    def __init__(self, path: str = FOLDER) -> None:
        """Point to the folder; nothing is created yet."""
        self.path = path
        self._lock: int | None = None

    def acquire(self, wait: float = 0.0) -> None:
        """Take the lock that only one switch at a time may have.

        Args:
            wait: seconds to wait for another switch to end.

        Raises:
            HostError: another one has it, with its name; or the folder cannot be written.
        """
        import fcntl

        path = f"{self.path}/switch.lock"
        end = time.monotonic() + wait
        try:
            os.makedirs(self.path, exist_ok=True)
            os.chmod(self.path, 0o755)  # whoever runs `pyvmm host` may read the record
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except PermissionError:
            raise HostError("only root may switch KVM's settings: use sudo") from None
        except OSError as error:
            raise HostError(f"cannot take the lock {path}: {error.strerror}") from None
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise HostError(_refusal(os.pread(lock, 200, 0).decode("utf-8", "replace"))) from None
                time.sleep(_POLL_SECONDS)
            pid, _, command = this_process()
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"pid {pid} ({command})".encode("utf-8", "replace"), 0)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        import fcntl

        if self._lock is not None:
            lock, self._lock = self._lock, None
            os.ftruncate(lock, 0)
            fcntl.flock(lock, fcntl.LOCK_UN)  # a forked child may have a copy of the descriptor
            os.close(lock)

    def read(self) -> Record | None:
        """Return the record that is there, or None.

        Raises:
            HostError: it is damaged.
        """
        import json

        path = f"{self.path}/switch.json"
        try:
            with open(path, encoding="utf-8") as file:
                data: dict[str, Any] = json.load(file)
            return _checked(data)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise HostError(f"{path} is damaged: see what `pyvmm host` says of the modules, then remove it") from None

    def write(self, record: Record) -> None:
        """Keep the record, in place of another one.

        Raises:
            HostError: the folder cannot be written.
        """
        import json

        path = f"{self.path}/switch.json"
        try:
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o644)
                json.dump(asdict(record), file)
            os.replace(f"{path}.new", path)
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}") from None

    def forget(self) -> None:
        """Drop the record: what it would restore is restored."""
        import contextlib

        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.path}/switch.json")
