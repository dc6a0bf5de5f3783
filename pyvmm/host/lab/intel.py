"""The Intel lab: Bochs emulates VMX with EPT and VPID, the real `kvm_intel` runs on it.

Bochs counts instructions and its clocks follow them, so a lab repeats itself: the same commands give the same counts, to the last exit.
Three disks take the place of this host's file system: `bootdisk` with kernel and Python, `jobdisk` with the project and the share, and an
empty one on which the share travels back. One serial line is the kernel's console, two more and a fourth disk are the agent's
(`steadyline`): nothing that the host does moves the lab's clock.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyvmm.errors import UsageError
from pyvmm.host.lab.backend import LabError

if TYPE_CHECKING:
    from pyvmm.host.lab.contain import Keeper
    from pyvmm.host.lab.settings import LabSpec

_MOST_MEMORY = 2048 << 20
_TAIL = 16 << 10


class IntelBackend:
    """Starts Bochs."""

    start_timeout = 600.0
    grace = 60.0

    def __init__(self) -> None:
        self._folder = ""

    def check(self, spec: LabSpec) -> None:
        """Refuse what Bochs cannot do.

        Raises:
            UsageError: more than one CPU, too much memory, settings that exclude each other.
        """
        if spec.cpus != 1:
            raise UsageError(f"the Intel lab has 1 CPU, not {spec.cpus}")
        if spec.memory > _MOST_MEMORY:
            raise UsageError(f"the Intel lab has at most {_MOST_MEMORY >> 20} MiB of memory")
        values = spec.parameters.get("kvm_intel", {})
        if values.get("ept") == "0":
            for name in ("unrestricted_guest", "eptad", "pml"):
                if values.get(name) == "1":
                    raise UsageError(f"{name} needs EPT: leave ept on, or {name} off")

    def start(self, spec: LabSpec, keeper: Keeper) -> tuple[int, int]:
        """Make the disks and have the keeper start Bochs.

        Raises:
            HostError: a tool is missing or fails.
            UsageError: the share is too large.
        """
        from pyvmm.host.lab import bochs, jobdisk
        from pyvmm.host.lab.bootdisk import boot_disk
        from pyvmm.host.lab.kernel import cache_folder
        from pyvmm.host.lab.steadyline import SteadyLine

        self._folder = folder = keeper.folder
        cache = os.path.join(cache_folder(), "lab")
        image = boot_disk(spec.kernel, cache)
        disks = {name: os.path.join(folder, name) for name in ("boot", "job", "share", "mailbox")}
        os.symlink(image, disks["boot"])
        jobdisk.write_disk(disks["job"], jobdisk.job_archive(spec, cache))
        jobdisk.blank_disk(disks["share"])
        for name in ("output", "input"):
            os.mkfifo(os.path.join(folder, name), 0o600)
        wiring = bochs.Wiring(
            memory=spec.memory,
            disks=tuple(bochs.Disk(path, volatile=name == "boot") for name, path in disks.items()),
            console=os.path.join(folder, "console"),
            output=os.path.join(folder, "output"),
            input=os.path.join(folder, "input"),
            log=os.path.join(folder, "log"),
        )
        command = bochs.command(folder, bochs.bochsrc(wiring))
        line = SteadyLine(wiring.output, wiring.input, disks["mailbox"], lambda: keeper.alive)
        keeper.start(command)
        return line.fd, line.fd

    def archive(self, spec: LabSpec) -> list[str]:
        """Return the command that writes the share onto the third disk."""
        return ["/.pyvmm/save"]

    def unpack(self, spec: LabSpec, archive: bytes) -> None:
        """Bring back what the lab has written onto the third disk, if it says that it has.

        Raises:
            LabError: it has not.
            HostError: a file cannot be written here.
        """
        from pyvmm.host.lab.jobdisk import take_back

        if spec.share is None:
            raise LabError("this lab has no share")
        with open(os.path.join(self._folder, "share"), "rb") as disk:
            take_back(disk, archive, spec.share)

    def log(self, keeper: Keeper) -> str:
        """Return the end of the kernel's console, or of Bochs' own messages where there is none."""
        console = _tail(os.path.join(keeper.folder, "console"))
        return console if console.strip() else keeper.log() + _tail(os.path.join(keeper.folder, "log"))


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - _TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
