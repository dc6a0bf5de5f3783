"""What each lab needs on this host, and what brings it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from pyvmm.errors import HostError

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on every user's PATH


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that a lab needs.

    Attributes:
        name: the program or file.
        labs: "amd", "intel" or both.
        package: who brings it, as "Debian: kmod" or "PyPI: virtme-ng".
        purpose: what for.
        path: where it is, or None if it is missing.
    """

    name: str
    labs: tuple[str, ...]
    package: str
    purpose: str
    path: str | None


# Name, labs, package, purpose. A name with slashes is a file, one with bars several of which one will do.
_BOTH = ("amd", "intel")
_PARTS = (
    ("qemu-system-x86_64", ("amd",), "Debian: qemu-system-x86", "emulates an AMD CPU with SVM and nested paging"),
    ("virtme-run", ("amd",), "PyPI: virtme-ng", "boots the lab's kernel on this host's files"),
    ("file", ("amd",), "Debian: file", "virtme-ng reads the kernel's version with it"),
    ("busybox", _BOTH, "Debian: busybox-static", "first programs in the lab"),
    ("modprobe", ("amd",), "Debian: kmod", "finds the kernel's modules"),
    ("setsid", _BOTH, "Debian: util-linux", "gives the emulator a session of its own"),
    ("bochs", ("intel",), "Debian: bochs", "emulates an Intel CPU with VMX, EPT and VPID"),
    ("/usr/share/bochs/BIOS-bochs-latest", ("intel",), "Debian: bochsbios", "its BIOS"),
    (
        "/usr/share/vgabios/vgabios.bin|/usr/share/bochs/VGABIOS-lgpl-latest",
        ("intel",),
        "Debian: vgabios",
        "its VGA BIOS",
    ),
    ("/usr/lib/ISOLINUX/isolinux.bin", ("intel",), "Debian: isolinux", "boots the lab's disk"),
    ("/usr/lib/syslinux/modules/bios/ldlinux.c32", ("intel",), "Debian: syslinux-common", "the boot loader's library"),
    ("xorriso", ("intel",), "Debian: xorriso", "makes the lab's disk"),
)


def find_tool(name: str) -> str | None:
    """Return the path of a program: beside this Python, on PATH, or in the system's own folders; None if it is not there."""
    import shutil

    folders = [os.path.dirname(sys.executable), *os.environ.get("PATH", os.defpath).split(":"), *_SYSTEM_FOLDERS]
    return shutil.which(name, path=":".join(folders))


def lab_parts(cpu: str | None = None) -> list[Part]:
    """List what a lab needs, or what both need, and where it is. Never raises."""
    parts = [
        Part(name.partition("|")[0].rpartition("/")[2], labs, package, purpose, _find(name))
        for name, labs, package, purpose in _PARTS
        if cpu is None or cpu in labs
    ]
    parts.append(_kernel_part())
    return parts


def require(cpu: str) -> None:
    """Refuse, in one line, to start a lab that lacks something.

    Raises:
        HostError: it names what is missing and how to install it.
    """
    missing = [part for part in lab_parts(cpu) if part.path is None]
    if missing:
        what = ", ".join(part.name for part in missing)
        raise HostError(f"the {cpu} lab needs {what}: {install_hint(missing)}")


def install_hint(parts: list[Part]) -> str:
    """Return the commands that bring these parts."""
    commands = []
    for origin, command in (("Debian: ", "apt-get install"), ("PyPI: ", "pip install")):
        names = sorted({part.package.removeprefix(origin) for part in parts if part.package.startswith(origin)})
        if names:
            commands.append(f"{command} {' '.join(names)}")
    return " && ".join(commands)


def _find(name: str) -> str | None:
    if "/" not in name:
        path = find_tool(name)
        # Debian's package `busybox` brings one that needs libraries, which the lab's first programs cannot.
        return path if name != "busybox" or path is None or _is_static(path) else None
    return next((path for path in name.split("|") if os.path.exists(path)), None)


def _is_static(path: str) -> bool:
    """Tell whether a program names no dynamic loader (ELF, PT_INTERP: its path stands near the file's beginning)."""
    try:
        with open(path, "rb") as file:
            return b"/ld-linux" not in file.read(4096)
    except OSError:
        return False


def _kernel_part() -> Part:
    from pyvmm.host.lab.kernel import cached_kernel

    purpose = "the lab's kernel, fetched once (70 MB) when a lab first starts"
    try:
        kernel = cached_kernel()
    except HostError:
        kernel = None
    fetcher = find_tool("apt-get") if find_tool("dpkg") and find_tool("depmod") else None
    return Part("linux-image-amd64", _BOTH, "Debian: apt dpkg kmod", purpose, kernel.vmlinuz if kernel else fetcher)
