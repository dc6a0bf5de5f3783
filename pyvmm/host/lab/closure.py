"""What a machine without this host's file system needs to run this Python: interpreter, standard library, packages, shared libraries.

Everything keeps its path, symbolic links on the way included, so that `sys.executable`, `sys.path` and file names in tracebacks
are the same there as here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator

from pyvmm.errors import HostError

_SKIPPED_FOLDERS = frozenset(
    (
        "__pycache__",
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "lib2to3",
        "ensurepip",
    )
)
_SKIPPED_FILES = re.compile(r"_tkinter\.|_ctypes_test\.|_test[a-z]*\.|_xxtestfuzz\.|xxlimited")
"""Extension modules of no use in a lab; the first alone would bring the libraries of X11."""

_PACKAGES = ("pyvmm", "pytest", "hypothesis")
_FALLBACK = ("numpy", "capstone")
"""What pyvmm depends on, for a source tree that was never installed."""

_PROJECT = ("pyvmm", "tests", "examples", "guests", "pyproject.toml", "README.md", "setup.py", "Makefile")
_PROJECT_SKIPPED = frozenset(("__pycache__", "obj"))
_LIBRARY = re.compile(r"(?:=>\s+)?(/\S+) \(0x")


class FileTree:
    """Files and symbolic links under absolute paths, to be rebuilt elsewhere.

    Attributes:
        files: path in the copy to path on this host; both lead through no symbolic link.
        links: path of a symbolic link to its target.
    """

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.links: dict[str, str] = {}

    def add(self, path: str) -> None:
        """Add the file at an absolute path, with every symbolic link that leads to it.

        Raises:
            HostError: its links lead in a circle.
        """
        todo = [part for part in os.path.normpath(path).split("/") if part]
        place = ""
        for _ in range(255):
            if not todo:
                self.files[place] = place
                return
            place = f"{place}/{todo.pop(0)}"
            try:
                target = os.readlink(place)
            except OSError:
                continue  # no link
            self.links[place] = target
            folder = "" if target.startswith("/") else os.path.dirname(place)
            todo = [part for part in os.path.normpath(f"{folder}/{target}").split("/") if part] + todo
            place = ""
        raise HostError(f"{path}: too many symbolic links")

    def add_folder(self, folder: str, skipped: Iterable[str]) -> None:
        """Add what lies below a folder, except in hidden folders and those of the given names."""
        for path, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in set(folders).difference(skipped) if not name.startswith("."))
            for name in sorted(name for name in files if not _SKIPPED_FILES.match(name)):
                self.add(os.path.join(path, name))
            for name in folders:
                if os.path.islink(os.path.join(path, name)):
                    self.add_link(os.path.join(path, name))

    def add_link(self, path: str) -> None:
        """Add one symbolic link, wherever it leads."""
        self.links[path] = os.readlink(path)


def python_tree() -> FileTree:
    """Collect this Python with all that pyvmm and its tests import, pyvmm's own source tree excepted.

    Raises:
        HostError: `ldd` is missing or fails.
    """
    import sysconfig

    tree = FileTree()
    tree.add(os.path.abspath(sys.executable))
    tree.add(os.path.realpath(sys.executable))
    stdlib = {os.path.abspath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    # A virtual environment has no standard library of its own.
    for folder in sorted(stdlib | {os.path.dirname(os.path.abspath(os.__file__))}):
        if os.path.exists(os.path.join(folder, "os.py")):
            tree.add_folder(folder, {*_SKIPPED_FOLDERS, *_named(folder, "config-")})
    if sys.prefix != sys.base_prefix:
        tree.add(os.path.join(sys.prefix, "pyvenv.cfg"))
        for name in ("python", "python3"):
            path = os.path.join(sys.prefix, "bin", name)
            if os.path.exists(path):
                tree.add(path)
    for path in _package_files():
        tree.add(path)
    own = package_folder()
    for path in [path for path in tree.files if path.startswith(own + "/")]:
        del tree.files[path]
    for path in libraries(tree.files.values()):
        tree.add(path)
    return tree


def python_identity() -> list[str]:
    """Return what decides which files `python_tree` finds: this interpreter and the versions of the packages."""
    from importlib import metadata

    packages = [f"{name} {metadata.version(name)}" for name in _closure(_PACKAGES)]
    return [sys.version, os.path.abspath(sys.executable), sys.prefix, sys.base_prefix, package_folder(), *packages]


def project_tree() -> FileTree:
    """Collect pyvmm itself: the source tree with tests, examples and built guests, or the installed package alone."""
    tree = FileTree()
    package = package_folder()
    root = os.path.dirname(package)
    if not os.path.exists(os.path.join(root, "pyproject.toml")):
        tree.add_folder(package, _PROJECT_SKIPPED)
        return tree
    for name in _PROJECT:
        path = os.path.join(root, name)
        if os.path.isdir(path):
            tree.add_folder(path, _PROJECT_SKIPPED)
        elif os.path.exists(path):
            tree.add(path)
    return tree


def package_folder() -> str:
    """Return the folder of the package pyvmm."""
    import pyvmm

    return os.path.realpath(os.path.dirname(pyvmm.__file__))


def libraries(files: Iterable[str]) -> list[str]:
    """List the shared libraries, dynamic linker included, that the ELF files among `files` need, by asking ldd(1).

    Raises:
        HostError: there is no ldd.
    """
    import subprocess

    elf = [path for path in files if _is_elf(path)]
    if not elf:
        return []
    try:
        done = subprocess.run(
            ["ldd", *elf],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={"PATH": os.defpath, "LC_ALL": "C"},
        )
    except OSError as error:
        raise HostError(f"ldd cannot be started ({error.strerror}): Debian's package libc-bin brings it") from None
    return parse_ldd(done.stdout)


def parse_ldd(text: str) -> list[str]:
    """Return the paths in the output of ldd(1), each once, in order. Libraries that it did not find are left out."""
    return list(dict.fromkeys(match[1] for line in text.splitlines() if (match := _LIBRARY.search(line))))


def _package_files() -> Iterator[str]:
    """Yield the files of the installed packages that pyvmm and its tests import, without their tests and bytecode."""
    from importlib import metadata

    for name in _closure(_PACKAGES):
        for file in metadata.files(name) or ():
            folders = file.parts[:-1]
            if _SKIPPED_FOLDERS.isdisjoint(folders):
                path = os.path.normpath(str(file.locate()))
                if os.path.isfile(path):
                    yield path


def _closure(names: Iterable[str]) -> list[str]:
    """Return the installed ones among the named distributions and all that they require, extras left out."""
    from importlib import metadata

    done: dict[str, bool] = {}
    todo = list(names)
    while todo:
        name = todo.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in done:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            done[key] = False
            todo += _FALLBACK if name == "pyvmm" else ()
            continue
        done[key] = True
        for text in requirements:
            if "extra ==" not in text and (match := re.match(r"[A-Za-z0-9._-]+", text)):
                todo.append(match[0])
    return sorted(name for name, installed in done.items() if installed)


def _named(folder: str, prefix: str) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(prefix)]


def _is_elf(path: str) -> bool:
    if not (".so" in path or os.access(path, os.X_OK)):
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"
