"""Make initial RAM file systems: cpio archives in the format that Linux unpacks, and one with busybox in it.

The format is "newc" (Documentation/driver-api/early-userspace/buffer-format.rst): for each file a header of 13 fields
of eight hexadecimal digits, its name and its content, both padded to four bytes; an entry named TRAILER!!! ends it.
"""

from __future__ import annotations

import os
import stat

from pyvmm.errors import HostError, UsageError

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"
_SIZE_LIMIT = 1 << 32
"""The size field has eight hexadecimal digits."""

SHELL_INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=linux
cd /root
# A shell with a controlling terminal, so that Ctrl-C reaches what runs in it.
setsid cttyhack sh -l
poweroff -f
"""
"""An /init that gives a root shell on the console and switches the machine off when the shell ends."""


class CpioArchive:
    """A newc archive under construction: entries are unpacked in the order in which they were added.

    Folders must be added before what lies in them. All files belong to root and have the time stamp 0, so that equal
    content makes an equal archive.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a folder."""
        self._add(path, stat.S_IFDIR | mode)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file.

        Raises:
            UsageError: the content has 4 GiB or more, which the format cannot say.
        """
        self._add(path, stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link to `target`."""
        self._add(path, stat.S_IFLNK | 0o777, os.fsencode(target))

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._add(path, stat.S_IFCHR | mode, device=(major, minor))

    def to_bytes(self) -> bytes:
        """Return the archive; more may be added afterwards."""
        return b"".join([*self._parts, self._header(_TRAILER, 0, 0, (0, 0))])

    def _add(self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        name = path.strip("/")
        if not name or "\0" in name:
            raise UsageError(f"{path!r} cannot be the name of a file in an archive")
        if len(content) >= _SIZE_LIMIT:
            raise UsageError(f"{path}: a file of {len(content)} bytes does not fit into a cpio archive (4 GiB)")
        self._inode += 1
        self._parts.append(self._header(name, mode, len(content), device))
        self._parts.append(content + bytes(-len(content) % 4))

    def _header(self, name: str, mode: int, size: int, device: tuple[int, int]) -> bytes:
        encoded = os.fsencode(name) + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # inode, mode, uid, gid, links, mtime, size, device (major, minor), special device (major, minor), name, check
        fields = (self._inode, mode, 0, 0, links, 0, size, 0, 0, *device, len(encoded), 0)
        header = (_MAGIC + "".join(f"{field:08x}" for field in fields)).encode() + encoded
        return header + bytes(-len(header) % 4)


def busybox_initrd(init: str = SHELL_INIT, busybox: str | None = None) -> bytes:
    """Make an initramfs that holds a static busybox and runs `init`, a script for `/bin/busybox sh`.

    Args:
        init: text of /init; process 1 of the guest. The default gives a shell on the console.
        busybox: path of the program; by default the one on PATH.

    Raises:
        HostError: there is no busybox, or it needs shared libraries, which the archive would lack.
    """
    path = busybox or _find_busybox()
    try:
        with open(path, "rb") as file:
            program = file.read()
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}: install a static busybox (Debian: busybox-static)") from error
    # The name of the dynamic loader stands near the start of every program that needs one.
    if b"/ld-linux" in program[:8192] or b"/ld-musl" in program[:8192]:
        raise HostError(f"{path} needs shared libraries: install a static one (Debian: busybox-static)")
    archive = CpioArchive()
    for folder in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
        archive.directory(folder)
    # The kernel opens /dev/console for process 1 before anything can be mounted.
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3, 0o666)
    archive.file("bin/busybox", program, 0o755)
    archive.symlink("bin/sh", "busybox")
    archive.file("init", init.encode(), 0o755)
    return archive.to_bytes()


def _find_busybox() -> str:
    import shutil

    found = shutil.which("busybox")
    if found is None:
        raise HostError("there is no busybox: install it (Debian: busybox-static)")
    return found
