"""What an emulator has to offer to be a lab."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pyvmm.errors import HostError

if TYPE_CHECKING:
    from pyvmm.host.lab.contain import Keeper
    from pyvmm.host.lab.settings import LabSpec


class LabError(HostError):
    """A lab could not be started, or died: the message holds the last that was heard of it."""


class Backend(Protocol):
    """One kind of lab. `pyvmm.host.lab.amd` has `AmdBackend`, `pyvmm.host.lab.intel` has `IntelBackend`.

    Attributes:
        start_timeout: seconds after which a lab that has not said HELLO is given up.
        grace: seconds within which a sound lab reports the end of a command that it was told to kill.
    """

    start_timeout: float
    grace: float

    def check(self, spec: LabSpec) -> None:
        """Refuse what this emulator cannot do: UsageError."""

    def start(self, spec: LabSpec, keeper: Keeper) -> tuple[int, int]:
        """Have the keeper start the emulator; return descriptors to read from and to write to the agent, which the caller closes.

        They may be one and the same. Reading reaches the end when the emulator is gone. Everything temporary goes into
        `keeper.folder`. Where the emulator connects to us, stop waiting for it once `keeper.alive` is false.

        Raises:
            HostError: it does not start.
        """

    def archive(self, spec: LabSpec) -> list[str] | None:
        """Return the command line that, in the lab, writes the share as an archive to its standard output; None where the share
        needs no bringing back, because both sides see one folder."""

    def unpack(self, spec: LabSpec, archive: bytes) -> None:
        """Bring what `archive` wrote into the share on this side."""

    def log(self, keeper: Keeper) -> str:
        """Return the end of what the lab's kernel and the emulator have said, for error messages."""
