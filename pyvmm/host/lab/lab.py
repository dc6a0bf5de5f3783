"""The lab as Python sees it: start it, run commands in it, lose nothing when it dies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from pyvmm.errors import UsageError
from pyvmm.host.lab.backend import Backend, LabError
from pyvmm.host.lab.contain import Keeper
from pyvmm.host.lab.kernel import lab_kernel
from pyvmm.host.lab.packages import require
from pyvmm.host.lab.session import ChannelLost, Ending, NoAnswer, Session, Sink
from pyvmm.host.lab.settings import CPUS, LabSpec, module_parameters
from pyvmm.host.parameters import same, verifiable
from pyvmm.memory.size import format_size, parse_size

__all__ = ["Lab", "LabError", "LabResult"]

STATUS_TIMEOUT = 124
_STATUS_SIGNAL = 128
_STATUS_CANNOT_RUN = 126
_STATUS_NOT_FOUND = 127
_ENOENT = 2
_LEAST_MEMORY = 512 << 20
_MOST_CPUS = 16
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class LabResult:
    """How a command in the lab went.

    Attributes:
        status: its exit status; 128+N if signal N killed it, 124 if its time was up, 126 or 127 if it could not be started.
        stdout, stderr: what it wrote, where no function was given to take it.
        seconds: wall time from its start to its end.
    """

    status: int
    stdout: bytes
    stderr: bytes
    seconds: float


class Lab:
    """A KVM host in software; a context manager that starts it and ends it.

    with Lab(cpu="amd", npt=False) as lab:
        print(lab.run(["cat", "/sys/module/kvm_amd/parameters/npt"]).stdout)

    Commands see this host's files under the same names. What they write is gone with the lab, except in the share. A file that this host
    changes while the lab runs may be seen as it was before, except in the share of an AMD lab.

    Attributes:
        spec: what was asked for (from `start` on).
        parameters: module to parameter to value of the KVM modules, as the lab's sysfs shows them (from `start` on).
        release: version of the lab's kernel (from `start` on).
    """

    def __init__(
        self,
        cpu: str = "amd",
        *,
        memory: int | str = "2G",
        cpus: int = 1,
        share: str | None = None,
        timeout: float | None = None,
        **settings: bool | int | str,
    ) -> None:
        """Describe a lab; `start` starts it.

        Args:
            cpu: "amd" (QEMU, `kvm_amd`) or "intel" (Bochs, `kvm_intel`).
            memory: RAM of the lab, as "2G" or in bytes.
            cpus: its number of CPUs.
            share: folder of this host that commands may write to, under the same name.
            timeout: seconds for each command, unless `run` is told otherwise.
            settings: parameters of the KVM modules by name, as npt=False, ept=True, tdp_mmu=False.

        Raises:
            UsageError: one of these cannot be.
        """
        self._parameters = module_parameters(cpu, settings)
        self._cpu = cpu
        self._memory = parse_size(memory)
        self._cpus = cpus
        self._share = None if share is None else _folder(share)
        self._timeout = timeout
        if self._memory < _LEAST_MEMORY:
            raise UsageError(
                f"a lab of {format_size(self._memory)} is too small: give it {format_size(_LEAST_MEMORY)} or more"
            )
        if not 1 <= cpus <= _MOST_CPUS:
            raise UsageError(f"a lab has 1 to {_MOST_CPUS} CPUs, not {cpus}")
        self._backend = _backend(cpu)
        self._keeper: Keeper | None = None
        self._session: Session | None = None
        self.parameters: dict[str, dict[str, str]] = {}
        self.release = ""

    def __enter__(self) -> Lab:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the lab and wait until it takes commands.

        Raises:
            HostError: something that it needs is missing.
            LabError: it does not come up.
        """
        if self._keeper is not None:
            raise UsageError("this lab has been started already")
        require(self._cpu)
        self.spec = LabSpec(
            self._cpu,
            self._parameters,
            self._memory,
            self._cpus,
            self._share,
            _cwd(),
            lab_environment(self._cpu),
            lab_kernel(),
        )
        self._backend.check(self.spec)
        try:
            self._keeper = Keeper()
            reader, writer = self._backend.start(self.spec, self._keeper)
            self._session = Session(reader, writer, self._backend.grace)
            self.release, *parameters = self._session.hello(self._backend.start_timeout)
            self._take_parameters(parameters)
        except ChannelLost:
            raise self._died("the lab did not come up") from None
        except NoAnswer:
            raise self._died(f"the lab did not come up within {self._backend.start_timeout:.0f} s") from None
        except BaseException:
            self.close()
            raise

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        input: bytes | int | None = None,
        check: bool = False,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        size: tuple[int, int] | None = None,
    ) -> LabResult:
        """Run one command in the lab and wait for its end.

        Args:
            argv: program and arguments; the program is looked for on the lab's PATH.
            timeout: seconds; then the command is killed and its status is 124. By default the lab's.
            cwd: its working directory, by default ours at the lab's start.
            env: variables to set besides the lab's own.
            input: its standard input: bytes, or a descriptor of ours to pass on as it fills; by default there is none.
            check: raise if the status is not 0.
            stdout, stderr: called with each piece of output at once; without them the result holds the output.
            size: rows and columns: run it on a terminal of its own, with both outputs on it.

        Raises:
            LabError: the lab died, or is not running; with `check`, the command failed.
        """
        if not argv:
            raise UsageError("there is no command to run")
        session = self._running()
        kept: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        sinks = (stdout or kept[0].extend, stderr or kept[1].extend)
        began = time.monotonic()
        try:
            ending = session.run(
                list(argv),
                os.path.abspath(cwd or self.spec.cwd),
                {**self.spec.environment, **(env or {})},
                b"" if input is None else input,
                *sinks,
                timeout=self._timeout if timeout is None else timeout,
                size=size,
            )
            seconds = time.monotonic() - began
            self._bring_back(session)
        except ChannelLost:
            raise self._died("the lab died") from None
        except NoAnswer:
            # It does not even kill the command. The caller's limit holds all the same.
            self.kill()
            ending = Ending(timed_out=True)
            seconds = time.monotonic() - began
        if ending.errno is not None:
            sinks[1](f"pyvmm lab: {ending.name}: {os.strerror(ending.errno)}\n".encode(errors="surrogateescape"))
        result = LabResult(_status(ending), bytes(kept[0]), bytes(kept[1]), seconds)
        if check and result.status:
            last = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise LabError(f"{argv[0]} ended with status {result.status} in the lab{': ' if last else ''}{last}")
        return result

    def resize(self, rows: int, columns: int) -> None:
        """Give the running command's terminal another size; may be called from a signal handler."""
        if self._session is not None:
            self._session.resize(rows, columns)

    def kill(self) -> None:
        """End the lab at once, whatever runs in it. Files in the share are as the last finished command left them, or later."""
        self.close()

    def close(self) -> None:
        """End the lab; may be called again."""
        session, keeper = self._session, self._keeper
        self._session = None
        try:
            if session is not None:
                session.close()
        finally:
            if keeper is not None:
                keeper.close()

    def log(self) -> str:
        """Return the end of what the lab's kernel and its emulator have said."""
        return "" if self._keeper is None else self._backend.log(self._keeper)

    def _running(self) -> Session:
        if self._session is None:
            raise LabError("the lab is not running" if self._keeper is None else "the lab has ended")
        return self._session

    def _take_parameters(self, texts: list[str]) -> None:
        for text in texts:
            place, _, value = text.partition("=")
            module, _, name = place.partition(".")
            self.parameters.setdefault(module, {})[name] = value
        for module, wanted in self.spec.parameters.items():
            for name, value in wanted.items():
                actual = self.parameters.get(module, {}).get(name)
                if actual is None or (verifiable(name, value) and not same(value, actual)):
                    has = "does not have it" if actual is None else f"says {actual}"
                    raise LabError(f"{name}={value} was asked for, but {module} in the lab {has}")

    def _bring_back(self, session: Session) -> None:
        command = self._backend.archive(self.spec) if self.spec.share is not None else None
        if command is not None:
            self._backend.unpack(self.spec, session.save(command, self._backend.start_timeout))

    def _died(self, what: str) -> LabError:
        """End what is left and say why it died, as well as its last words do."""
        keeper = self._keeper
        if keeper is not None:
            keeper.wait(1)  # its last words may still be on the way
        last = last_words(self.log())
        self.close()
        return LabError(f"{what}{': ' if last else ''}{last}")


