"""The guests that come with pyvmm, by name."""

from __future__ import annotations

import os

from pyvmm.errors import UsageError

PREFIX = "guest:"
"""`guest:NAME` stands for the path of a guest wherever an image is named."""


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
    if not image.startswith(PREFIX):
        return image
    guests = list_guests()
    name = image.removeprefix(PREFIX)
    if name not in guests:
        known = ", ".join(guests) if guests else "none are built: run make -C guests"
        raise UsageError(f"no guest named {name!r} ({known})")
    return guests[name]
