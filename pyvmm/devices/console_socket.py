"""A console on a listening Unix socket, for one client at a time."""

from __future__ import annotations

import os
import select
import socket
import stat
import threading

from pyvmm.devices.console import Console, Deliver
from pyvmm.devices.console_pump import Pump
from pyvmm.errors import UsageError

KEEP = 64 << 10  # bytes of output kept for the next client, and held back by a slow one before the guest has to wait
_CHUNK = 4096
_PATIENCE = 0.05  # seconds between two looks at whether the run shall stop, while a client does not read
_LAST_SECONDS = 1.0  # how long `close` waits for a slow client


class SocketConsole(Console):
    """Listens at `path`; clients may come and go, one is served at a time and the next waits.

    Output while there is no client is kept, the latest 64 KiB of it, for the next one. A client that reads slowly slows
    the guest down; nothing is dropped on it.

    Attributes:
        path: of the socket.
        lost: bytes of output dropped while there was no client.
    """

    def __init__(self, path: str) -> None:
        """Listen at `path`, in place of a dead socket there; raises `UsageError` for anything else in the way."""
        self.path = path
        self.lost = 0
        self._listener = _listen(path)
        self._identity = _identity(path)
        self._client: socket.socket | None = None
        self._half_closed = False
        self._unsent = bytearray()
        self._changed = threading.Condition()
        self._closed = False
        self._deliver: Deliver = len
        self._pump: Pump | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a client now."""
        return self._client is not None

    def write(self, data: bytes) -> None:
        """Send to the client, or keep for the next."""
        with self._changed:
            if self._closed:
                return
            idle = not self._unsent
            self._unsent += data
            if idle:
                self._drain()
            if self._unsent and self._client is not None and self._pump is not None:
                if idle:
                    self._pump.wake()
                while not self._changed.wait_for(
                    lambda: len(self._unsent) <= KEEP or self._client is None or self._closed, _PATIENCE
                ):
                    if self.stopping():
                        break
            self._trim()

    def _trim(self) -> None:
        excess = len(self._unsent) - KEEP
        if excess > 0:
            del self._unsent[:excess]
            self.lost += excess

    def _drain(self) -> None:
        if self._client is None:
            return
        try:
            while self._unsent:
                del self._unsent[: self._client.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop_client()
        self._changed.notify_all()

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
        if self._pump is not None:
            self._pump.wake()
        self._changed.notify_all()

    def start(self, deliver: Deliver) -> None:
        """Begin to accept clients and to read from them."""
        self._deliver = deliver
        self._pump = Pump("console-socket", self._interest, self._ready)

    def _interest(self) -> dict[int, int]:
        with self._changed:
            if self._client is None:
                return {self._listener.fileno(): select.POLLIN}
            # A client that has shut down its sending side may still read; its going away shows as POLLHUP all the same.
            events = 0 if self._half_closed else select.POLLIN
            return {self._client.fileno(): events | (select.POLLOUT if self._unsent else 0)}

    def _ready(self, fd: int, events: int) -> None:
        data = b""
        with self._changed:
            if self._client is None:
                self._accept()
                return
            if fd != self._client.fileno():
                return
            if events & select.POLLOUT:
                self._drain()
            if self._client is not None and events & select.POLLIN:
                data = self._receive(self._client)
            elif events & (select.POLLHUP | select.POLLERR):
                self._drop_client()
        if data:
            self._deliver(data)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # the client has changed its mind
        client.setblocking(False)
        self._client = client
        self._half_closed = False
        self._drain()

    def _receive(self, client: socket.socket) -> bytes:
        try:
            data = client.recv(_CHUNK)
        except BlockingIOError:
            return b""
        except OSError:
            self._drop_client()
            return b""
        self._half_closed = not data
        return data

    def close(self) -> None:
        """Give a client what is left for it, then remove the socket."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        if self._pump is not None:
            self._pump.close()
        with self._changed:
            client, self._client = self._client, None
            rest = bytes(self._unsent)
            self._unsent.clear()
        if client is not None:
            try:
                client.settimeout(_LAST_SECONDS)
                client.sendall(rest)
            except OSError:
                pass  # it went away, or would not read
            client.close()
        self._listener.close()
        if _identity(self.path) == self._identity:
            os.unlink(self.path)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_way(path)
        listener.bind(path)
        listener.listen(1)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        # Python says "AF_UNIX path too long" without an error number.
        raise UsageError(f"console socket {path}: {error.strerror or error}; choose another path") from None
    except UsageError:
        listener.close()
        raise
    return listener


def _make_way(path: str) -> None:
    """Remove a socket at `path` that nobody listens on; raise `UsageError` if there is anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"console socket {path}: something that is no socket is there; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.settimeout(1.0)
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except TimeoutError:
            pass
    raise UsageError(f"console socket {path}: another process listens there; choose another path")
