"""The 16550A against its data sheet and against what drivers do to it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyvmm.devices import StateError, Uart
from pyvmm.devices.uart import BACKLOG_LIMIT

THR = RBR = 0
IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 1, 2, 2, 3, 4, 5, 6, 7
NONE, LINE, DATA, TIMEOUT, EMPTY, MODEM = 0x1, 0x6, 0x4, 0xC, 0x2, 0x0


class Line:
    """An interrupt line that insists on real changes."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0

    def set(self, level: bool) -> None:
        assert level != self.level, "the level did not change"
        self.level = level
        self.edges += level


class Rig:
    """A UART with its two ends."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.line = Line()
        self.uart = Uart(self.sent.extend, self.line)

    def r(self, offset: int) -> int:
        return self.uart.read(offset, 1)

    def w(self, offset: int, value: int) -> None:
        assert self.uart.write(offset, 1, value) is None

    def iir(self) -> int:
        return self.r(IIR) & 0x0F


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_output_goes_out_at_once(rig: Rig) -> None:
    for byte in b"hello\x00\xff":
        assert rig.r(LSR) == 0x60
        rig.w(THR, byte)
    assert rig.sent == b"hello\x00\xff"
    assert rig.line.edges == 0


def test_divisor_hides_data_and_interrupt_enable(rig: Rig) -> None:
    rig.w(IER, 0x0F)
    rig.w(LCR, 0x83)
    rig.w(0, 0x34)
    rig.w(1, 0x12)
    assert (rig.r(0), rig.r(1)) == (0x34, 0x12)
    rig.w(LCR, 0x03)
    assert rig.r(IER) == 0x0F
    assert rig.sent == b""
    rig.w(LCR, 0x83)
    assert (rig.r(0), rig.r(1)) == (0x34, 0x12)


@pytest.mark.parametrize("value", [0x00, 0x55, 0xAA, 0xFF])
def test_register_bits_that_stick(rig: Rig, value: int) -> None:
    rig.w(SCR, value)
    rig.w(IER, value)
    rig.w(LCR, value & 0x7F)
    rig.w(MCR, value)
    rig.w(LSR, value)
    assert rig.r(SCR) == value
    assert rig.r(IER) == value & 0x0F
    assert rig.r(LCR) == value & 0x7F
    assert rig.r(MCR) == value & 0x1F
    assert rig.r(LSR) == 0x60


def test_wide_accesses_are_bytes(rig: Rig) -> None:
    rig.uart.write(LCR, 2, 0x0B03)
    assert rig.uart.read(LCR, 2) == 0x0B03
    assert rig.uart.read(SCR - 1, 2) == 0x00B0


def test_transmitter_interrupt_comes_with_its_enable_bit_and_goes_with_iir(rig: Rig) -> None:
    """The probe of Linux's serial8250_do_startup, twice over, as it checks that the interrupt is raised again."""
    for _ in range(2):
        rig.w(IER, 0x02)
        assert rig.line.level
        assert rig.iir() == EMPTY
        assert rig.iir() == NONE
        assert not rig.line.level
        rig.w(IER, 0x00)
    rig.w(IER, 0x02)
    assert rig.r(LSR) & 0x40
    assert rig.r(IIR) & 1 == 0


def test_enabling_what_is_enabled_raises_nothing(rig: Rig) -> None:
    rig.w(IER, 0x02)
    assert rig.iir() == EMPTY
    rig.w(IER, 0x03)
    assert rig.iir() == NONE


def test_each_transmitted_byte_gives_an_edge_to_a_guest_that_never_reads_iir(rig: Rig) -> None:
    rig.w(IER, 0x02)
    edges = rig.line.edges
    for count in range(1, 5):
        rig.w(THR, 0x41)
        assert rig.line.level
        assert rig.line.edges == edges + count


