"""What a device is to the rest of pyvmm: reads, writes, one interrupt line, and a state that can be saved.

A device knows no KVM, no address and no thread: the bus hands it offsets into its own window, the machine calls it from
one thread at a time, and interrupts leave through an injected line. A complete device:

    class Dice(Device):
        name = "dice"

        def read(self, offset: int, size: int) -> int:
            return random.randint(1, 6)
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from pyvmm.devices.registers import RegisterMap
from pyvmm.errors import DeviceError

T = TypeVar("T")


class Action:
    """Base of what a write may ask of the machine; returned by `Device.write`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self).__name__)


class PowerOff(Action):
    """The guest switches the machine off."""

    __slots__ = ()


class Reset(Action):
    """The guest pulls the machine's reset line."""

    __slots__ = ()


class Panic(Action):
    """The guest reports that its kernel panicked."""

    __slots__ = ()


class DebugExit(Action):
    """The guest ends the run and reports a number.

    Attributes:
        value: what the guest wrote, unchanged (the exit status is made from it elsewhere).
    """

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"DebugExit({self.value:#x})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DebugExit) and self.value == other.value

    def __hash__(self) -> int:
        return hash(("DebugExit", self.value))


class IrqLine(Protocol):
    """An interrupt line as a device sees it: a level, high is asserted."""

    def set(self, level: bool) -> None:
        """Drive the line to `level`."""


class NoIrq:
    """An interrupt line that goes nowhere: the default of every device."""

    __slots__ = ()

    def set(self, level: bool) -> None:
        """Ignore `level`."""


class Device:
    """Base of all devices; override what the device has.

    The bus only calls `read` and `write` with accesses that lie whole inside a window of the device.

    Attributes:
        name: what traces, statistics and error messages call the device.
        irq: the interrupt line; the machine replaces it when it wires the device up.
        registers: their declarations, if the device has any worth a name.
    """

    name: str = "device"
    irq: IrqLine = NoIrq()
    registers: RegisterMap | None = None

    def read(self, offset: int, size: int) -> int:
        """Return `size` bytes at `offset` as a little-endian number; the default is a floating bus, all ones."""
        return (1 << (size * 8)) - 1

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Take `size` bytes at `offset`; return what the machine shall do about it, mostly nothing."""
        return None

    def reset(self) -> None:
        """Bring the device to its power-on state."""

    def state(self) -> dict[str, Any]:
        """Return all that the guest could notice, in JSON's types only."""
        return {}

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore in place what `state` returned, interrupt line included; a malformed state raises `StateError`."""

    def describe(self, offset: int, size: int, value: int, write: bool) -> str:
        """Return an access in words for traces, as "LSR=0x60 THRE TEMT"; never changes the device."""
        if self.registers is None:
            return f"+{offset:#x}={value:#x}"
        return self.registers.describe(offset, value, write)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class ByteDevice(Device):
    """A device on an 8-bit bus: a wider access becomes byte accesses at ascending offsets, as the ISA bus does it."""

    def read(self, offset: int, size: int) -> int:
        """Return `size` bytes at `offset`."""
        if size == 1:
            return self.read_byte(offset)
        return sum(self.read_byte(offset + i) << (i * 8) for i in range(size))

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Take `size` bytes at `offset`; the first wish that a byte raises ends the access."""
        for i in range(size):
            action = self.write_byte(offset + i, value >> (i * 8) & 0xFF)
            if action is not None:
                return action
        return None

    def read_byte(self, offset: int) -> int:
        """Return the byte at `offset`."""
        return 0xFF

    def write_byte(self, offset: int, value: int) -> Action | None:
        """Take the byte `value` at `offset`."""
        return None


class StateError(DeviceError):
    """A saved device state lacks a value or holds one of the wrong type.

    Attributes:
        key: the name of the value.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"saved device state: {key} {problem}; save it again with this version of pyvmm")
        self.key = key


def take(state: dict[str, Any], key: str, kind: type[T]) -> T:
    """Return `state[key]`, which must be of type `kind`; raises `StateError` otherwise.

    A bool does not pass for an int, as it does elsewhere in Python: the two differ in JSON.
    """
    value = state.get(key)
    if value is None:
        raise StateError(key, "is missing")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise StateError(key, f"is {type(value).__name__}, not {kind.__name__}")
    return value


def take_int(state: dict[str, Any], key: str, width: int) -> int:
    """Return `state[key]`, which must be an unsigned number of `width` bits; raises `StateError` otherwise."""
    value = take(state, key, int)
    if value < 0 or value >> width:
        raise StateError(key, f"is {value:#x}, not a number of {width} bits")
    return value


def take_bytes(state: dict[str, Any], key: str) -> bytes:
    """Return the bytes that `state[key]` holds as hexadecimal text; raises `StateError` if it is no such text."""
    text = take(state, key, str)
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise StateError(key, "is not hexadecimal text") from None
