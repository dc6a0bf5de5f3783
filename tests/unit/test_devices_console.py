"""Console back ends: nothing lost, terminals restored, no thread and no descriptor left."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pyvmm.devices import (
    Console,
    ConsoleTimeout,
    FileConsole,
    MemoryConsole,
    PtyConsole,
    SocketConsole,
    StdioConsole,
    parse_console,
)
from pyvmm.devices.console import write_all
from pyvmm.devices.console_pump import Pump
from pyvmm.errors import UsageError

LONG = 10.0
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Check that a test gives back every descriptor and thread."""

    def used() -> tuple[set[str], set[threading.Thread]]:
        fds = set()
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the directory's own descriptor
                fds.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
        return fds, set(threading.enumerate())

    before = used()
    yield
    assert used() == before


class Inbox:
    """What a console delivered; any thread may wait for it."""

    def __init__(self) -> None:
        self.data = b""
        self._news = threading.Condition()

    def __call__(self, data: bytes) -> None:
        assert data
        with self._news:
            self.data += data
            self._news.notify_all()

    def wait_for(self, data: bytes) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self.data) >= len(data), LONG), self.data
        assert self.data == data


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        assert select.select([fd], [], [], LONG)[0], f"only {data!r} came"
        data += os.read(fd, size - len(data))
    return data


def feed(console: Console, data: bytes, step: int) -> threading.Thread:
    """Write `data` in steps on a thread of its own, as a guest would."""

    def write() -> None:
        for at in range(0, len(data), step):
            console.write(data[at : at + step])

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def silent(fd: int, seconds: float = 0.05) -> bool:
    return not select.select([fd], [], [], seconds)[0]


# The thread


def test_pump_ends_though_another_wake_up_swallows_that_of_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is told to close between the moment it wakes for something else and the moment it takes the wake-up."""
    read, write = os.pipe()
    pump = Pump("console-test", lambda: {read: select.POLLIN}, lambda fd, events: None)
    closer = threading.Thread(target=pump.close, daemon=True)
    take = os.eventfd_read

    def take_late(fd: int) -> int:
        closer.start()
        until(lambda: pump._closing)
        time.sleep(0.02)
        return take(fd)

    monkeypatch.setattr(os, "eventfd_read", take_late)
    pump.wake()
    until(lambda: pump._closing)
    closer.join(LONG / 5)
    assert not closer.is_alive()
    pump.close()
    os.close(read)
    os.close(write)


# In memory


def test_expect_finds_text_once_and_in_order() -> None:
    console = MemoryConsole()
    console.write(b"boot 1\r\nlogin: boot 2\r\n")
    assert console.expect(r"boot (\d)")[1] == "1"
    assert console.expect(r"boot (\d)")[1] == "2"
    with pytest.raises(ConsoleTimeout, match=r"within 0\.01 s") as caught:
        console.expect("login", timeout=0.01)
    assert caught.value.pattern == "login"
    assert caught.value.seen == "\r\n"
    assert console.text == "boot 1\r\nlogin: boot 2\r\n"


def test_expect_counts_bytes_right_whatever_they_are() -> None:
    console = MemoryConsole()
    console.write("é→\n".encode() + b"\xff\xfe\xc3" + "ü!".encode())
    assert console.expect("é→")
    assert console.expect(re.compile("ü"))
    assert console.expect("!").string == "!"
    assert console.output.startswith("é".encode())


def test_expect_waits_for_another_thread() -> None:
    console = MemoryConsole()

    def guest() -> None:
        for byte in b"noise" * 2000 + b"ready>":
            console.write(bytes((byte,)))

    thread = threading.Thread(target=guest)
    thread.start()
    assert console.expect("ready>", timeout=LONG)
    thread.join()
    assert len(console.output) == 10_006


def test_expect_ends_with_the_console() -> None:
    console = MemoryConsole()
    console.write(b"almost")
    timer = threading.Timer(0.02, console.close)
    timer.start()
    with pytest.raises(ConsoleTimeout, match=r"closed; the last output is 'almost'"):
        console.expect("never", timeout=LONG)
    timer.join()
    console.write(b" done")
    assert console.expect("done")


def test_input_sent_early_is_kept() -> None:
    console, inbox = MemoryConsole(), Inbox()
    console.send("one ")
    console.send(b"two ")
    assert inbox.data == b""
    console.start(inbox)
    console.send("three")
    assert inbox.data == b"one two three"
    console.close()
    console.send("late")
    assert inbox.data == b"one two three"


# Files, nothing, and names


def test_file_is_emptied_or_appended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old")
    with FileConsole(str(path)) as console:
        console.start(Inbox())
        console.write(b"a\x00")
        assert path.read_bytes() == b"a\x00"
    with FileConsole(str(path), append=True) as console:
        console.write(b"b")
    console.write(b"after close")
    console.close()
    assert path.read_bytes() == b"a\x00b"


@pytest.mark.parametrize("path", ["/", "/nonexistent/log"])
def test_file_that_cannot_be_written(path: str) -> None:
    with pytest.raises(UsageError, match=f"console file {path}: "):
        FileConsole(path)


def test_full_disk_is_remembered_and_stops_nothing() -> None:
    with FileConsole("/dev/full") as console:
        console.write(b"a")
        console.write(b"b")
        assert console.error is not None
        assert console.error.errno == errno.ENOSPC


def test_consoles_by_name(tmp_path: Path) -> None:
    for spec, kind in {
        "stdio": StdioConsole,
        "pty": PtyConsole,
        "none": Console,
        f"file:{tmp_path}/a:b": FileConsole,
        f"unix:{tmp_path}/sock": SocketConsole,
    }.items():
        with parse_console(spec) as console:
            assert type(console) is kind
    assert (tmp_path / "a:b").exists()
    with Console() as console:
        console.start(Inbox())
        console.write(b"nobody reads this")


@pytest.mark.parametrize("spec", ["", "file", "file:", "unix:", "stdio:x", "pty:", "none:", "tcp:1", "STDIO"])
def test_unknown_console_names_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="use stdio, pty, none, file:PATH or unix:PATH"):
        parse_console(spec)


# Standard input and output


class Terminal:
    """A pty pair with the console under test on its slave side."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.quits: list[threading.Thread] = []
        self.inbox = Inbox()
        self.console = StdioConsole(lambda: self.quits.append(threading.current_thread()), self.slave, self.slave)

    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before and not self.console.raw

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.console.close()
    assert terminal.restored()
    os.close(terminal.master)
    os.close(terminal.slave)