def test_a_burst_after_iir_gives_one_edge(rig: Rig) -> None:
    rig.w(FCR, 0x01)
    rig.w(IER, 0x02)
    assert rig.iir() == EMPTY
    edges = rig.line.edges
    for _ in range(16):
        rig.w(THR, 0x41)
    assert rig.line.edges == edges + 1
    assert rig.iir() == EMPTY
    assert rig.iir() == NONE


def test_interrupts_by_priority(rig: Rig) -> None:
    rig.w(FCR, 0x01)
    rig.w(IER, 0x0F)
    rig.uart.set_modem_inputs(cts=False)
    rig.uart.receive_break()
    assert rig.iir() == LINE
    assert rig.r(LSR) == 0xF1  # ERFIFO TEMT THRE BI DR
    assert rig.iir() == DATA
    assert rig.r(RBR) == 0
    assert rig.iir() == EMPTY
    assert rig.iir() == MODEM
    assert rig.r(MSR) == 0xA1
    assert rig.iir() == NONE
    assert rig.r(MSR) == 0xA0
    assert rig.r(LSR) == 0x60
    assert not rig.line.level


def test_ring_reports_its_trailing_edge_only(rig: Rig) -> None:
    rig.uart.set_modem_inputs(ri=True)
    assert rig.r(MSR) == 0xF0
    rig.uart.set_modem_inputs(ri=False)
    assert rig.r(MSR) == 0xB4


@pytest.mark.parametrize(("bits", "trigger"), [(0x40, 4), (0x80, 8), (0xC0, 14)])
def test_trigger_levels_and_character_timeout(rig: Rig, bits: int, trigger: int) -> None:
    rig.w(FCR, 0x01 | bits)
    rig.w(IER, 0x01)
    for count in range(1, 17):
        rig.uart.receive(b"x")
        assert rig.r(IIR) == 0xC0 | (DATA if count >= trigger else TIMEOUT)
    for count in range(15, -1, -1):
        rig.r(RBR)
        assert rig.iir() == (DATA if count >= trigger else TIMEOUT if count else NONE)
    assert not rig.line.level


@pytest.mark.parametrize("fcr", [0x00, 0x01, 0x41, 0x81, 0xC1])
def test_one_byte_an_interrupt_is_enough_to_read_everything(rig: Rig, fcr: int) -> None:
    """Interrupt controllers see edges: a guest that reads one byte and returns must get another one below the trigger."""
    rig.w(FCR, fcr)
    rig.w(IER, 0x01)
    rig.uart.receive(b"abc")
    got = bytearray()
    while rig.line.level:
        edges = rig.line.edges
        got.append(rig.r(RBR))
        assert rig.line.edges == edges + rig.line.level
    assert got == b"abc"


@pytest.mark.parametrize("fcr", [0x00, 0x01, 0x81, 0xC7])
def test_pasted_input_arrives_whole(rig: Rig, fcr: int) -> None:
    text = bytes(range(256)) * 40
    rig.w(FCR, fcr)
    assert rig.uart.receive(text) == len(text)
    assert rig.uart.waiting == len(text)
    got = bytearray()
    while rig.r(LSR) & 1:
        got.append(rig.r(RBR))
    assert got == text
    assert rig.r(RBR) == 0


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 60)), max_size=30), st.sampled_from([0, 1, 0x41, 0xC1])
)
def test_order_survives_any_interleaving(steps: list[bytes | int], fcr: int) -> None:
    rig = Rig()
    rig.w(FCR, fcr)
    sent, got = bytearray(), bytearray()
    for step in [*steps, 10_000]:
        if isinstance(step, bytes):
            rig.uart.receive(step)
            sent += step
            continue
        while step and rig.r(LSR) & 1:
            got.append(rig.r(RBR))
            step -= 1
    assert got == sent


def test_backlog_is_bounded_and_says_so(rig: Rig) -> None:
    assert rig.uart.receive(bytes(BACKLOG_LIMIT + 10)) == BACKLOG_LIMIT
    assert rig.uart.lost == 10
    assert rig.r(LSR) == 0x63  # DR and OE
    assert rig.r(LSR) == 0x61


