"""NumPy, and the layouts made of it, imported when they are first used.

To import NumPy takes longer than to create and start a virtual machine, and starting one needs none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Lazy:
    """Stands for a module until something of it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(import_module(self._name), attribute)
        setattr(self, attribute, value)  # found without this detour from now on
        return value


np = Lazy("numpy")
layout = Lazy("pyvmm.pykvm.layout")
