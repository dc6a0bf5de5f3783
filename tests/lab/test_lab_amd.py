"""The AMD lab for real: what its commands see, say and leave behind."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.host.lab import Lab, LabError

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
NPT = "/sys/module/kvm_amd/parameters/npt"
START_LIMIT = 120
"""Seconds that a lab may take to start in a test: other tests may be running."""


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A comma means something to QEMU, a space to the kernel's command line and to shells.
    folder = tmp_path_factory.mktemp("share") / "a, b"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def lab(share: Path) -> Iterator[Lab]:
    """One lab for all that does not end it, with NPT off."""
    with Lab(npt=False, share=str(share), timeout=120) as lab:
        yield lab


def text(lab: Lab, *argv: str) -> str:
    result = lab.run(argv)
    assert result.status == 0, result
    return result.stdout.decode()


def test_npt_is_off_in_the_real_module(lab: Lab) -> None:
    assert lab.parameters["kvm_amd"]["npt"] == "N"
    assert text(lab, "cat", NPT) == "N\n"
    assert text(lab, "uname", "-r").strip() == lab.release != os.uname().release


def test_status_and_separate_streams(lab: Lab) -> None:
    result = lab.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.status, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert lab.run(["sh", "-c", "kill -TERM $$"]).status == 143
    missing = lab.run(["no-such-program-at-all"])
    assert missing.status == 127 and b"no-such-program-at-all" in missing.stderr


def test_check_raises(lab: Lab) -> None:
    with pytest.raises(LabError, match="status 4 in the lab: why not"):
        lab.run(["sh", "-c", "echo why not >&2; exit 4"], check=True)


def test_binary_input_and_output(lab: Lab) -> None:
    data = bytes(range(256)) * 4096
    assert lab.run(["cat"], input=data).stdout == data


def test_ten_megabytes_of_output(lab: Lab) -> None:
    result = lab.run(["head", "-c", "10000000", "/dev/zero"])
    assert result.stdout == bytes(10_000_000)


def test_time_limit_kills_the_command_and_not_the_lab(lab: Lab) -> None:
    began = time.monotonic()
    result = lab.run(["sh", "-c", "echo begun; sleep 1000"], timeout=2)
    assert (result.status, result.stdout) == (124, b"begun\n")
    assert time.monotonic() - began < 20
    assert text(lab, "echo", "well") == "well\n"


def test_the_host_is_visible_and_safe(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "seen").write_text("host")
    assert text(lab, "cat", str(tmp_path / "seen")) == "host"
    # Written to, read back, and none of it is there afterwards.
    script = f"echo lab >{tmp_path}/seen; echo new >{tmp_path}/new; cat {tmp_path}/seen {tmp_path}/new; rm -r {ROOT}/tests; ls {ROOT}"
    assert text(lab, "sh", "-c", script).startswith("lab\nnew\n")
    assert (tmp_path / "seen").read_text() == "host"
    assert os.listdir(tmp_path) == ["seen"]
    assert Path(__file__).exists()


def test_the_share_comes_back(lab: Lab, share: Path) -> None:
    (share / "in").write_text("from the host")
    script = (
        'cat in >out; head -c 100000 /dev/urandom >random; sha256sum <random; mkdir -p "sub dir"; echo x >"sub dir/x"'
    )
    result = lab.run(["sh", "-c", script], cwd=str(share), check=True)
    digest = subprocess.run(["sha256sum"], input=(share / "random").read_bytes(), capture_output=True, check=True)
    assert result.stdout == digest.stdout
    assert (share / "out").read_text() == "from the host"
    assert (share / "sub dir" / "x").read_text() == "x\n"
    (share / "later").write_text("seen at once")
    assert text(lab, "cat", str(share / "later")) == "seen at once"


def test_this_python_and_this_project(lab: Lab) -> None:
    program = "import sys, numpy, pyvmm; print(sys.executable, pyvmm.__file__)"
    assert text(lab, sys.executable, "-c", program).split() == [sys.executable, str(ROOT / "pyvmm" / "__init__.py")]
    assert text(lab, "sh", "-c", "echo $PYVMM_LAB; pwd; id -u").split() == ["amd", os.getcwd(), "0"]
    assert text(lab, "sh", "-c", "command -v python3").strip() == f"{os.path.dirname(sys.executable)}/python3"


def test_kvm_works_there(lab: Lab, guests: Path) -> None:
    result = lab.run([sys.executable, "-m", "pyvmm", "boot", str(guests / "hello-elf64.elf"), "--timeout", "60"])
    assert b"Hello" in result.stdout or b"hello" in result.stdout, result
    assert b"kvm-shadow" in lab.run([sys.executable, "-m", "pyvmm", "host"]).stdout


def test_a_terminal_in_the_lab(lab: Lab) -> None:
    result = lab.run(["sh", "-c", "stty size; tty"], size=(20, 70))
    assert b"20 70" in result.stdout and b"/dev/pts/" in result.stdout


def test_modules_can_be_reloaded(lab: Lab) -> None:
    script = f"rmmod kvm_amd && modprobe kvm_amd npt=1 && cat {NPT}; rmmod kvm_amd; modprobe kvm_amd npt=0; cat {NPT}"
    assert text(lab, "sh", "-c", script).split() == ["Y", "N"]


def pyvmm(*arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "pyvmm", "lab", *arguments]
    return subprocess.run(argv, capture_output=True, check=False, timeout=START_LIMIT, cwd=ROOT, **options)  # type: ignore[call-overload, no-any-return]


def test_command_line() -> None:
    script = f"cat; cat {NPT}; nproc; echo problem >&2; exit 9"
    done = pyvmm("run", "--set", "npt=on", "--cpus", "2", "--mem", "1G", "--", "sh", "-c", script, input=b"given\n")
    assert (done.returncode, done.stdout, done.stderr) == (9, b"given\nY\n2\n", b"problem\n")


def test_command_line_time_limit_with_a_stalled_reader() -> None:
    argv = [sys.executable, "-m", "pyvmm", "lab", "run", "--timeout", "3", "--", "yes"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.wait(START_LIMIT) == 124  # nobody reads the pipe
    finally:
        process.kill()
        assert process.stdout is not None
        process.stdout.close()


def test_command_line_with_a_reader_that_has_seen_enough() -> None:
    argv = [sys.executable, "-m", "pyvmm", "lab", "run", "--", "yes"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None and process.stderr is not None
    try:
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait(START_LIMIT) == 0
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.stderr.close()


def test_shell() -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("<4H", 31, 97, 0, 0))
    before = termios.tcgetattr(theirs)
    environment = {**os.environ, "SHELL": "/bin/sh", "PS1": "$ ", "TERM": "dumb"}
    argv = [sys.executable, "-m", "pyvmm", "lab", "shell", "--set", "npt=off"]
    shell = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment)
    said = bytearray()

    def expect(words: bytes) -> None:
        deadline = time.monotonic() + START_LIMIT
        while words not in said:
            assert select.select([ours], [], [], deadline - time.monotonic())[0], bytes(said)
            said.extend(os.read(ours, 4096))

    try:
        expect(b"# ")
        os.write(ours, f"stty size; cat {NPT}; echo $TERM\n".encode())
        expect(b"31 97\r\nN\r\ndumb\r\n")
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("<4H", 40, 120, 0, 0))
        shell.send_signal(signal.SIGWINCH)
        time.sleep(1)
        os.write(ours, b"stty size; sleep 1000\n")
        expect(b"40 120\r\n")
        os.write(ours, b"\x03")  # the sleep's, not ours
        os.write(ours, b"exit 6\n")
        assert shell.wait(START_LIMIT) == 6
        assert termios.tcgetattr(theirs) == before
    finally:
        shell.kill()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("death", "words"),
    [("echo c >/proc/sysrq-trigger", "Kernel panic"), ("busybox poweroff -f", "died")],
)
def test_a_lab_that_dies_is_an_error_at_once(death: str, words: str) -> None:
    with Lab(timeout=60) as lab:
        began = time.monotonic()
        with pytest.raises(LabError, match=words) as caught:
            lab.run(["sh", "-c", f"{death}; sleep 1000"])
        assert time.monotonic() - began < 30
        assert "\n" not in str(caught.value)
        with pytest.raises(LabError, match="has ended"):
            lab.run(["true"])


def test_a_lab_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    qemu = tmp_path / "qemu-system-x86_64"
    qemu.write_text("#!/bin/sh\n[ $1 = --version ] && echo QEMU version 7.2 && exit\necho cannot do it >&2\nexit 1\n")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(LabError, match=r"did not come up: .*cannot do it"):
        Lab().start()


def test_kill() -> None:
    lab = Lab()
    with lab:
        lab.run(["true"], check=True)
        lab.kill()
        with pytest.raises(LabError, match="has ended"):
            lab.run(["true"])