def test_fifo_control(rig: Rig) -> None:
    assert rig.r(IIR) == 0x01
    rig.w(FCR, 0x01)
    assert rig.r(IIR) == 0xC1
    rig.w(FCR, 0xC0)  # without the enable bit the rest is not taken
    assert rig.r(IIR) == 0x01
    rig.w(FCR, 0xC1)
    rig.uart.receive(b"abc")
    rig.w(FCR, 0xC3)
    assert rig.r(LSR) == 0x60
    rig.uart.receive(b"abc")
    rig.w(FCR, 0x00)  # a change of mode empties it, too
    assert rig.r(LSR) == 0x60


@pytest.mark.parametrize("fcr", [0xC3, 0x00])
def test_emptying_the_fifo_takes_its_interrupt_back(rig: Rig, fcr: int) -> None:
    rig.w(FCR, 0xC1)
    rig.w(IER, 0x01)
    rig.uart.receive(b"abc")
    assert rig.line.level
    rig.w(FCR, fcr)
    assert not rig.line.level


@pytest.mark.parametrize("mcr", range(16))
def test_loopback_of_modem_lines(rig: Rig, mcr: int) -> None:
    rig.w(MCR, 0x10 | mcr)
    expected = (mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & 8) << 4
    assert rig.r(MSR) & 0xF0 == expected
    rig.w(MCR, mcr)
    assert rig.r(MSR) & 0xF0 == 0xB0


def test_loopback_of_data(rig: Rig) -> None:
    rig.w(FCR, 0x01)
    rig.w(MCR, 0x18)
    rig.w(IER, 0x01)
    rig.uart.receive(b"outside")
    for byte in range(17):
        rig.w(THR, byte)
    assert not rig.line.level  # OUT2's pin is inactive
    assert rig.iir() == DATA
    assert rig.r(LSR) == 0x63  # the 17th byte overran
    assert bytes(rig.r(RBR) for _ in range(16)) == bytes(range(16))
    assert rig.r(LSR) == 0x60
    assert rig.sent == b""
    rig.w(MCR, 0x08)
    assert bytes(rig.r(RBR) for _ in range(7)) == b"outside"


def test_overrun_without_fifo_keeps_the_later_byte(rig: Rig) -> None:
    rig.w(MCR, 0x10)
    rig.w(THR, 1)
    rig.w(THR, 2)
    assert rig.r(LSR) == 0x63
    assert rig.r(RBR) == 2


def test_out2_gates_the_interrupt(rig: Rig) -> None:
    rig.w(MCR, 0x00)
    rig.w(IER, 0x02)
    assert not rig.line.level
    rig.w(MCR, 0x08)
    assert rig.line.level
    rig.w(MCR, 0x18)
    assert not rig.line.level


def test_linux_autoconfig_finds_a_16550a(rig: Rig) -> None:
    """The questions of Linux's autoconfig and autoconfig_16550a, in their order."""
    rig.w(IER, 0x00)
    assert rig.r(IER) & 0x0F == 0
    rig.w(IER, 0x0F)
    assert rig.r(IER) & 0x0F == 0x0F
    rig.w(IER, 0x00)
    rig.w(MCR, 0x1A)
    assert rig.r(MSR) & 0xF0 == 0x90
    rig.w(MCR, 0x08)
    rig.w(LCR, 0xBF)
    rig.w(FCR, 0x00)
    rig.w(LCR, 0x00)
    rig.w(FCR, 0x01)
    assert rig.r(IIR) >> 6 == 3
    for mode in (0x80, 0xBF):
        rig.w(LCR, mode)
        assert rig.r(FCR) != 0  # an EFR here would be a 16650
    rig.w(LCR, 0x00)
    rig.w(FCR, 0x21)
    assert rig.r(IIR) & 0x20 == 0  # not a 16750
    rig.w(IER, 0x40)
    assert rig.r(IER) & 0x40 == 0  # not an XScale
    assert not rig.line.level
    rig.w(LCR, 0x80)
    assert rig.r(0) | rig.r(1) << 8 == 12  # 9600 baud; 0 would be divided by


