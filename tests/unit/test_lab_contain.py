"""The keeper: whatever happens to us, the command and its folder are gone. `sleep` stands in for an emulator."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.host.lab.contain import Keeper

OWNER = """
import sys, time
from pyvmm.host.lab.contain import Keeper
keeper = Keeper(parent=sys.argv[1])
if sys.argv[2] != "before":
    # A process group of two, one of which hides its output's end, and a file in the folder.
    keeper.start(["sh", "-c", f"sleep 1234 >/dev/null & echo $$ $! >{keeper.folder}/pids.new; mv {keeper.folder}/pids.new "
                  f"{keeper.folder}/pids; sleep 1234"])
print(keeper.folder, flush=True)
time.sleep(1234)
"""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["before", "running"])
def test_the_owner_killed(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), moment], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().decode().strip())
    pids = []
    if moment == "running":
        until((folder / "pids").exists)
        pids = [int(pid) for pid in (folder / "pids").read_text().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
    owner.send_signal(number)
    owner.wait(20)
    owner.stdout.close()
    until(lambda: not any(alive(pid) for pid in pids) and not os.listdir(tmp_path))


def test_close_kills_and_removes_before_it_returns(tmp_path: Path, no_leaks: None) -> None:
    keeper = Keeper(parent=str(tmp_path))
    keeper.start(["sh", "-c", "echo $$; exec sleep 1234"])
    until(lambda: "\n" in keeper.log())
    pid = int(keeper.log())
    assert keeper.alive and alive(pid) and keeper.wait(0) is None
    keeper.close()
    assert not alive(pid) and not os.listdir(tmp_path) and not keeper.alive
    keeper.close()


def test_status_and_log(tmp_path: Path, no_leaks: None) -> None:
    with Keeper(parent=str(tmp_path)) as keeper:
        keeper.start(
            ["sh", "-c", "echo out; echo err >&2; cat; pwd; exit 7"], cwd="/usr", env={"PATH": "/usr/bin:/bin"}
        )
        assert keeper.wait(20) == 7
        assert keeper.log() == "out\nerr\n/usr\n"
        assert not keeper.alive
        assert os.path.isdir(keeper.folder)
        assert os.stat(keeper.folder).st_mode & 0o777 == 0o700
    assert not os.listdir(tmp_path)


def test_arguments_and_environment_arrive_byte_for_byte(tmp_path: Path) -> None:
    words = ["", "a b", "$HOME", "'", '"', "`x`", "\\", "ä", os.fsdecode(b"\xff")]
    with Keeper(parent=str(tmp_path)) as keeper:
        keeper.start(
            ["sh", "-c", 'printf "%s|" "$V" "$@"; env | wc -l', "sh", *words],
            env={"V": "a'b", "PATH": os.environ["PATH"]},
        )
        assert keeper.wait(20) == 0
        expected = "|".join(["a'b", *(os.fsencode(word).decode(errors="replace") for word in words)])
        assert keeper.log().rpartition("|")[0] == expected


def test_killed_command_has_a_killed_status(tmp_path: Path) -> None:
    with Keeper(parent=str(tmp_path)) as keeper:
        keeper.start(["sh", "-c", "kill -KILL 0"])
        assert keeper.wait(20) == 137


def test_log_keeps_the_end(tmp_path: Path) -> None:
    with Keeper(parent=str(tmp_path)) as keeper:
        keeper.start(["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo last"])
        assert keeper.wait(20) == 0
        assert len(keeper.log()) == 1 << 16 and keeper.log().endswith("x\nlast\n")


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with Keeper(parent=str(tmp_path)) as keeper:
        keeper.start(["no-such-program-at-all"])
        assert keeper.wait(20) == 127
        assert "no-such-program-at-all" in keeper.log()


def test_a_folder_that_cannot_be_made(tmp_path: Path, no_leaks: None) -> None:
    with pytest.raises(HostError, match="no temporary folder") as caught:
        Keeper(parent=str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)


def test_a_forgotten_keeper_is_cleaned_up(tmp_path: Path) -> None:
    keeper = Keeper(parent=str(tmp_path))
    keeper.start(["sleep", "1234"])
    with pytest.warns(ResourceWarning):
        del keeper
    until(lambda: not os.listdir(tmp_path))


def test_odd_folders_for_temporary_files_are_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tempfile

    odd = tmp_path / "a b"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    with Keeper() as keeper:
        assert keeper.folder.startswith("/tmp/pyvmm-lab-")
