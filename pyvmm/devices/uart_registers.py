"""The registers of the 16550A UART (National Semiconductor, PC16550D data sheet, table II).

Offsets 0 and 1 are banked by LCR.DLAB: "data" while it is clear, "divisor" while it is set.
"""

from __future__ import annotations

from pyvmm.devices.registers import Field, Register, RegisterMap, bits

RBR = Register("RBR", 0, 1, "r", bank="data")
THR = Register("THR", 0, 1, "w", bank="data")
DLL = Register("DLL", 0, 1, "rw", bank="divisor")
IER = Register("IER", 1, 1, "rw", *bits("ERBFI", "ETBEI", "ELSI", "EDSSI"), bank="data")
DLM = Register("DLM", 1, 1, "rw", bank="divisor")
_SOURCES = {0: "modem", 1: "none", 2: "thr-empty", 4: "rx-data", 6: "line-status", 12: "rx-timeout"}
IIR = Register("IIR", 2, 1, "r", Field("ID", 3, 0, names=_SOURCES), Field("FIFO", 7, 6))
FCR = Register(
    "FCR",
    2,
    1,
    "w",
    *bits("ENABLE", "RXRESET", "TXRESET", "DMA"),
    Field("TRIGGER", 7, 6, names={0: "1", 1: "4", 2: "8", 3: "14"}),
)
LCR = Register(
    "LCR", 3, 1, "rw", Field("WORD", 1, 0), Field("STOP", 2), Field("PARITY", 5, 3), Field("BREAK", 6), Field("DLAB", 7)
)
MCR = Register("MCR", 4, 1, "rw", *bits("DTR", "RTS", "OUT1", "OUT2", "LOOP"))
LSR = Register("LSR", 5, 1, "r", *bits("DR", "OE", "PE", "FE", "BI", "THRE", "TEMT", "ERFIFO"))
MSR = Register("MSR", 6, 1, "r", *bits("DCTS", "DDSR", "TERI", "DDCD", "CTS", "DSR", "RI", "DCD"))
SCR = Register("SCR", 7, 1, "rw")
REGISTERS = RegisterMap(RBR, THR, DLL, IER, DLM, IIR, FCR, LCR, MCR, LSR, MSR, SCR)