def test_raw_mode_passes_every_key_and_is_undone(terminal: Terminal) -> None:
    assert terminal.restored()
    terminal.console.start(terminal.inbox)
    assert terminal.console.raw
    keys = b"a\r\n\x03\x04\x11\x13\x1a\x1c\x7f\xff"
    terminal.type(keys)
    terminal.inbox.wait_for(keys)
    assert silent(terminal.master)  # no echo
    terminal.console.write(b"line\n")
    assert read_exactly(terminal.master, 6) == b"line\r\n"
    terminal.console.close()
    assert terminal.restored()
    terminal.console.close()


def test_escapes(terminal: Terminal) -> None:
    terminal.console.start(terminal.inbox)
    terminal.type(b"1\x01a2\x01\x013\x01z4\x01")
    terminal.type(b"h")
    terminal.type(b"x\x01x5")
    terminal.inbox.wait_for(b"1\x012\x0134x5")
    assert len(terminal.quits) == 1
    assert terminal.quits[0] is not threading.current_thread()
    assert b"Ctrl-A x" in os.read(terminal.master, 4096)


def test_quit_may_close_the_console(terminal: Terminal) -> None:
    terminal.console.on_quit = terminal.console.close
    terminal.console.start(terminal.inbox)
    terminal.type(b"\x01x")
    until(terminal.restored)


def test_terminal_that_hangs_up_ends_input() -> None:
    terminal = Terminal()
    terminal.console.start(terminal.inbox)
    os.close(terminal.master)
    until(lambda: not any(t.name == "console-stdio" for t in threading.enumerate()))
    terminal.console.write(b"x")
    assert terminal.console.error is not None
    terminal.console.close()
    os.close(terminal.slave)


def test_piped_input_is_plain_and_ends() -> None:
    read, write = os.pipe()
    inbox = Inbox()
    console = StdioConsole(input_fd=read, output_fd=-1)
    console.start(inbox)
    assert not console.raw
    data = b"\x01x\x01h" * 50_000
    write_all(write, data)
    inbox.wait_for(data)
    os.close(write)
    until(lambda: not any(t.name == "console-stdio" for t in threading.enumerate()))
    console.close()
    os.close(read)


