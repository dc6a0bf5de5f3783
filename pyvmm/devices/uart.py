"""The 16550A UART, with the interrupt rules of the chip (National Semiconductor, PC16550D data sheet, section 8).

Time is the one liberty: a line here has no baud rate. A byte written goes out at once, so the transmitter is always
empty afterwards; a receive FIFO below its trigger level times out at once. Bytes from the host arrive as fast as the
guest reads: up to 16 sit in the FIFO, the rest waits outside and refills it, so pasted text overruns no slow guest.
Parity and framing errors do not happen; `receive_break` makes a break; LCR's word format and break bit have no effect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from pyvmm.devices.device import Action, Device, IrqLine, NoIrq, StateError, take, take_int
from pyvmm.devices.uart_registers import FCR, IER, IIR, LCR, LSR, MCR, MSR, REGISTERS

FIFO_SIZE = 16
BACKLOG_LIMIT = 1 << 20  # bytes of input that wait outside the FIFO; what comes beyond is lost and shows as an overrun

_ERBFI, _ETBEI, _ELSI, _EDSSI = (IER[name] for name in ("ERBFI", "ETBEI", "ELSI", "EDSSI"))
_DR, _OE, _BI = LSR["DR"], LSR["OE"], LSR["BI"]
_TX_EMPTY = LSR["THRE"] | LSR["TEMT"]
_CHAR_ERRORS = LSR["PE"] | LSR["FE"] | LSR["BI"]  # belong to one character and show when it is next to be read
_DLAB, _LOOP, _OUT2 = LCR["DLAB"], MCR["LOOP"], MCR["OUT2"]
_CONNECTED = MSR["CTS"] | MSR["DSR"] | MSR["DCD"]  # the other end of the cable is there and ready
_NONE, _LINE, _DATA, _TIMEOUT, _THR, _MODEM = 0x01, 0x06, 0x04, 0x0C, 0x02, 0x00
_TRIGGERS = (1, 4, 8, 14)
_BYTES = tuple(bytes((i,)) for i in range(256))


def _take_characters(state: dict[str, Any], key: str, limit: int) -> deque[int]:
    chars: list[Any] = take(state, key, list)
    allowed = _CHAR_ERRORS << 8 | 0xFF
    if len(chars) > limit or not all(type(char) is int and 0 <= char == char & allowed for char in chars):
        raise StateError(key, f"is not a list of at most {limit} characters")
    return deque(chars)


def _discard(data: bytes) -> object:
    return None


class Uart(Device):
    """A 16550A: eight byte-wide registers, one interrupt, one cable.

    The power-on state is what a PC's firmware leaves: 9600 baud, OUT2 on, interrupts off.

    Attributes:
        output: called with each transmitted byte.
        lost: number of bytes from the host that found the backlog full.
    """

    registers = REGISTERS

    def __init__(
        self, output: Callable[[bytes], object] = _discard, irq: IrqLine | None = None, name: str = "uart"
    ) -> None:
        self.name = name
        self.output = output
        self.irq = NoIrq() if irq is None else irq
        self.lost = 0
        self._backlog: deque[int] = deque()
        self._line = False
        self._init()

    def _init(self) -> None:
        self._fifo: deque[int] = deque()  # characters, with their LSR error bits eight bits up
        self._ier = self._lcr = self._scr = 0
        self._fifo_on = False
        self._dma = 0
        self._trigger = 0
        self._mcr = _OUT2
        self._divisor = 12
        self._overrun = False
        self._deltas = 0
        self._thr_pending = False  # the latched "THR became empty" condition
        self._acked = False  # the guest reads IIR to take THR interrupts
        self._plain = True  # neither DLAB nor loopback: offset 0 is the cable
        self._inputs = _CONNECTED

    def reset(self) -> None:
        """Bring the chip to power-on state; input that still waits on the host's side stays."""
        self._init()
        self._refill()
        self._update()

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        """Read registers; LSR, the register that guests poll, first."""
        if size != 1:
            return sum(self.read(offset + i, 1) << (i * 8) for i in range(size))
        if offset == 5:
            if not self._fifo and not self._overrun:
                return _TX_EMPTY
            return self._read_lsr()
        if offset == 0:
            return self._divisor & 0xFF if self._lcr & _DLAB else self._read_rbr()
        if offset == 1:
            return self._divisor >> 8 if self._lcr & _DLAB else self._ier
        if offset == 2:
            return self._read_iir()
        if offset == 6:
            value = self._modem_inputs() | self._deltas
            if self._deltas:
                self._deltas = 0
                self._update()
            return value
        return (self._lcr, self._mcr, 0, 0, self._scr)[offset - 3]

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Write registers; THR, the register that guests write most, first."""
        if size != 1:
            for i in range(size):
                self.write(offset + i, 1, value >> (i * 8) & 0xFF)
            return None
        if offset == 0:
            if self._plain:
                self.output(_BYTES[value])
                if self._ier:
                    self._thr_emptied()
            elif self._lcr & _DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            else:
                self._loop_back(value)
                self._thr_emptied()
        elif offset == 1:
            if self._lcr & _DLAB:
                self._divisor = self._divisor & 0xFF | value << 8
            else:
                self._write_ier(value & IER.declared)
        elif offset == 2:
            self._write_fcr(value)
        elif offset == 3:
            self._lcr = value
            self._plain = not (value & _DLAB or self._mcr & _LOOP)
        elif offset == 4:
            self._write_mcr(value & MCR.declared)
        elif offset == 7:
            self._scr = value
        return None

    def _read_rbr(self) -> int:
        if not self._fifo:
            return 0
        value = self._fifo.popleft() & 0xFF
        # Reading RBR ends a time-out, and empties a lone RBR, before the next character arrives: the line drops there.
        if self._line and (not self._fifo_on or len(self._fifo) < _TRIGGERS[self._trigger]):
            self._drive(self._pending(receiver=False) != _NONE)
        self._refill()
        self._update()
        return value

    def _lsr(self) -> int:
        value = _TX_EMPTY | (_OE if self._overrun else 0)
        if self._fifo:
            value |= _DR | self._fifo[0] >> 8
            if self._fifo_on and any(char >> 8 for char in self._fifo):
                value |= LSR["ERFIFO"]
        return value

    def _read_lsr(self) -> int:
        value = self._lsr()
        if self._fifo:
            self._fifo[0] &= 0xFF
        self._overrun = False
        self._update()
        return value

    def _read_iir(self) -> int:
        source = self._pending()
        if source == _THR:
            self._thr_pending = False
            self._acked = True
            self._update()
        return source | (IIR["FIFO"] if self._fifo_on else 0)

    def _write_ier(self, value: int) -> None:
        changed = value ^ self._ier
        self._ier = value
        if changed & _ETBEI:
            # Enabling it while THR is empty raises it at once: drivers probe for exactly that.
            self._thr_pending = bool(value & _ETBEI)
            self._acked = False
        self._update()

    def _write_fcr(self, value: int) -> None:
        enable = bool(value & FCR["ENABLE"])
        if enable != self._fifo_on or (enable and value & FCR["RXRESET"]):
            self._fifo.clear()
        self._fifo_on = enable
        # The other bits are only taken along with the enable bit (data sheet, FCR bit 0).
        self._trigger = value >> 6 if enable else 0
        self._dma = value & FCR["DMA"] if enable else 0
        self._refill()
        self._update()

    def _write_mcr(self, value: int) -> None:
        before = self._modem_inputs()
        self._mcr = value
        self._plain = not (value & _LOOP or self._lcr & _DLAB)
        self._note_modem_change(before)
        self._refill()
        self._update()

    def _modem_inputs(self) -> int:
        mcr = self._mcr
        if not mcr & _LOOP:
            return self._inputs
        # Loopback wires RTS to CTS, DTR to DSR, OUT1 to RI and OUT2 to DCD (data sheet, MCR bit 4).
        return (mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & 8) << 4

    def _note_modem_change(self, before: int) -> None:
        now = self._modem_inputs()
        changed = before ^ now
        # TERI wants the trailing edge of the ring signal, the others any change.
        self._deltas |= changed >> 4 & 0x0B | (before & ~now) >> 4 & MSR["TERI"]

    def _thr_emptied(self) -> None:
        # The chip drops the interrupt at the write and raises it when the byte has left. A guest that acknowledges
        # through IIR cannot miss the next edge, so the two line changes are saved for each further byte of its burst.
        if not self._ier & _ETBEI:
            return
        if self._thr_pending and not self._acked:
            self._thr_pending = False
            self._update()
        if not self._thr_pending:
            self._thr_pending = True
            self._update()

    def _loop_back(self, value: int) -> None:
        room = FIFO_SIZE if self._fifo_on else 1
        if len(self._fifo) < room:
            self._fifo.append(value)
        else:
            self._overrun = True
            if not self._fifo_on:
                self._fifo[0] = value  # a lone RBR is overwritten, a FIFO keeps what it has
        self._update()

    # The cable's side

    def receive(self, data: bytes) -> int:
        """Take bytes from the other end; return how many were taken, the rest did not fit and sets OE."""
        taken = min(len(data), BACKLOG_LIMIT - len(self._backlog))
        self._backlog.extend(data[:taken])
        if taken < len(data):
            self.lost += len(data) - taken
            self._overrun = True
        self._refill()
        self._update()
        return taken

    def receive_break(self) -> None:
        """Take a break after what was received so far: a zero character marked BI; Linux makes a SysRq of it."""
        self._backlog.append(_BI << 8)
        self._refill()
        self._update()

    def set_modem_inputs(self, cts: bool = True, dsr: bool = True, ri: bool = False, dcd: bool = True) -> None:
        """Drive the four modem inputs of the cable; changes show as deltas in MSR."""
        before = self._modem_inputs()
        self._inputs = cts * MSR["CTS"] | dsr * MSR["DSR"] | ri * MSR["RI"] | dcd * MSR["DCD"]
        self._note_modem_change(before)
        self._update()

    @property
    def waiting(self) -> int:
        """Number of received bytes that the guest has not read yet."""
        return len(self._fifo) + len(self._backlog)

    def _refill(self) -> None:
        backlog, fifo = self._backlog, self._fifo
        if not backlog or self._mcr & _LOOP:
            return
        # Guests that ask for an interrupt for each byte may rely on an edge for each: hand those over one by one.
        room = FIFO_SIZE if self._fifo_on and self._trigger else 1
        while backlog and len(fifo) < room:
            fifo.append(backlog.popleft())

    # Interrupts

    def _pending(self, receiver: bool = True) -> int:
        """Return the identification of the most urgent enabled interrupt, as in IIR bits 3 to 0."""
        ier = self._ier
        if ier & _ELSI and (self._overrun or (self._fifo and self._fifo[0] >> 8)):
            return _LINE
        if receiver and ier & _ERBFI and self._fifo:
            return _DATA if not self._fifo_on or len(self._fifo) >= _TRIGGERS[self._trigger] else _TIMEOUT
        if self._thr_pending and ier & _ETBEI:
            return _THR
        if self._deltas and ier & _EDSSI:
            return _MODEM
        return _NONE

    def _level(self) -> bool:
        # A PC wires the interrupt through OUT2, and loopback holds the OUT2 pin inactive.
        return self._ier != 0 and self._mcr & (_OUT2 | _LOOP) == _OUT2 and self._pending() != _NONE

    def _update(self) -> None:
        self._drive(self._level())

    def _drive(self, level: bool) -> None:
        if level != self._line:
            self._line = level
            self.irq.set(level)

    # Saving, showing

    def describe(self, offset: int, size: int, value: int, write: bool) -> str:
        """Return an access in words; offsets 0 and 1 depend on DLAB."""
        return REGISTERS.describe(offset, value, write, "divisor" if self._lcr & _DLAB else "data")

    def dump(self) -> str:
        """Return all readable registers in words, one a line, without the side effects of reading them."""
        return REGISTERS.dump(
            {
                "IER": self._ier,
                "IIR": self._pending() | (IIR["FIFO"] if self._fifo_on else 0),
                "DLL": self._divisor & 0xFF,
                "DLM": self._divisor >> 8,
                "LCR": self._lcr,
                "MCR": self._mcr,
                "LSR": self._lsr(),
                "MSR": self._modem_inputs() | self._deltas,
                "SCR": self._scr,
            }
        )

    def state(self) -> dict[str, Any]:
        """Return the registers, both FIFO and backlog, and the latched conditions."""
        return {
            "ier": self._ier,
            "lcr": self._lcr,
            "mcr": self._mcr,
            "scr": self._scr,
            "divisor": self._divisor,
            "fifo_on": self._fifo_on,
            "trigger": self._trigger,
            "dma": self._dma,
            "fifo": list(self._fifo),
            "backlog": list(self._backlog),
            "overrun": self._overrun,
            "deltas": self._deltas,
            "inputs": self._inputs,
            "thr_pending": self._thr_pending,
            "acked": self._acked,
            "lost": self.lost,
        }

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned and drive the interrupt line to match."""
        fifo = _take_characters(state, "fifo", FIFO_SIZE)
        backlog = _take_characters(state, "backlog", 2 * BACKLOG_LIMIT)
        numbers = {
            key: take_int(state, key, width)
            for key, width in (("ier", 4), ("lcr", 8), ("mcr", 5), ("scr", 8), ("divisor", 16), ("trigger", 2))
        }
        flags = {key: take(state, key, bool) for key in ("fifo_on", "overrun", "thr_pending", "acked")}
        self._dma, self._deltas, self._inputs, self.lost = (
            take_int(state, key, width) for key, width in (("dma", 4), ("deltas", 4), ("inputs", 8), ("lost", 64))
        )
        self._fifo, self._backlog = fifo, backlog
        for key, value in (numbers | flags).items():
            setattr(self, f"_{key}", value)
        self._plain = not (self._lcr & _DLAB or self._mcr & _LOOP)
        # The line behind us may not be where it was when the state was saved, so tell it the level in any case.
        self._line = not self._level()
        self._update()