def lab_environment(cpu: str) -> dict[str, str]:
    """Return the environment of commands in the lab: what bears on Python and language of ours, and a PATH with this Python first."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("LC_", "PYTHON", "PYVMM_"))
        or name in ("LANG", "TERM", "VIRTUAL_ENV", "NO_COLOR", "COLUMNS", "LINES")
    }
    home = os.path.expanduser("~")
    path = f"{os.path.dirname(sys.executable)}:{_SYSTEM_PATH}" if sys.executable else _SYSTEM_PATH
    return {**kept, "HOME": home if os.path.isabs(home) else "/", "PATH": path, "PYVMM_LAB": cpu}


def last_words(log: str, lines: int = 3) -> str:
    """Return the end of a console log in one line, a kernel panic before anything else."""
    import re

    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]", "", log.replace("\r", ""))
    said = [
        line.strip()
        for line in plain.splitlines()
        if line.strip() and "TCG doesn't support requested feature" not in line
    ]
    panic = next((line for line in said if "Kernel panic" in line), None)
    return panic or " / ".join(said[-lines:])


def _status(ending: Ending) -> int:
    if ending.timed_out:
        return STATUS_TIMEOUT
    if ending.signal is not None:
        return _STATUS_SIGNAL + ending.signal
    if ending.errno is not None:
        return _STATUS_NOT_FOUND if ending.errno == _ENOENT else _STATUS_CANNOT_RUN
    return ending.status or 0


def _folder(share: str) -> str:
    path = os.path.abspath(share)
    if not os.path.isdir(path):
        raise UsageError(f"the share {share} is no folder")
    if path == "/" or not os.access(path, os.W_OK):
        raise UsageError(
            f"the share {share} is not writable" if path != "/" else "the whole file system cannot be the share"
        )
    return path


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"  # it has been removed


def _backend(cpu: str) -> Backend:
    if cpu == "intel":
        from pyvmm.host.lab.intel import IntelBackend

        return IntelBackend()
    assert cpu in CPUS
    from pyvmm.host.lab.amd import AmdBackend

    return AmdBackend()
