"""The agent and the host's side of its channel, run against each other on this host: no emulator is needed for that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.host.lab import agent as agent_module
from pyvmm.host.lab.channel import WINDOW
from pyvmm.host.lab.session import ChannelLost, Ending, NoAnswer, Session

ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


class Local:
    """An agent as a process of this host, and the session with it."""

    def __init__(self, grace: float = 5.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", agent_module.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.session = Session(os.dup(self.process.stdout.fileno()), os.dup(self.process.stdin.fileno()), grace)
        self.process.stdout.close()
        self.process.stdin.close()
        self.hello = self.session.hello(20)
        self.out = bytearray()
        self.err = bytearray()

    def run(
        self,
        *argv: str,
        source: bytes | int = b"",
        timeout: float | None = 30,
        size: tuple[int, int] | None = None,
        cwd: str = "/",
    ) -> Ending:
        self.out.clear()
        self.err.clear()
        return self.session.run(
            list(argv), cwd, ENVIRONMENT, source, self.out.extend, self.err.extend, timeout=timeout, size=size
        )

    def close(self) -> None:
        self.session.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()


@pytest.fixture
def local(no_leaks: None) -> Iterator[Local]:
    local = Local()
    yield local
    local.close()


def test_hello_names_the_kernel(local: Local) -> None:
    assert local.hello[0] == os.uname().release
    assert all("=" in entry and entry.startswith("kvm") for entry in local.hello[1:])


def test_status_and_separate_streams(local: Local) -> None:
    assert local.run("sh", "-c", "echo out; echo err >&2; exit 3") == Ending(status=3)
    assert (bytes(local.out), bytes(local.err)) == (b"out\n", b"err\n")


def test_many_commands_after_one_another(local: Local) -> None:
    for number in range(30):
        assert local.run("sh", "-c", f"cat; exit {number}", source=b"x" * number) == Ending(status=number)
        assert bytes(local.out) == b"x" * number


def test_death_by_signal(local: Local) -> None:
    assert local.run("sh", "-c", "kill -SEGV $$") == Ending(signal=signal.SIGSEGV)


def test_what_cannot_be_started(local: Local, tmp_path: Path) -> None:
    assert local.run("no-such-program-at-all") == Ending(errno=2, name="no-such-program-at-all")
    plain = tmp_path / "plain"
    plain.write_text("")
    assert local.run(str(plain)) == Ending(errno=13, name=str(plain))
    assert local.run("true", cwd="/nowhere") == Ending(errno=2, name="/nowhere")
    assert local.run("true") == Ending(status=0)


def test_arguments_and_environment_arrive_byte_for_byte(local: Local) -> None:
    strange = ["", "a b", "ä", "\n", os.fsdecode(b"\xff\xfe"), "-x", "'\""]
    program = "import os,sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    assert local.run(sys.executable, "-c", program, *strange) == Ending(status=0)
    assert bytes(local.out).split(b"\0") == [os.fsencode(word) for word in strange]
    local.run("env")
    assert sorted(bytes(local.out).decode().split()) == sorted(f"{name}={value}" for name, value in ENVIRONMENT.items())


def test_binary_through_and_through(local: Local) -> None:
    data = bytes(range(256)) * 8192  # 2 MiB: many windows full
    assert local.run("cat", source=data) == Ending(status=0)
    assert bytes(local.out) == data


def test_ten_megabytes_of_output(local: Local) -> None:
    assert local.run("sh", "-c", "head -c 10000000 /dev/zero; head -c 10000 /dev/zero >&2") == Ending(status=0)
    assert (len(local.out), len(local.err)) == (10_000_000, 10_000)


def test_input_from_a_descriptor_as_it_comes(local: Local) -> None:
    readable, writable = os.pipe()

    def write() -> None:
        for piece in (b"one\n", b"two\n"):
            time.sleep(0.1)
            os.write(writable, piece)
        os.close(writable)

    thread = threading.Thread(target=write)
    thread.start()
    assert local.run("sh", "-c", "read a; echo first $a; cat", source=readable) == Ending(status=0)
    thread.join()
    os.close(readable)
    assert bytes(local.out) == b"first one\ntwo\n"


def test_output_is_live(local: Local) -> None:
    times = []
    program = ["sh", "-c", "echo a; sleep 0.5; echo b"]
    local.session.run(program, "/", ENVIRONMENT, b"", lambda _: times.append(time.monotonic()), local.err.extend)
    assert len(times) == 2 and times[1] - times[0] > 0.4


def test_a_command_that_reads_nothing_gets_no_more_than_a_window(local: Local) -> None:
    """Endless input must neither fill the agent's memory nor keep the kill from getting through."""
    with open("/dev/zero", "rb") as zero:
        ending = local.run("sleep", "60", source=zero.fileno(), timeout=1)
        taken = os.lseek(zero.fileno(), 0, os.SEEK_CUR)
    assert ending == Ending(signal=signal.SIGKILL, timed_out=True)
    assert taken <= WINDOW + (1 << 17)


