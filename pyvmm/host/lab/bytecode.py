"""Bytecode for a machine on which compiling is slow: .pyc files that are taken without a look at their source (PEP 552)."""

from __future__ import annotations

import importlib.util
import marshal
import os
import struct

_HEADER = struct.Struct("<4sIQ")
_TIMESTAMP, _UNCHECKED_HASH = 0, 1
_TIMES = struct.Struct("<4sIII")


def bytecode(path: str, source: bytes) -> bytes | None:
    """Compile the module at `path`, whose content is `source`, into a .pyc with an unchecked hash.

    This Python's own cache is used where it is up to date. None if the source does not compile: some files are made not to.
    """
    code = _cached(path, len(source))
    if code is None:
        try:
            code = marshal.dumps(compile(source, path, "exec", dont_inherit=True))
        except (SyntaxError, ValueError):
            return None
    digest = int.from_bytes(importlib.util.source_hash(source), "little")
    return _HEADER.pack(importlib.util.MAGIC_NUMBER, _UNCHECKED_HASH, digest) + code


def bytecode_path(path: str) -> str:
    """Return where the interpreter looks for the bytecode of the module at `path`, whatever PYTHONPYCACHEPREFIX says here."""
    import sys

    folder, name = os.path.split(path)
    return os.path.join(folder, "__pycache__", f"{name.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc")


def _cached(path: str, size: int) -> bytes | None:
    try:
        with open(bytecode_path(path), "rb") as file:
            cached = file.read()
        magic, flags, mtime, length = _TIMES.unpack_from(cached)
        seconds = int(os.stat(path).st_mtime) & 0xFFFFFFFF
    except (OSError, struct.error):
        return None
    if (magic, flags, mtime, length) != (importlib.util.MAGIC_NUMBER, _TIMESTAMP, seconds, size & 0xFFFFFFFF):
        return None
    return cached[_TIMES.size :]
