"""The Intel lab's first disk: boot loader, kernel, modules, and this Python as files that are read when they are used.

It is an ISO 9660 image that boots from a hard disk. Making it takes some seconds, so it is kept in the cache under a name that its content
decides, and a list of the files that went into it, with sizes and times, tells whether it is still good.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pyvmm.boot.cpio import CpioArchive
from pyvmm.errors import HostError, ImageError
from pyvmm.host.lab import guestinit
from pyvmm.host.lab.bochs import CYLINDER
from pyvmm.host.lab.bytecode import bytecode, bytecode_path
from pyvmm.host.lab.closure import FileTree, python_identity, python_tree
from pyvmm.host.lab.packages import find_tool
from pyvmm.host.lab.rawkernel import repack

if TYPE_CHECKING:
    from pyvmm.host.lab.kernel import LabKernel

_FORMAT = "1"
"""Changed whenever what this module puts onto the disk changes in a way that the guest's init does not show."""

_KEPT = 2
"""How many disks stay in the cache: the one in use and the one before it."""

_LOADER = "/usr/lib/ISOLINUX/isolinux.bin"
_LOADER_LIBRARY = "/usr/lib/syslinux/modules/bios/ldlinux.c32"
_HARD_DISK_LOADER = "/usr/lib/ISOLINUX/isohdpfx.bin"

# Sections that bear on stack traces and on ftrace alone. The kernel sorts and patches them for seconds of emulated time.
_UNUSED_SECTIONS = (".orc_unwind", ".orc_unwind_ip", ".orc_header", "__mcount_loc", ".BTF")

_XZ, _GZIP, _ZSTD = b"\xfd7zXZ\0", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def boot_disk(kernel: LabKernel, folder: str, say: Callable[[str], None] | None = None) -> str:
    """Return the path of the disk for this kernel and this Python, made in the cache folder `folder` if it is not there.

    Safe with several processes at once. A process that is killed leaves nothing half done.

    Args:
        say: called with one line before something slow.

    Raises:
        HostError: a tool is missing or fails.
    """
    tools = [path for path in (find_tool("busybox"), _LOADER, _LOADER_LIBRARY, _HARD_DISK_LOADER) if path]
    fixed = [kernel.vmlinuz, *kernel.module_files(*guestinit.DISK_MODULES, *guestinit.KVM_MODULES), *tools]
    parts = [_FORMAT, guestinit.init_script((), ()), guestinit.CMDLINE, *python_identity(), *fixed]
    name = hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]
    path = os.path.join(folder, f"intel-{name}.iso")
    with locked(folder):
        if not _is_good(path):
            if say is not None:
                say("making the Intel lab's disk (once)")
            _make(path, kernel, fixed)
        os.utime(path)
        _prune(folder)
    return path


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Make the cache folder if need be, and keep other processes from changing it meanwhile.

    Raises:
        HostError: it cannot be made.
    """
    import fcntl

    try:
        os.makedirs(folder, exist_ok=True)
        lock = open(os.path.join(folder, "intel.lock"), "w", encoding="ascii")  # noqa: SIM115
    except OSError as error:
        raise HostError(f"the cache folder {folder} cannot be used ({error.strerror}): set XDG_CACHE_HOME") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def initramfs(busybox: bytes, disk_modules: dict[str, bytes], kvm_modules: dict[str, bytes]) -> bytes:
    """Make the initial RAM file system: busybox, modules by name in the order in which they are loaded, and the init."""
    archive = CpioArchive()
    for name in ("bin", "dev", "proc", "sys", "iso", "work", "root"):
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox, 0o755)
    archive.file("init", guestinit.init_script(disk_modules, kvm_modules).encode(), 0o755)
    archive.directory("m")
    for name, content in (disk_modules | kvm_modules).items():
        archive.file(f"m/{name}.ko", content)
    return archive.to_bytes()


def module_content(path: str) -> bytes:
    """Read a module, uncompressed and without what serves debugging only.

    Raises:
        HostError: it cannot be read, or is compressed with something that is missing here.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}") from None
    return strip(_unpack(content, path))