def test_reset_keeps_input_and_lowers_the_line(rig: Rig) -> None:
    rig.w(FCR, 0x81)
    rig.w(IER, 0x0F)
    rig.uart.receive(b"a" * 20)
    rig.uart.reset()
    assert not rig.line.level
    assert (rig.r(IER), rig.r(IIR), rig.r(LCR)) == (0, 1, 0)
    assert rig.uart.waiting == 4


def test_describe_and_dump(rig: Rig) -> None:
    assert rig.uart.describe(5, 1, 0x60, write=False) == "LSR=0x60 THRE TEMT"
    assert rig.uart.describe(2, 1, 0xC1, write=True) == "FCR=0xc1 ENABLE TRIGGER=14"
    assert rig.uart.describe(2, 1, 0xCC, write=False) == "IIR=0xcc ID=rx-timeout FIFO=0x3"
    assert rig.uart.describe(1, 1, 0x0F, write=True) == "IER=0x0f ERBFI ETBEI ELSI EDSSI"
    rig.w(LCR, 0x80)
    assert rig.uart.describe(1, 1, 0x0F, write=True) == "DLM=0x0f"


def test_dump_shows_what_reads_would_without_their_effects(rig: Rig) -> None:
    rig.w(LCR, 0x80)
    rig.uart.write(0, 2, 0x0203)
    rig.w(LCR, 0x1B)
    rig.w(FCR, 0x01)
    rig.w(IER, 0x0D)
    rig.w(SCR, 0x5A)
    rig.uart.receive_break()
    rig.uart.receive(bytes(BACKLOG_LIMIT + 1))
    rig.uart.set_modem_inputs(dsr=False)
    before = rig.uart.state()
    assert rig.uart.dump().splitlines() == [
        "DLL=0x03",
        "IER=0x0d ERBFI ELSI EDSSI",
        "DLM=0x02",
        "IIR=0xc6 ID=line-status FIFO=0x3",
        "LCR=0x1b WORD=0x3 PARITY=0x3",
        "MCR=0x08 OUT2",
        "LSR=0xf3 DR OE BI THRE TEMT ERFIFO",
        "MSR=0x92 DDSR CTS DCD",
        "SCR=0x5a",
    ]
    assert rig.uart.state() == before
    assert [rig.r(offset) for offset in (IIR, LSR, MSR)] == [0xC6, 0xF3, 0x92]


@given(
    st.sampled_from(sorted(Uart().state())),
    st.one_of(st.none(), st.integers(), st.text(), st.booleans(), st.lists(st.one_of(st.none(), st.integers()))),
)
def test_a_malformed_state_is_refused_or_works(key: str, value: Any) -> None:
    state = Uart().state()
    state[key] = value
    uart = Uart()
    try:
        uart.from_state(state)
    except StateError as error:
        assert error.key == key
        return
    assert uart.state() == state
    for offset in range(8):
        assert 0 <= uart.read(offset, 1) <= 0xFF