def test_a_command_that_closes_its_input_drops_the_rest(local: Local) -> None:
    assert local.run("sh", "-c", "exec <&-; sleep 0.3; echo done", source=bytes(1 << 21)) == Ending(status=0)
    assert bytes(local.out) == b"done\n"


def test_time_limit_kills_the_whole_group(local: Local) -> None:
    began = time.monotonic()
    ending = local.run("sh", "-c", "echo $$; sleep 60 & sleep 60; echo never", timeout=0.5)
    assert ending == Ending(signal=signal.SIGKILL, timed_out=True)
    assert time.monotonic() - began < 4
    group = int(local.out.split()[0])
    deadline = time.monotonic() + 5
    while any(_group(pid) == group for pid in _pids()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [pid for pid in _pids() if _group(pid) == group]
    assert local.run("echo", "well") == Ending(status=0)


def test_what_a_command_leaves_behind_is_not_waited_for(local: Local) -> None:
    began = time.monotonic()
    assert local.run("sh", "-c", "sleep 5 & echo $!") == Ending(status=0)
    assert time.monotonic() - began < 3
    os.kill(int(local.out), signal.SIGKILL)


def test_a_callback_that_raises_ends_the_command_and_not_the_session(local: Local) -> None:
    def refuse(_: bytes) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        local.session.run(["yes"], "/", ENVIRONMENT, b"", refuse, refuse)
    assert local.run("echo", "again") == Ending(status=0)
    assert bytes(local.out) == b"again\n"


def test_terminal(local: Local) -> None:
    program = "test -t 0 && test -t 1 && test -t 2 && stty size && read line && echo got $line && echo e >&2"
    assert local.run("sh", "-c", program, source=b"hello\n", size=(33, 101)) == Ending(status=0)
    lines = bytes(local.out).split(b"\r\n")
    assert {b"33 101", b"got hello", b"e"} <= set(lines)
    assert not local.err


def test_terminal_end_of_file_and_interrupt(local: Local) -> None:
    assert local.run("cat", source=b"x\n", size=(24, 80)) == Ending(status=0)
    # The terminal's line discipline makes a signal of it: the command has a controlling terminal.
    assert local.run("sleep", "30", source=b"\x03", size=(24, 80)).signal == signal.SIGINT


def test_terminal_changes_its_size(local: Local) -> None:
    seen = bytearray()

    def watch(data: bytes) -> None:
        if b"ready" in data:
            local.session.resize(50, 132)
        seen.extend(data)

    program = "trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.05; done"
    readable, writable = os.pipe()
    ending = local.session.run(
        ["sh", "-c", program], "/", ENVIRONMENT, readable, watch, watch, timeout=20, size=(24, 80)
    )
    os.close(readable)
    os.close(writable)
    assert ending == Ending(status=5)
    assert b"50 132" in seen


def test_save_brings_back_what_a_command_writes(local: Local, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(300_000))
    archive = local.session.save(["/bin/cat", str(tmp_path / "file")], 20)
    assert archive == bytes(300_000)
    assert local.run("true") == Ending(status=0)


def test_an_agent_that_dies_is_noticed_at_once(local: Local) -> None:
    def kill() -> None:
        time.sleep(0.3)
        local.process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    began = time.monotonic()
    with pytest.raises(ChannelLost):
        local.run("sleep", "5")
    thread.join()
    assert time.monotonic() - began < 3


def test_an_agent_that_hangs_is_given_up() -> None:
    local = Local(grace=0.5)
    os.kill(local.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(NoAnswer):
        local.run("true", timeout=0.3)
    assert time.monotonic() - began < 5
    local.process.kill()
    local.close()


def test_the_agent_ends_with_its_channel_and_takes_the_command_along() -> None:
    local = Local()

    def leave(data: bytes) -> None:
        raise RuntimeError(data.decode())

    with pytest.raises(RuntimeError) as caught:
        local.session.run(["sh", "-c", "echo $$; exec sleep 60"], "/", ENVIRONMENT, b"", leave, leave)
    pid = int(str(caught.value))
    local.close()
    assert local.process.returncode == 0
    assert not os.path.exists(f"/proc/{pid}")


def test_quit(local: Local) -> None:
    local.session.quit()
    assert local.process.wait(10) == 0


def test_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", agent_module.__file__, "-x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("usage:")


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _group(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] == "Z" else int(fields[2])