def strip(content: bytes) -> bytes:
    """Drop a module's symbols and the sections that only tracing and stack traces use; without objcopy return it as it is."""
    import subprocess
    import tempfile

    objcopy = find_tool("objcopy")
    if objcopy is None:
        return content
    removed = [option for section in _UNUSED_SECTIONS for option in ("-R", section, "-R", f".rela{section}")]
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        done = subprocess.run(
            [objcopy, "--strip-unneeded", *removed, file.name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise HostError(f"objcopy cannot strip a kernel module: {done.stderr.strip().splitlines()[-1:]}")
        with open(file.name, "rb") as stripped:  # objcopy may have put another file in its place
            return stripped.read()


def add_busybox(tree: FileTree, busybox: str) -> None:
    """Add busybox with all its applets, where the tree has no program of that name."""
    import subprocess

    done = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    tree.files["/usr/bin/busybox"] = busybox
    for name in done.stdout.split():
        path = f"/usr/bin/{name}"
        if path not in tree.files and path not in tree.links:
            tree.links[path] = "busybox"
    for folder in ("/bin", "/sbin"):
        if not any(path.startswith(f"{folder}/") for path in tree.files):
            tree.links[folder] = "usr/bin"
        elif f"{folder}/sh" not in tree.files:
            tree.links[f"{folder}/sh"] = "/usr/bin/busybox"


def graft(tree: FileTree, stage: str, root: str = "/tree") -> list[str]:
    """List a tree for xorriso, as PATH ON DISK=PATH HERE, and put what is not on this host as it shall be into `stage`."""
    lines = []
    for number, (path, source) in enumerate(tree.files.items()):
        lines.append(f"{_escape(root + path)}={_escape(source)}")
        if path.endswith(".py"):
            with open(source, "rb") as file:
                code = bytecode(path, file.read())
            if code is not None:
                staged = os.path.join(stage, f"{number}.pyc")
                with open(staged, "wb") as out:
                    out.write(code)
                lines.append(f"{_escape(root + bytecode_path(path))}={_escape(staged)}")
    for number, (path, target) in enumerate(tree.links.items()):
        staged = os.path.join(stage, f"{number}.link")
        os.symlink(target, staged)
        lines.append(f"{_escape(root + path)}={_escape(staged)}")
    return lines


def pad(path: str, unit: int = CYLINDER) -> None:
    """Lengthen a file with zeros to a multiple of `unit` bytes."""
    size = os.path.getsize(path)
    os.truncate(path, -(-size // unit) * unit)


def _make(path: str, kernel: LabKernel, fixed: list[str]) -> None:
    from pyvmm.host.lab.contain import Keeper

    busybox = find_tool("busybox")
    assert busybox is not None
    with Keeper(parent=os.path.dirname(path)) as keeper:
        stage = keeper.folder
        tree = python_tree()
        add_busybox(tree, os.path.realpath(busybox))
        modules = [_modules(kernel, names) for names in (guestinit.DISK_MODULES, guestinit.KVM_MODULES)]
        contents = {
            "initrd": initramfs(_read(busybox), *modules),
            "vmlinuz": _kernel(_read(kernel.vmlinuz)),
            "isolinux.cfg": guestinit.BOOT_MENU.encode(),
            "passwd": b"root:x:0:0:root:/root:/bin/sh\n",
            "group": b"root:x:0:\n",
        }
        for name, content in contents.items():
            with open(os.path.join(stage, name), "wb") as file:
                file.write(content)
        lines = [
            *(f"/{name}={_escape(os.path.join(stage, name))}" for name in ("initrd", "vmlinuz")),
            *(f"/tree/etc/{name}={_escape(os.path.join(stage, name))}" for name in ("passwd", "group")),
            f"/isolinux/isolinux.cfg={_escape(os.path.join(stage, 'isolinux.cfg'))}",
            f"/isolinux/isolinux.bin={_LOADER}",
            f"/isolinux/ldlinux.c32={_LOADER_LIBRARY}",
            *graft(tree, stage),
        ]
        with open(os.path.join(stage, "list"), "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write("\n".join(lines) + "\n")
        image = os.path.join(stage, "image")
        hybrid = ("-isohybrid-mbr", _HARD_DISK_LOADER)
        keeper.start(
            [find_tool("xorriso") or "xorriso", *_XORRISO, *hybrid, "-o", image, "-path-list", f"{stage}/list"]
        )
        if keeper.wait() or not os.path.exists(image):
            raise HostError(f"xorriso cannot make the lab's disk: {' / '.join(keeper.log().strip().splitlines()[-3:])}")
        pad(image)
        _write_list(path, [*fixed, *tree.files.values()])
        os.rename(image, path)


_XORRISO = (
    *("-as", "mkisofs", "-quiet", "-R", "-graft-points"),
    *(
        "-b",
        "isolinux/isolinux.bin",
        "-c",
        "isolinux/boot.cat",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-boot-info-table",
    ),
)


def _modules(kernel: LabKernel, names: tuple[str, ...]) -> dict[str, bytes]:
    return {guestinit.module_name(path): module_content(path) for path in kernel.module_files(*names)}


def _kernel(image: bytes) -> bytes:
    try:
        return repack(image)
    except ImageError:
        return image  # it boots all the same, a minute later


def _escape(path: str) -> str:
    """Write a path as one side of a graft point of mkisofs."""
    return path.replace("\\", "\\\\").replace("=", "\\=")


def _unpack(content: bytes, path: str) -> bytes:
    import subprocess

    if content.startswith(_XZ):
        import lzma

        return lzma.decompress(content)
    if content.startswith(_GZIP):
        import gzip

        return gzip.decompress(content)
    if content.startswith(_ZSTD):
        zstd = find_tool("zstd")
        if zstd is None:
            raise HostError(f"{path} is compressed with zstd, which is missing: apt-get install zstd")
        done = subprocess.run([zstd, "-dqc"], input=content, capture_output=True, check=False)
        if done.returncode:
            raise HostError(f"{path}: zstd cannot unpack it")
        return done.stdout
    return content


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}") from None


def _stamp(path: str) -> str:
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns} {path}"


def _write_list(path: str, files: Iterable[str]) -> None:
    temporary = f"{path}.files.new"
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{_stamp(name)}\n" for name in files)
    os.rename(temporary, f"{path}.files")


def _is_good(path: str) -> bool:
    """Tell whether a disk is there and each file that went into it is as it was then."""
    if not os.path.exists(path):
        return False
    try:
        with open(f"{path}.files", encoding="utf-8", errors="surrogateescape") as file:
            return all(_stamp(line.split(" ", 2)[2]) == line for line in file.read().splitlines())
    except (OSError, IndexError):
        return False


def _prune(folder: str) -> None:
    """Remove all but the disks that were used last; a running lab keeps the one that it has open."""
    disks = [
        os.path.join(folder, name) for name in os.listdir(folder) if name.startswith("intel-") and name.endswith(".iso")
    ]
    for path in sorted(disks, key=os.path.getmtime)[:-_KEPT]:
        for name in (path, f"{path}.files"):
            if os.path.exists(name):
                os.unlink(name)
