"""QEMU's firmware configuration device (docs/specs/fw_cfg of QEMU), traditional interface only: ports 0x510 and 0x511.

A 16-bit write to the selector chooses an entry and rewinds it, byte reads of the data port return it. The DMA interface
is not offered, and the ID entry says so. Entries are read-only, as in QEMU since 2.4.
"""

from __future__ import annotations

from typing import Any

from pyvmm.devices.device import Action, Device, take_int
from pyvmm.devices.registers import Register, RegisterMap
from pyvmm.errors import DeviceError

PORT = 0x510
SIZE = 2

SIGNATURE, ID, RAM_SIZE, NB_CPUS, MAX_CPUS, FILE_DIR, FILE_FIRST = 0x00, 0x01, 0x03, 0x05, 0x0F, 0x19, 0x20
_TRADITIONAL = 1
_NAME_SIZE = 56
_KEYS = 0xBFFF  # without the write-channel bit, which means nothing on read-only entries


class FwCfg(Device):
    """The selector and data ports, filled with what kernels and firmware ask for first.

    Add more with `add` and `add_file` before the guest runs.
    """

    name = "fw_cfg"
    registers = RegisterMap(Register("SELECTOR", 0, 2, "w"), Register("DATA", 1, 1, "r"))

    def __init__(self, ram_size: int, cpus: int = 1) -> None:
        self._entries: dict[int, bytes] = {}
        self._files: list[tuple[str, int]] = []
        self._key = 0
        self._offset = 0
        self.add(SIGNATURE, b"QEMU")
        self.add(ID, _TRADITIONAL.to_bytes(4, "little"))
        self.add(RAM_SIZE, ram_size.to_bytes(8, "little"))
        self.add(NB_CPUS, cpus.to_bytes(2, "little"))
        self.add(MAX_CPUS, cpus.to_bytes(2, "little"))
        self._write_directory()
        self._data = self._entries[SIGNATURE]

    def add(self, key: int, data: bytes) -> None:
        """Put `data` under `key` (14 bits, and bit 15 for the architecture's own) in place of what was there.

        Raises `DeviceError` for a key with other bits.
        """
        if not 0 <= key <= 0xFFFF or key & ~_KEYS:
            raise DeviceError(f"fw_cfg: key {key:#x} is not valid; use 0 to 0x3fff, or those with bit 15 set")
        self._entries[key] = bytes(data)

    def add_file(self, name: str, data: bytes) -> int:
        """Add a named file, list it in the directory, and return its key.

        Raises `DeviceError` if the name is taken or longer than 55 bytes.
        """
        if len(name.encode()) >= _NAME_SIZE:
            raise DeviceError(f"fw_cfg: file name {name!r} is longer than {_NAME_SIZE - 1} bytes; shorten it")
        if any(name == present for present, _ in self._files):
            raise DeviceError(f"fw_cfg: there is a file {name!r} already; choose another name")
        key = FILE_FIRST + len(self._files)
        self._files.append((name, key))
        self.add(key, data)
        self._write_directory()
        return key

    def _write_directory(self) -> None:
        # Numbers in the directory are big-endian, unlike those in the other entries.
        blob = len(self._files).to_bytes(4, "big")
        for name, key in self._files:
            size = len(self._entries[key])
            blob += size.to_bytes(4, "big") + key.to_bytes(2, "big") + bytes(2) + name.encode().ljust(_NAME_SIZE, b"\0")
        self._entries[FILE_DIR] = blob

    def reset(self) -> None:
        """Select the signature."""
        self._select(SIGNATURE)

    def _select(self, key: int) -> None:
        self._key = key
        self._offset = 0
        self._data = self._entries.get(key & _KEYS, b"")

    def read(self, offset: int, size: int) -> int:
        """Return the next byte of the entry, 0 past its end; other sizes than a byte read 0."""
        if size != 1:
            return 0
        at = self._offset
        if at >= len(self._data):
            return 0
        self._offset = at + 1
        return self._data[at]

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Select an entry by a 16-bit write; anything else is dropped."""
        if offset == 0 and size == 2:
            self._select(value)
        return None

    def state(self) -> dict[str, Any]:
        """Return the selection and the position in it; the entries belong to the configuration."""
        return {"key": self._key, "offset": self._offset}

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        key, offset = take_int(state, "key", 16), take_int(state, "offset", 64)
        self._select(key)
        self._offset = offset