def test_closed_or_empty_input_is_none() -> None:
    inbox = Inbox()
    null = os.open("/dev/null", os.O_RDONLY)
    for fd in (null, -1):
        console = StdioConsole(input_fd=fd)
        console.start(inbox)
        console.close()
    os.close(null)
    assert inbox.data == b""


def test_output_survives_a_slow_reader_that_does_not_block_us() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    console = StdioConsole(input_fd=-1, output_fd=write)
    data = os.urandom(300_000)
    writer = feed(console, data, 7000)
    time.sleep(0.02)
    assert read_exactly(read, len(data)) == data
    writer.join()
    assert console.error is None
    os.close(read)
    os.close(write)


def test_broken_pipe_is_remembered_and_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    console = StdioConsole(input_fd=-1, output_fd=write)
    console.write(b"a")
    console.write(b"b")
    assert isinstance(console.error, BrokenPipeError)
    console.close()
    os.close(write)


def test_default_quit_interrupts_like_ctrl_c(terminal: Terminal) -> None:
    caught = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.set())
    try:
        console = StdioConsole(input_fd=terminal.slave, output_fd=terminal.slave)
        console.start(terminal.inbox)
        terminal.type(b"\x01x")
        until(caught.is_set)
        console.close()
    finally:
        signal.signal(signal.SIGINT, before)


CHILD = """
import os, sys, termios
from pyvmm.devices import StdioConsole
import fcntl
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
"""


def test_terminal_is_restored_at_exit_without_close() -> None:
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    script = CHILD + "c = StdioConsole(); c.start(len); print(c.raw, flush=True); sys.exit(3)"
    child = subprocess.run(
        [sys.executable, "-c", script], stdin=slave, stdout=slave, start_new_session=True, timeout=30
    )
    assert child.returncode == 3
    assert termios.tcgetattr(slave) == before
    assert os.read(master, 100) == b"True\r\n"
    os.close(master)
    os.close(slave)


def test_job_in_the_background_leaves_the_terminal_alone() -> None:
    master, slave = os.openpty()
    script = CHILD + (
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os.setpgid(0, 0)\n"
        "    c = StdioConsole(); c.start(len); print(c.raw, flush=True); c.close(); os._exit(4)\n"
        "status = os.waitpid(pid, os.WUNTRACED)[1]\n"
        "sys.exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 99)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], stdin=slave, stdout=slave, start_new_session=True, timeout=30
    )
    assert child.returncode == 4
    assert os.read(master, 100) == b"False\r\n"
    os.close(master)
    os.close(slave)


# Pseudo-terminal


def test_pty_carries_both_ways_and_over_clients() -> None:
    inbox = Inbox()
    console = PtyConsole()
    console.write(b"early\n")
    console.start(inbox)
    for word in (b"one\r", b"two\x03"):
        client = os.open(console.path, os.O_RDWR | os.O_NOCTTY)
        console.write(b"prompt> ")
        expected = b"early\nprompt> " if word == b"one\r" else b"prompt> "
        assert read_exactly(client, len(expected)) == expected
        os.write(client, word)
        inbox.wait_for(b"one\r" if word == b"one\r" else b"one\rtwo\x03")
        assert silent(client)  # no echo
        os.close(client)
    console.close()
    console.close()
    console.write(b"after close")
    assert not os.path.exists(console.path)


@pytest.mark.parametrize("started", [True, False])
def test_pty_without_reader_never_blocks_and_keeps_the_latest(started: bool) -> None:
    console = PtyConsole()
    if started:
        console.start(Inbox())
    data = b"".join(b"%07d\n" % i for i in range(40_000))
    for at in range(0, len(data), 1000):
        console.write(data[at : at + 1000])
    assert console.lost > 0
    if started:
        client = os.open(console.path, os.O_RDONLY | os.O_NOCTTY)
        got = read_exactly(client, len(data) - console.lost)
        assert got.endswith(data[-65536:])
        assert silent(client)
        os.close(client)
    console.close()


# Unix socket


@pytest.fixture
def sock(tmp_path: Path) -> Iterator[SocketConsole]:
    console = SocketConsole(str(tmp_path / "console"))
    yield console
    console.close()
    assert not os.path.exists(console.path)


def connect(console: SocketConsole) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(LONG)
    client.connect(console.path)
    return client