class UartMachine(RuleBasedStateMachine):
    """Random accesses, with an oracle for IIR that is built from the other registers and a latch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.latch = False  # the transmitter's interrupt
        self.expected = bytearray()

    def clone(self) -> Rig:
        other = Rig()
        state = json.loads(json.dumps(self.rig.uart.state()))
        other.line.level = not self.rig.line.level  # restoring must set it right, whatever it was
        other.uart.from_state(state)
        assert other.uart.state() == state
        return other

    @property
    def ier(self) -> int:
        return int(self.rig.uart.state()["ier"])

    @property
    def dlab(self) -> bool:
        return bool(self.rig.r(LCR) & 0x80)

    @rule(value=st.integers(0, 255))
    def write_thr(self, value: int) -> None:
        if not self.dlab:
            if not self.rig.r(MCR) & 0x10:
                self.expected.append(value)
            self.latch = bool(self.ier & 0x02)
        self.rig.w(THR, value)

    @rule(value=st.integers(0, 255))
    def write_ier(self, value: int) -> None:
        if not self.dlab and (value ^ self.ier) & 0x02:
            self.latch = bool(value & 0x02)
        self.rig.w(IER, value)

    @rule(value=st.sampled_from([0x00, 0x01, 0x03, 0x05, 0x07, 0x41, 0x81, 0xC1, 0xC7, 0xC0]))
    def write_fcr(self, value: int) -> None:
        self.rig.w(FCR, value)

    @rule(value=st.sampled_from([0x03, 0x03, 0x03, 0x83, 0xBF]))
    def write_lcr(self, value: int) -> None:
        self.rig.w(LCR, value)

    @rule(value=st.integers(0, 31))
    def write_mcr(self, value: int) -> None:
        self.rig.w(MCR, value)

    @rule(offset=st.sampled_from([RBR, LSR, MSR, SCR]))
    def read(self, offset: int) -> None:
        self.rig.r(offset)

    @rule()
    def read_iir(self) -> None:
        if self.rig.iir() == EMPTY:
            self.latch = False

    @rule(data=st.binary(min_size=1, max_size=40))
    def receive(self, data: bytes) -> None:
        self.rig.uart.receive(data)

    @rule()
    def receive_break(self) -> None:
        self.rig.uart.receive_break()

    @rule(cts=st.booleans(), dsr=st.booleans(), ri=st.booleans(), dcd=st.booleans())
    def change_modem(self, cts: bool, dsr: bool, ri: bool, dcd: bool) -> None:
        self.rig.uart.set_modem_inputs(cts, dsr, ri, dcd)

    @rule()
    def restore(self) -> None:
        other = self.clone()
        other.sent += self.rig.sent
        self.rig = other

    @precondition(lambda self: self.rig.line.level)
    @rule()
    def serve(self) -> None:
        """Do what a driver does for each source until the line drops: it must drop."""
        for _ in range(2000):
            if not self.rig.line.level:
                return
            source = self.rig.iir()
            if source == EMPTY:
                self.latch = False
            elif source == LINE:
                self.rig.r(LSR)
            elif source == MODEM:
                self.rig.r(MSR)
            elif self.dlab:
                self.rig.w(LCR, 0x03)
            else:
                self.rig.r(RBR)
        raise AssertionError("the interrupt cannot be served")

    @invariant()
    def identification_follows_from_the_registers(self) -> None:
        lsr, msr, iir = (self.clone().r(offset) for offset in (LSR, MSR, IIR))
        ier = self.ier
        if ier & 0x04 and lsr & 0x1E:
            expected = {LINE}
        elif ier & 0x01 and lsr & 0x01:
            expected = {DATA, TIMEOUT} if iir & 0xC0 else {DATA}
        elif ier & 0x02 and self.latch:
            expected = {EMPTY}
        elif ier & 0x08 and msr & 0x0F:
            expected = {MODEM}
        else:
            expected = {NONE}
        assert iir & 0x0F in expected

    @invariant()
    def line_is_pending_through_out2(self) -> None:
        pending = self.clone().r(IIR) & 1 == 0
        assert self.rig.line.level == (pending and self.rig.r(MCR) & 0x18 == 0x08)

    @invariant()
    def transmitter_is_always_empty_and_output_is_whole(self) -> None:
        assert self.clone().r(LSR) & 0x60 == 0x60
        assert self.rig.sent == self.expected

    @invariant()
    def nothing_waits_outside_an_empty_fifo(self) -> None:
        state = self.rig.uart.state()
        assert state["fifo"] or not state["backlog"] or state["mcr"] & 0x10


TestUartMachine = UartMachine.TestCase
TestUartMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
