"""What pyvmm says about a guest that failed: decoded exits, registers in words, disassembly, page walks, hints."""

from __future__ import annotations