def receive(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = client.recv(size - len(data))
        assert chunk, f"only {len(data)} bytes came"
        data += chunk
    return data


def test_socket_keeps_output_for_the_first_client_and_reconnects(sock: SocketConsole) -> None:
    inbox = Inbox()
    sock.write(b"before start ")
    sock.start(inbox)
    sock.write(b"before client ")
    with connect(sock) as client:
        assert receive(client, 27) == b"before start before client "
        sock.write(b"live")
        assert receive(client, 4) == b"live"
        client.sendall(b"typed")
        inbox.wait_for(b"typed")
        assert sock.connected
    until(lambda: not sock.connected)
    sock.write(b"meanwhile")
    with connect(sock) as client:
        assert receive(client, 9) == b"meanwhile"
        client.sendall(b" again")
        inbox.wait_for(b"typed again")


def test_second_client_waits_for_the_first(sock: SocketConsole) -> None:
    inbox = Inbox()
    sock.start(inbox)
    with connect(sock) as first:
        until(lambda: sock.connected)
        with connect(sock) as second:
            second.sendall(b"let me in")
            sock.write(b"one")
            assert receive(first, 3) == b"one"
            assert silent(second.fileno())
            assert inbox.data == b""
            first.close()
            inbox.wait_for(b"let me in")
            sock.write(b"two")
            assert receive(second, 3) == b"two"


def test_output_without_client_is_bounded_to_the_latest(sock: SocketConsole) -> None:
    sock.start(Inbox())
    data = os.urandom(200_000)
    for at in range(0, len(data), 1000):
        sock.write(data[at : at + 1000])
    assert sock.lost == len(data) - 65536
    with connect(sock) as client:
        assert receive(client, 65536) == data[-65536:]


def test_slow_client_loses_nothing(sock: SocketConsole) -> None:
    sock.start(Inbox())
    data = os.urandom(1_000_000)
    with connect(sock) as client:
        until(lambda: sock.connected)
        writer = feed(sock, data, 999)
        time.sleep(0.03)
        assert receive(client, len(data)) == data
        writer.join()
    assert sock.lost == 0


def test_waiting_for_a_client_that_leaves_ends(sock: SocketConsole) -> None:
    sock.start(Inbox())
    client = connect(sock)
    until(lambda: sock.connected)
    writer = feed(sock, bytes(2_000_000), 5000)
    time.sleep(0.03)
    assert writer.is_alive()
    client.close()
    writer.join(LONG)
    assert not writer.is_alive()


def test_client_that_only_listens_keeps_getting_output(sock: SocketConsole) -> None:
    inbox = Inbox()
    sock.start(inbox)
    with connect(sock) as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        inbox.wait_for(b"last words")
        time.sleep(0.02)
        sock.write(b"still here")
        assert receive(client, 10) == b"still here"
    until(lambda: not sock.connected)


def test_close_delivers_what_is_left(sock: SocketConsole) -> None:
    sock.start(Inbox())
    with connect(sock) as client:
        until(lambda: sock.connected)
        data = b""
        while not sock._unsent:  # until the kernel holds all it can
            sock.write(chunk := os.urandom(30_000))
            data += chunk
        closer = threading.Thread(target=sock.close)
        closer.start()
        assert receive(client, len(data)) == data
        assert client.recv(1) == b""
        closer.join()
    sock.write(b"after close")
    sock.close()


def test_close_gives_up_on_a_client_that_does_not_read(sock: SocketConsole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.devices.console_socket._LAST_SECONDS", 0.05)
    sock.start(Inbox())
    with connect(sock):
        until(lambda: sock.connected)
        writer = feed(sock, bytes(2_000_000), 5000)
        time.sleep(0.03)
        assert writer.is_alive()
        sock.close()
        writer.join(LONG)
        assert not writer.is_alive()


def test_dead_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "console")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with SocketConsole(path) as console:
        with pytest.raises(UsageError, match="another process listens there"):
            SocketConsole(path)
        assert os.path.exists(console.path)


def test_close_leaves_a_successor_alone(tmp_path: Path) -> None:
    path = tmp_path / "console"
    console = SocketConsole(str(path))
    path.unlink()
    path.write_text("something else")
    console.close()
    assert path.read_text() == "something else"


def test_paths_that_cannot_be_a_socket(tmp_path: Path) -> None:
    plain = tmp_path / "file"
    plain.write_text("precious")
    for path in (str(plain), str(tmp_path), "/nonexistent/console", str(tmp_path / ("x" * 120))):
        with pytest.raises(UsageError, match=f"console socket {re.escape(path)}: .*choose another path"):
            SocketConsole(path)
    assert plain.read_text() == "precious"
