"""The command line as a user runs it: statuses, one-line errors, files, the terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyvmm.cli.main import main
from tests.conftest import ROOT

pytestmark = [pytest.mark.kvm, pytest.mark.local]

COMMAND = [sys.executable, "-m", "pyvmm"]


def pyvmm(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=60,
        **{"stdin": subprocess.DEVNULL, **options},
    )


def test_boot_says_hello(guests: Path) -> None:
    done = pyvmm("boot", guests / "hello-elf64.elf")
    assert (done.returncode, done.stdout) == (0, "Hello from ELF64 long mode\n")
    assert done.stderr.startswith("pyvmm: the guest switched the machine off, after ")
    assert done.stderr.count("\n") == 1


def test_quiet_and_by_name(guests: Path) -> None:
    done = pyvmm("boot", "guest:hello-real", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello from real mode\n", "")


def test_statuses(guests: Path, tmp_path: Path) -> None:
    assert pyvmm("boot", guests / "triple-fault.elf").returncode == 1
    assert pyvmm("boot", guests / "exit-loop-pio.elf", "--timeout", "0.2").returncode == 124
    assert pyvmm("boot", guests / "exit-loop-mmio.elf", "--max-exits", "100").returncode == 0
    assert pyvmm("boot", guests / "halt.bin").returncode == 0
    image = tmp_path / "exit.bin"
    image.write_bytes(bytes.fromhex("b015 e6f4"))  # mov al, 0x15; out 0xf4, al
    assert pyvmm("boot", image).returncode == 0x2B


def test_a_crash_is_explained(guests: Path) -> None:
    done = pyvmm("boot", guests / "triple-fault.elf")
    for section in ("what happened:", "registers:", "code:", "page walks:", "last exits:", "hint:"):
        assert section in done.stderr
    assert "Traceback" not in done.stderr


def test_stats(guests: Path, tmp_path: Path) -> None:
    file = tmp_path / "stats.json"
    zero = tmp_path / "zero.bin"
    zero.write_bytes(bytes.fromhex("b000 e6f4"))
    done = pyvmm("boot", zero, "--stats", file)
    document = json.loads(file.read_text())
    assert done.returncode == document["result"]["status"] == 1
    assert (document["result"]["reason"], document["result"]["value"]) == ("debug-exit", 0)  # not a crash
    assert document["result"]["crashed"] is False
    assert document["statistics"]["total"] == 1
    assert document["statistics"]["exits"][0]["device"] == "debug-exit"
    assert document["host"]["kvm"]["module"] and document["host"]["kernel"]
    assert document["statistics"]["kvm"]["vm"]["pages_4k"]["kind"] == "instant"
    assert document["memory"]["slots"][0]["size"] == 128 << 20

    done = pyvmm("boot", guests / "triple-fault.elf", "--stats", file)
    document = json.loads(file.read_text())
    assert (document["result"]["status"], document["result"]["crashed"]) == (1, True)
    assert document["result"]["report"]["hints"]
    assert [name.name for name in tmp_path.iterdir() if name.suffix == ".tmp"] == []


def test_stats_survive_ctrl_c(guests: Path, tmp_path: Path) -> None:
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        file = tmp_path / f"{number}.json"
        command = [*COMMAND, "boot", str(guests / "exit-loop-pio.elf"), "--stats", str(file), "--timeout", "30"]
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            # The loop has begun once CPU time is spent on it; a signal during start-up is a plain Ctrl-C.
            deadline = time.monotonic() + 20
            while not _has_vcpu(process.pid) and time.monotonic() < deadline:
                time.sleep(0.02)
            begun = _cpu_seconds(process.pid)
            while _cpu_seconds(process.pid) < begun + 0.8 and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(number)
            _, errors = process.communicate(timeout=20)
        assert process.returncode == status
        assert "Traceback" not in errors
        document = json.loads(file.read_text())
        assert (document["result"]["reason"], document["result"]["detail"]) == ("user", number.name)
        assert document["statistics"]["total"] > 0


def _has_vcpu(pid: int) -> bool:
    folder = f"/proc/{pid}/fd"
    targets = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            targets.append(os.readlink(f"{folder}/{name}"))
    return any("kvm-vcpu" in target for target in targets)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


BAD: list[tuple[list[str], str]] = [
    (["boot", "{tmp}/missing"], "no such file"),
    (["boot", "{tmp}"], "directory"),
    (["boot", "{tmp}/empty"], "empty"),
    (["boot", "{tmp}/truncated.elf"], "truncated"),
    (["boot", "guest:nothing"], "no guest named"),
    (["boot", "guest:halt", "--mem", "0"], "at least"),
    (["boot", "guest:halt", "--mem", "1T"], "ask for less"),
    (["boot", "guest:halt", "--mem", "x"], "not a size"),
    (["boot", "guest:halt", "--mem", "999999999999999999999G"], "size"),
    (["boot", "guest:halt", "--cpus", "0"], "CPUs"),
    (["boot", "guest:halt", "--cpus", "5000"], "CPUs"),
    (["boot", "guest:halt", "--cpus", "-1"], "CPUs"),
    (["boot", "guest:halt", "--timeout", "-1"], "not a time"),
    (["boot", "guest:halt", "--timeout", "nan"], "not a time"),
    (["boot", "guest:halt", "--max-exits", "0"], "at least 1"),
    (["boot", "guest:halt", "--kvm", "{tmp}/missing"], "no {tmp}/missing"),
    (["boot", "guest:halt", "--kvm", "/dev/null"], "not KVM"),
    (["boot", "guest:halt", "--stats", "{tmp}/no/such.json"], "cannot be written"),
    (["boot", "guest:halt", "--console", "teletype"], "use stdio"),
    (["boot", "guest:halt", "--console", "file:{tmp}/no/such"], "console file"),
    (["boot", "guest:hello-elf64", "--append", "x" * 100_000], "command line"),
    (["boot", "guest:hello-multiboot", "--initrd", "{tmp}/missing"], "no such file"),
    (["boot", "guest:hello-multiboot", "--initrd", "{tmp}/large", "--mem", "16M"], "RAM"),
    (["boot", "guest:hello-elf64", "--entry", "0x99"], "entry point"),
    (["boot", "guest:halt", "--load-addr", "1T"], "not a number"),
    (["boot"], "required"),
    (["frobnicate"], "invalid choice"),
    (["bench", "exits", "--rounds", "0"], "rounds"),
]


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(case[0])[:50] for case in BAD])
def test_bad_usage_is_one_line_and_status_2(
    guests: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "truncated.elf").write_bytes((guests / "hello-elf64.elf").read_bytes()[:100])
    with open(tmp_path / "large", "wb") as file:
        file.truncate(64 << 20)
    try:
        status: object = main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    except SystemExit as error:
        status = error.code
    said, errors = capfd.readouterr()
    assert (status, said) == (2, "")
    assert errors.count("\n") == 1, errors
    assert words.replace("{tmp}", str(tmp_path)) in errors
    assert errors.startswith("pyvmm")


def test_bad_usage_from_the_shell(tmp_path: Path) -> None:
    done = pyvmm("boot", tmp_path / "missing")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_no_permission_says_what_to_do(guests: Path, tmp_path: Path) -> None:
    # A node that nobody may open stands for /dev/kvm without the right; root opens everything, so drop the right to override.
    device = tmp_path / "kvm"
    device.touch(mode=0o000)
    code = (
        "import os, sys\n"
        "if os.getuid() == 0: os.setgid(65534), os.setuid(65534)\n"
        f"from pyvmm import Machine, HostError\n"
        f"try: Machine('1M', kvm={str(device)!r})\n"
        "except HostError as error: print(error)\n"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and folder.owner() == Path(tmp_path).owner():
            folder.chmod(folder.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport pyvmm.machine\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "permission" in done.stdout and "kvm" in done.stdout and done.stdout.count("\n") == 1


def test_host(guests: Path) -> None:
    done = pyvmm("host")
    assert done.returncode == 0
    for word in ("API version 12", "module", "paging", "Capabilities", "Parts of the lab"):
        assert word in done.stdout
    document = json.loads(pyvmm("host", "--json").stdout)
    assert document["kvm"]["api_version"] == 12
    assert document["kvm"]["paging"] in ("ept", "npt", "kvm-shadow", "unknown")
    assert pyvmm("host", "--kvm", "/nonexistent").returncode == 2


def test_guests_are_listed(guests: Path) -> None:
    assert "hello-elf64" in pyvmm("guests").stdout


def test_bench_exits(guests: Path) -> None:
    document = json.loads(pyvmm("bench", "exits", "--rounds", "1", "--json").stdout)
    assert document["pio_ratio"] > 0.5 and document["mmio_ratio"] > 0.5
    assert document["host"]["module"]


def test_bench_start(guests: Path) -> None:
    document = json.loads(pyvmm("bench", "start", "--rounds", "1", "--json").stdout)
    assert document["ratio"] > 0.1


def test_closed_output_is_no_traceback(guests: Path) -> None:
    for arguments in (["host"], ["boot", str(guests / "hello-multiboot.elf")]):
        with subprocess.Popen(
            [*COMMAND, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            errors = process.stderr.read().decode()
        assert "Traceback" not in errors and "Exception" not in errors


class Terminal:
    """`pyvmm boot` on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.slave = slave
        self.process = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, stdin=slave, stdout=slave, stderr=slave)
        self.seen = b""

    def expect(self, text: bytes, timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} did not appear in {self.seen!r}"
            self.seen += os.read(self.master, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> int:
        status = self.process.wait(20)
        os.close(self.master)
        os.close(self.slave)
        return status


def test_a_terminal_is_raw_while_the_guest_runs(guests: Path) -> None:
    import termios

    terminal = Terminal("boot", str(guests / "echo.elf"))
    before = termios.tcgetattr(terminal.slave)
    terminal.expect(b"echo ready")
    terminal.type(b"x\x03y")  # Ctrl-C goes to the guest
    terminal.expect(b"x\x03y")
    terminal.type(b"\x01h")
    terminal.expect(b"Ctrl-A")
    terminal.type(b"\x01x")
    assert terminal.process.wait(20) == 0
    assert termios.tcgetattr(terminal.slave) == before
    terminal.close()


def test_the_terminal_is_restored_after_a_kill(guests: Path) -> None:
    import termios

    terminal = Terminal("boot", str(guests / "echo.elf"))
    before = termios.tcgetattr(terminal.slave)
    terminal.expect(b"echo ready")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(20) == 143
    assert termios.tcgetattr(terminal.slave) == before
    terminal.close()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_hit_nobody_else(guests: Path, closed: str) -> None:
    # A closed descriptor's number must not become KVM's or the guest memory's, which output would then overwrite.
    script = f"{sys.executable} -m pyvmm boot guest:hello-elf64 {closed}"
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else "Hello from ELF64 long mode\n")
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_said(guests: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["boot", "guest:hello-elf64", "--stats", "/dev/full"], "/dev/full: cannot be written"),
        (["boot", "guest:hello-elf64", "--console", "file:/dev/full"], "console output was lost"),
        (["boot", "guest:hello-elf64", "--stats", ""], "cannot be written"),
    ):
        done = pyvmm(*arguments)
        assert done.returncode == 2
        assert words in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    for arguments in (["host"], ["host", "--json"], ["guests"], ["boot", "guest:hello-elf64"]):
        with open("/dev/full", "w") as full:
            process = subprocess.run([*COMMAND, *arguments], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False)
        assert process.returncode == 2
        assert b"No space left" in process.stderr and b"Traceback" not in process.stderr


