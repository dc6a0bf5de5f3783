"""The Intel lab's second and third disk: what a lab gets that changes from run to run, and the share's way back.

Both hold a tar archive and nothing else. The way over the disk takes no time; over the serial line a megabyte takes minutes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shlex
import sys
from typing import TYPE_CHECKING, BinaryIO

from pyvmm.errors import HostError, UsageError
from pyvmm.host.lab import guestinit
from pyvmm.host.lab.backend import LabError
from pyvmm.host.lab.bochs import CYLINDER
from pyvmm.host.lab.bootdisk import locked
from pyvmm.host.lab.bytecode import bytecode, bytecode_path
from pyvmm.host.lab.closure import project_tree

if TYPE_CHECKING:
    import tarfile

    from pyvmm.host.lab.settings import LabSpec

SHARE_LIMIT = 256 << 20
"""What the files of a share may amount to, each way."""

_SAVED = b"saved\n"

# The archive is written over the former one; the last line tells that all of it has reached the disk.
_SAVE = r"""#!/bin/sh
cd @SHARE@ && tar -c -f @DISK@ . && sync && echo saved
"""


# The copying never ends by itself, for the line has no end. (busybox cat would keep the pipe locked while it waits.)
_START = r"""#!/bin/sh
/usr/bin/busybox dd bs=4096 2>/dev/null | {{
    {python} -I -S {inside} {mailbox}
    echo "pyvmm lab: the agent has ended" >/dev/console
    /usr/bin/busybox poweroff -f
}}
"""


def job_archive(spec: LabSpec, cache: str) -> bytes:
    """Make the archive of the second disk: project, share, parameters of the modules, and the script that starts the agent.

    Raises:
        UsageError: the share is too large.
    """
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for module, values in spec.parameters.items():
            words = " ".join(f"{name}={value}" for name, value in values.items())
            add_file(archive, f"{guestinit.PARAMETERS}/{module}", f"{words}\n".encode())
        inside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inside.py")
        start = _START.format(python=shlex.quote(sys.executable), inside=shlex.quote(inside), mailbox=guestinit.MAILBOX)
        add_file(archive, guestinit.START, start.encode(), 0o755)
        _add_folder(archive, spec.cwd)
        _add_folder(archive, spec.environment.get("HOME", "/"))
        if spec.share is not None:
            save = _SAVE.replace("@SHARE@", shlex.quote(spec.share)).replace("@DISK@", guestinit.SHARE_DISK)
            add_file(archive, "/.pyvmm/save", save.encode(), 0o755)
            add_share(archive, spec.share)
    # One archive behind the other: what ends the first is cut off.
    return _project_archive(cache) + out.getvalue()


def add_file(archive: tarfile.TarFile, path: str, content: bytes, mode: int = 0o644) -> None:
    """Add a file of root's with a fixed time, so that equal content makes an equal archive."""
    import tarfile

    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def add_share(archive: tarfile.TarFile, share: str) -> None:
    """Add the share's folders, regular files and symbolic links under its absolute path; other kinds of file are left out.

    Raises:
        UsageError: the files are larger than `SHARE_LIMIT` together, or one cannot be read.
    """
    total = 0
    for path in _walk(share):
        entry = archive.gettarinfo(path, path.lstrip("/"))
        if entry is None or not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
            continue
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        if not entry.isreg():
            archive.addfile(entry)
            continue
        total += entry.size
        if total > SHARE_LIMIT:
            raise UsageError(
                f"the share {share} holds more than {SHARE_LIMIT >> 20} MiB, which is the most for the Intel lab"
            )
        try:
            with open(path, "rb") as file:
                archive.addfile(entry, file)
        except OSError as error:
            raise UsageError(f"{path} in the share cannot be read: {error.strerror}") from None


