"""Where an image comes from: a file or bytes, read with checked bounds and copied straight into guest memory."""

from __future__ import annotations

import os
import stat
from types import TracebackType
from typing import TYPE_CHECKING

from pyvmm.errors import ImageError

if TYPE_CHECKING:
    from pyvmm.boot.options import Content
    from pyvmm.memory import GuestMemory

_KINDS = (
    (stat.S_ISDIR, "is a directory"),
    (stat.S_ISFIFO, "is a FIFO"),
    (stat.S_ISCHR, "is a character device"),
    (stat.S_ISBLK, "is a block device"),
)

_WANTED = {"image": "a file with a kernel in it", "initrd": "a cpio archive, compressed or not"}


def printable(text: str) -> str:
    """Return `text` in a form that takes one line and every terminal can show."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class Source:
    """An image that is open for reading; as a context manager it puts its path into each `ImageError` without one.

    A file is read with `pread` into the place where the bytes belong: no copy of a large image passes through Python,
    and a file that shrinks meanwhile is an error, where a mapping of it would be a SIGBUS.

    Attributes:
        path: the file's path in printable form, or None for bytes.
        size: length in bytes, not 0.
    """

    def __init__(self, content: Content, what: str = "image") -> None:
        """Open `content`: the path of a regular file, or bytes; messages about it as a whole call it `what`.

        Raises:
            ImageError: missing, unreadable, empty, or no regular file; `path` is set.
        """
        self._fd = -1
        self._data = b""
        self.path: str | None = None
        if isinstance(content, bytes):
            self._data = content
            self.size = len(content)
        else:
            name = os.fspath(content)
            self.path = printable(name) or "''"
            self.size = self._open(name)
        if not self.size:
            self.close()
            raise ImageError(f"the {what} is empty: give {_WANTED.get(what, 'one that is not')}", self.path)

    def _open(self, name: str) -> int:
        try:
            # O_NONBLOCK: opening a FIFO would wait for its writer.
            self._fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            status = os.fstat(self._fd)
        except ValueError:
            raise ImageError("no such file: the name contains a NUL", self.path) from None
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise ImageError(f"cannot be opened: {reason}", self.path) from None
        kind = next((words for test, words in _KINDS if test(status.st_mode)), None)
        if kind:
            self.close()
            raise ImageError(f"{kind}, not a file: give the path of an image", self.path)
        return status.st_size

    def read(self, offset: int, size: int, what: str = "image") -> bytes:
        """Read exactly `size` bytes at `offset`; `size` must be one that the caller has bounded.

        Raises:
            ImageError: they reach past the end; the message calls them `what`.
        """
        self.check(offset, size, what)
        if self._fd < 0:
            return self._data[offset : offset + size]
        try:
            data = os.pread(self._fd, size, offset)
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise ImageError(f"ends inside its {what}: it changed while being read, try again")
        return data

    def head(self, size: int) -> bytes:
        """Read the first `size` bytes, or all if there are fewer."""
        return self.read(0, min(size, self.size))

    def check(self, offset: int, size: int, what: str = "image") -> None:
        """Check that `[offset, offset + size)` lies in the image; raise `ImageError` if not."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ImageError(
                f"truncated: its {what} ends at byte {offset + size:#x}, the file at {self.size:#x}: "
                "get a complete copy"
            )

    def copy_to(self, memory: GuestMemory, gpa: int, offset: int, size: int, what: str = "image") -> None:
        """Copy `size` bytes at `offset` to guest memory at `gpa`, which must be RAM.

        Raises:
            ImageError: they reach past the end of the image.
        """
        self.check(offset, size, what)
        if not size:
            return
        with memory.view(gpa, size) as target:
            if self._fd < 0:
                target[:] = memoryview(self._data)[offset : offset + size]
                return
            done = 0
            while done < size:
                try:
                    count = os.preadv(self._fd, [target[done:]], offset + done)
                except OSError as error:
                    raise ImageError(f"cannot be read: {error.strerror}") from None
                if not count:
                    raise ImageError(f"ends inside its {what}: it changed while being read, try again")
                done += count

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(error, ImageError) and error.path is None and self.path is not None:
            raise ImageError(str(error), self.path) from None
