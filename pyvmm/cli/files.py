"""Files that commands write."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pyvmm.errors import HostError, UsageError


def write_json(path: str) -> Callable[[Any], None]:
    """Return a function that writes a JSON document to `path` as `write_file` does."""
    write = write_file(path)

    def write_document(document: Any) -> None:
        import json

        write((json.dumps(document, indent=1) + "\n").encode())

    return write_document


def write_file(path: str) -> Callable[[bytes], None]:
    """Return a function that writes content to `path`, whole or not at all.

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

    def write(content: bytes) -> None:
        target = path if special else f"{path}.{os.getpid()}.tmp"
        try:
            with open(target, "wb") as file:
                file.write(content)
            if not special:
                os.replace(target, path)
        except OSError as error:
            if not special:
                with suppress(OSError):
                    os.unlink(target)
            raise HostError(f"{path}: cannot be written: {error.strerror}") from None

    return write