def blank_disk(path: str) -> None:
    """Make the third disk: empty, large enough for a share, and without taking room here until it is written to."""
    size = SHARE_LIMIT + (SHARE_LIMIT >> 4)
    with open(path, "wb") as file:
        file.truncate(-(-size // CYLINDER) * CYLINDER)


def write_disk(path: str, content: bytes) -> None:
    """Write a disk of whole cylinders."""
    with open(path, "wb") as file:
        file.write(content)
        file.truncate(-(-len(content) // CYLINDER) * CYLINDER)


def take_back(disk: BinaryIO, answer: bytes, share: str) -> None:
    """Bring into the share what changed in the lab: write each file whose content or mode is another than here.

    What was removed there stays here. Nothing outside of the share is touched, whatever the archive says.

    Args:
        disk: the third disk.
        answer: what the command that wrote it has said.

    Raises:
        LabError: the lab could not write it, or what it wrote is no archive.
        HostError: a file cannot be written here.
    """
    import tarfile

    if not answer.endswith(_SAVED):
        said = answer.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"more than {SHARE_LIMIT >> 20} MiB in it, or no memory left"
        raise LabError(f"the share could not be brought back from the lab: {reason}")
    root = os.path.realpath(share)
    try:
        with tarfile.open(fileobj=disk, mode="r:") as archive:
            for entry in archive:
                _restore(archive, entry, root)
    except tarfile.TarError as error:
        raise LabError(f"the share could not be brought back from the lab: {error}") from None
    except OSError as error:
        raise HostError(f"the share {share} cannot be written: {error.strerror}: {error.filename}") from None


def _restore(archive: tarfile.TarFile, entry: tarfile.TarInfo, root: str) -> None:
    path = os.path.normpath(os.path.join(root, entry.name))
    if path == root:
        return
    parent = os.path.dirname(path)
    if not f"{path}/".startswith(f"{root}/") or os.path.realpath(parent) != parent:
        return  # leads out of the share, by its name or through a symbolic link
    mode = entry.mode & 0o777
    if entry.isdir():
        if not os.path.isdir(path):
            os.makedirs(path, mode)
    elif entry.issym():
        if not (os.path.islink(path) and os.readlink(path) == entry.linkname):
            _remove(path)
            os.symlink(entry.linkname, path)
    elif entry.isreg() or entry.islnk():
        content = archive.extractfile(entry)
        assert content is not None
        data = content.read()
        if not _same(path, data, mode):
            _remove(path)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)


def _same(path: str, data: bytes, mode: int) -> bool:
    if os.path.islink(path) or not os.path.isfile(path):
        return False
    status = os.stat(path)
    if status.st_size != len(data) or status.st_mode & 0o777 != mode:
        return False
    with open(path, "rb") as file:
        return file.read() == data


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


def _add_folder(archive: tarfile.TarFile, path: str) -> None:
    import tarfile

    if path.strip("/"):
        entry = tarfile.TarInfo(path.strip("/"))
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)


def _walk(folder: str) -> list[str]:
    found = [folder]
    for path, folders, files in os.walk(folder):
        folders.sort()
        found += [os.path.join(path, name) for name in sorted([*folders, *files])]
    return found


def _project_archive(cache: str) -> bytes:
    """Return the archive of the project with its bytecode, without the zeros at its end; kept in the cache by its content."""
    import tarfile

    tree = project_tree()
    digest = hashlib.sha256(sys.version.encode())
    contents: dict[str, tuple[bytes, int]] = {}
    for path, source in tree.files.items():
        try:
            with open(source, "rb") as file:
                content = file.read()
                mode = os.fstat(file.fileno()).st_mode & 0o777
        except FileNotFoundError:
            continue  # a temporary file that is gone by now
        contents[path] = content, mode
        digest.update(f"{path}\0{mode}\0{len(content)}\0".encode(errors="surrogateescape") + content)
    digest.update(repr(sorted(tree.links.items())).encode())
    place = os.path.join(cache, f"intel-project-{digest.hexdigest()[:16]}.tar")
    try:
        with open(place, "rb") as file:
            return file.read()
    except FileNotFoundError:
        pass
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, target in tree.links.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
        for path, (content, mode) in contents.items():
            add_file(archive, path, content, mode)
            code = bytecode(path, content) if path.endswith(".py") else None
            if code is not None:
                add_file(archive, bytecode_path(path), code)
        end = archive.offset
    data = out.getvalue()[:end]
    _store(cache, place, data)
    return data


def _store(cache: str, place: str, data: bytes) -> None:
    """Keep an archive in the cache, and none of the former ones."""
    with locked(cache):
        former = [name for name in os.listdir(cache) if name.startswith("intel-project-")]
        temporary = f"{place}.new"
        with open(temporary, "wb") as file:
            file.write(data)
        os.rename(temporary, place)
        for name in former:
            if name != os.path.basename(place):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(cache, name))
