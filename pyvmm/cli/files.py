"""Files that commands read and write."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pyvmm.errors import HostError, UsageError

_PREFIX = "guest:"


def guest_folder() -> str | None:
    """Find the built guests: in the installed package, else in the source tree that this runs from."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for folder in (os.path.join(package, "_guests"), os.path.join(os.path.dirname(package), "guests", "build")):
        if os.path.isdir(folder):
            return folder
    return None


def list_guests() -> dict[str, str]:
    """Return the built guests: name to path, in alphabetical order."""
    folder = guest_folder()
    if folder is None:
        return {}
    files = sorted(name for name in os.listdir(folder) if name.endswith((".elf", ".bin")))
    return {name.rsplit(".", 1)[0]: os.path.join(folder, name) for name in files}


def guest_path(image: str) -> str:
    """Return the path that `image` names: `guest:NAME` is one of pyvmm's own guests, all else a path."""
    if not image.startswith(_PREFIX):
        return image
    guests = list_guests()
    name = image.removeprefix(_PREFIX)
    if name not in guests:
        known = ", ".join(guests) if guests else "none are built: run make -C guests"
        raise UsageError(f"no guest named {name!r} ({known})")
    return guests[name]


def write_json(path: str) -> Callable[[Any], None]:
    """Return a function that writes a JSON document to `path`, whole or not at all.

    The folder is checked now: a run of an hour must not end in a path that cannot be written.

    Raises:
        UsageError: the path is a folder, or its folder is missing or not writable.
        HostError: (when writing) the disk is full or failed.
    """
    # What exists and is no file (/dev/stderr, a pipe) is written to, all else is replaced.
    special = os.path.exists(path) and not os.path.isfile(path)
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.access(path if special else folder, os.W_OK):
        raise UsageError(f"{path}: cannot be written; name a file in a folder that exists and is writable")

    def write(document: Any) -> None:
        import json

        text = json.dumps(document, indent=1) + "\n"
        target = path if special else f"{path}.{os.getpid()}.tmp"
        try:
            with open(target, "w", encoding="utf-8") as file:
                file.write(text)
            if not special:
                os.replace(target, path)
        except OSError as error:
            if not special:
                with suppress(OSError):
                    os.unlink(target)
            raise HostError(f"{path}: cannot be written: {error.strerror}") from None

    return write