def test_stats_to_a_device(guests: Path) -> None:
    done = pyvmm("boot", "guest:halt", "-q", "--stats", "/dev/stderr")
    assert done.returncode == 0
    assert json.loads(done.stderr)["result"]["reason"] == "halt"


def test_a_reader_that_stalls_does_not_hold_the_run(tmp_path: Path) -> None:
    spam = tmp_path / "spam.bin"
    spam.write_bytes(bytes.fromhex("ba f803 b041 ee ebfd"))  # mov dx, 0x3f8; mov al, 'A'; 1: out dx, al; jmp 1b
    command = [*COMMAND, "boot", str(spam), "--timeout", "1"]
    began = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 8192)  # full long before the time limit
        assert process.wait(30) == 124
        assert 0 < len(process.stdout.read()) <= 8192
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM])
def test_signals_give_the_terminal_back(guests: Path, number: signal.Signals) -> None:
    import termios

    for delay in (0.05, 0.3):
        terminal = Terminal("boot", str(guests / "echo.elf"))
        before = termios.tcgetattr(terminal.slave)
        terminal.expect(b"echo ready")
        time.sleep(delay)
        terminal.process.send_signal(number)
        assert terminal.process.wait(20) == 128 + number
        assert termios.tcgetattr(terminal.slave) == before
        terminal.close()


def test_ctrl_c_during_start_up_is_no_traceback(guests: Path) -> None:
    statuses: set[int] = set()
    # A slow host is still importing at the eighth step: go on until the command line itself has answered.
    for step in range(60):
        if step >= 8 and 130 in statuses:
            break
        command = [*COMMAND, "boot", str(guests / "exit-loop-pio.elf"), "--timeout", "20"]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            time.sleep(0.06 + 0.03 * step)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        # Until pyvmm's command line runs, the interpreter answers for itself, and shows where it was.
        assert b"Traceback" not in errors or b"in entry" not in errors, errors.decode()
        statuses.add(process.returncode)
    assert statuses <= {130, 1, -signal.SIGINT} and 130 in statuses
