"""The keyboard controller of a PC (IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device Controller"), alone.

Guests use it to reset the machine and to open A20, and probe it for a keyboard, which is not there. The aim is that a
probe fails fast: the controller answers every command at once; a byte sent to the keyboard comes back as 0xfe
("resend") with the time-out bit set, so a driver gives up at the answer and not at its own deadline; the auxiliary
port's test reports a stuck line. Linux would wait half a second for each byte that a silent controller keeps back.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from pyvmm.devices.bus import Bus, Mapping
from pyvmm.devices.device import Action, ByteDevice, IrqLine, NoIrq, Reset, StateError, take, take_int
from pyvmm.devices.registers import Register, RegisterMap, bits

DATA_PORT, COMMAND_PORT = 0x60, 0x64
_DATA, _COMMAND = 0, 4  # offsets from the data port

DATA = Register("DATA", _DATA, 1, "rw")
_STATUS_BITS = bits("OBF", "IBF", "SYS", "CMD", "UNLOCKED", "AUX", "TIMEOUT", "PARITY")
STATUS = Register("STATUS", _COMMAND, 1, "r", *_STATUS_BITS)
COMMAND = Register("COMMAND", _COMMAND, 1, "w")
CTR = Register("CTR", 0, 1, "rw", *bits("KBDINT", "AUXINT", "SYS"), *bits("KBDDIS", "AUXDIS", "XLATE", start=4))

_A20 = 0x02
_NOT_RESET = 0x01  # output port bit 0 is the CPU's reset line, active low
_NO_ANSWER = 0xFE
_TIMED_OUT = STATUS["TIMEOUT"] << 8
_KEYBOARD = 0x100 << 8  # marks bytes that came (or failed to come) from a keyboard: these interrupt
_FIRMWARE_CTR = CTR["KBDINT"] | CTR["SYS"] | CTR["AUXDIS"] | CTR["XLATE"]

_ANSWERS = {
    0xA1: 0x00,  # controller version
    0xA4: 0xF1,  # password: none
    0xA9: 0x01,  # auxiliary interface test: clock stuck low, that is, no such port
    0xAB: 0x00,  # keyboard interface test: lines are fine, though nobody is at the other end
    0xC0: 0x80,  # input port: keyboard not locked
    0xE0: 0x00,  # test inputs
}


class I8042(ByteDevice):
    """The controller; `attach_to` claims ports 0x60 and 0x64 and leaves those between them to their owners.

    Attributes:
        a20: the A20 bit of the output port. KVM has no A20 gate: it is always open, the bit only reads back.
    """

    name = "i8042"
    registers = RegisterMap(DATA, STATUS, COMMAND)

    def __init__(self, irq: IrqLine | None = None) -> None:
        self.irq = NoIrq() if irq is None else irq
        self.command = _CommandPort(self)
        self._line = False
        self.reset()

    def attach_to(self, ports: Bus) -> list[Mapping]:
        """Claim both ports and return their windows."""
        return [ports.attach(DATA_PORT, 1, self), ports.attach(COMMAND_PORT, 1, self.command)]

    def reset(self) -> None:
        """Bring the controller to the state in which firmware leaves it: A20 open, keyboard on, translation on."""
        self._ctr = _FIRMWARE_CTR
        self._ram = bytearray(32)
        self._output = _NOT_RESET | _A20
        self._queue: deque[int] = deque()  # bytes for the guest, with their status bits eight bits up
        self._parameter_of = 0  # the command that waits for its parameter
        self._cmd_flag = 0
        self._last = 0
        self._update()

    @property
    def a20(self) -> bool:
        """Whether the guest has A20 open."""
        return bool(self._output & _A20)

    @property
    def status(self) -> int:
        """The status register."""
        value = STATUS["UNLOCKED"] | self._ctr & CTR["SYS"] | self._cmd_flag
        return value | STATUS["OBF"] | self._queue[0] >> 8 & 0xFF if self._queue else value

    def read_byte(self, offset: int) -> int:
        """Return data (offset 0), the last byte again if there is no new one, or status (offset 4)."""
        if offset == _COMMAND:
            return self.status
        if self._queue:
            self._last = self._queue.popleft() & 0xFF
            self._drive(False)  # each byte gets an edge of its own
            self._update()
        return self._last

    def write_byte(self, offset: int, value: int) -> Action | None:
        """Take data or a parameter (offset 0) or a command (offset 4); return `Reset` if the reset line is pulled."""
        if offset == _COMMAND:
            self._cmd_flag = STATUS["CMD"]
            return self._run(value)
        self._cmd_flag = 0
        command, self._parameter_of = self._parameter_of, 0
        if command:
            return self._parameter(command, value)
        self._ctr &= ~CTR["KBDDIS"]  # talking to the keyboard enables its interface
        self._send(_NO_ANSWER, _TIMED_OUT | _KEYBOARD)
        return None

    def _run(self, command: int) -> Action | None:
        self._parameter_of = 0
        if command in _ANSWERS:
            self._answer(_ANSWERS[command])
        elif 0x20 <= command <= 0x3F:
            self._answer(self._ram[command - 0x20] if command > 0x20 else self._ctr)
        elif 0x60 <= command <= 0x7F or 0xD1 <= command <= 0xD4:
            self._parameter_of = command
        elif command == 0xAA:
            self._ctr |= CTR["SYS"]
            self._answer(0x55)
        elif command in (0xAD, 0xAE):
            self._set_ctr(self._ctr & ~CTR["KBDDIS"] | (CTR["KBDDIS"] if command == 0xAD else 0))
        elif command == 0xD0:
            self._answer(self._output)
        elif command in (0xDD, 0xDF):
            self._output = self._output & ~_A20 | (_A20 if command == 0xDF else 0)
        elif command >= 0xF0 and not command & 1:
            return Reset()  # pulses output port bits that are 0 in the command; bit 0 is the reset line
        return None

    def _parameter(self, command: int, value: int) -> Action | None:
        if command == 0x60:
            self._set_ctr(value)
        elif command <= 0x7F:
            self._ram[command - 0x60] = value
        elif command == 0xD1:
            if not value & _NOT_RESET:
                return Reset()
            self._output = value
        elif command == 0xD2:
            self._send(value, _KEYBOARD)
        elif command == 0xD3:
            # A controller without the port does not mark the byte as the port's: that is how drivers tell.
            self._answer(value)
        else:
            self._answer(_NO_ANSWER, _TIMED_OUT | STATUS["AUX"] << 8)
        return None

    def _set_ctr(self, value: int) -> None:
        self._ctr = CTR.written(self._ctr, value) | CTR["AUXDIS"]
        self._update()

    def _answer(self, value: int, flags: int = 0) -> None:
        # An answer takes the place of what the guest did not fetch: it expects the next byte to be the answer.
        self._queue.clear()
        self._send(value, flags)

    def _send(self, value: int, flags: int) -> None:
        if len(self._queue) < 16:
            self._queue.append(value | flags)
        self._update()

    def _update(self) -> None:
        # The controller's own answers are polled for; what the keyboard says interrupts.
        self._drive(bool(self._queue and self._queue[0] & _KEYBOARD and self._ctr & CTR["KBDINT"]))

    def _drive(self, level: bool) -> None:
        if level != self._line:
            self._line = level
            self.irq.set(level)

    def state(self) -> dict[str, Any]:
        """Return the registers, the controller's RAM and the bytes that the guest has not fetched."""
        return {
            "ctr": self._ctr,
            "ram": list(self._ram),
            "output": self._output,
            "queue": list(self._queue),
            "parameter_of": self._parameter_of,
            "cmd_flag": bool(self._cmd_flag),
            "last": self._last,
        }

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned and drive the interrupt line to match."""
        queue, ram = take(state, "queue", list), take(state, "ram", list)
        for key, numbers, width in (("queue", queue, 17), ("ram", ram, 8)):
            if not all(type(number) is int and 0 <= number < 1 << width for number in numbers):
                raise StateError(key, f"holds something else than numbers of {width} bits")
        if len(queue) > 16 or len(ram) != 32:
            raise StateError("queue or ram", "has the wrong length")
        ctr, output, parameter_of, last = (take_int(state, k, 8) for k in ("ctr", "output", "parameter_of", "last"))
        self._cmd_flag = STATUS["CMD"] if take(state, "cmd_flag", bool) else 0
        self._ctr, self._output, self._parameter_of, self._last = ctr, output, parameter_of, last
        self._queue, self._ram = deque(queue), bytearray(ram)
        self._line = not (self._queue and self._queue[0] & _KEYBOARD and self._ctr & CTR["KBDINT"])
        self._update()


class _CommandPort(ByteDevice):
    """Port 0x64: the same chip at another offset, with no state of its own."""

    name = "i8042-command"
    registers = I8042.registers

    def __init__(self, chip: I8042) -> None:
        self._chip = chip

    def read_byte(self, offset: int) -> int:
        return self._chip.read_byte(_COMMAND)

    def write_byte(self, offset: int, value: int) -> Action | None:
        return self._chip.write_byte(_COMMAND, value)

    def describe(self, offset: int, size: int, value: int, write: bool) -> str:
        return self._chip.describe(_COMMAND, size, value, write)
