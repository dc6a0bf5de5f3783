"""The Intel lab's kernel image, line and limits; no emulator."""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot import zeropage as zp
from pyvmm.errors import ImageError, UsageError
from pyvmm.host.lab import rawkernel
from pyvmm.host.lab.bochs import CYLINDER
from pyvmm.host.lab.channel import END_OF_INPUT, EXIT, HELLO, INPUT, MAGIC, OUTPUT, RUN, SAVED, SIGNAL, encode
from pyvmm.host.lab.inside import FILLER, MAILBOX_SIZE
from pyvmm.host.lab.intel import IntelBackend
from pyvmm.host.lab.kernel import LabKernel
from pyvmm.host.lab.settings import LabSpec, module_parameters
from pyvmm.host.lab.steadyline import Frames, SteadyLine

BASE = 0x1000000


def elf(base: int = BASE, size: int = 0x3000, content: bytes = b"kernel") -> bytes:
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 7, 120, base, base, len(content), size, 4096) + content


def bzimage(payload: bytes) -> bytes:
    setup = bytearray(2 * 512)
    setup[zp.SETUP_SECTS] = 1
    setup[zp.HEADER : zp.HEADER + 4] = zp.HEADER_MAGIC
    struct.pack_into("<H", setup, zp.VERSION, 0x20F)
    struct.pack_into("<II", setup, rawkernel.PAYLOAD_OFFSET, 0x40, len(payload))
    return bytes(setup) + bytes(0x40) + payload + b"decompressor"


def pack(kind: str, data: bytes) -> bytes:
    import bz2
    import lzma
    import zlib

    gzip = zlib.compressobj(wbits=31)
    return {"xz": lzma.compress(data), "gzip": gzip.compress(data) + gzip.flush(), "bzip2": bz2.compress(data)}[kind]


@pytest.mark.parametrize("kind", ["xz", "gzip", "bzip2"])
def test_a_kernel_is_unpacked_to_where_it_is_linked(kind: str) -> None:
    image = rawkernel.repack(bzimage(pack(kind, elf()) + b"size"))
    body = image[1024:]
    load = 0x100000
    assert body[BASE - load :].rstrip(b"\0") == b"kernel"
    assert struct.unpack_from("<I", image, zp.SYSSIZE)[0] * 16 == len(body)
    assert struct.unpack_from("<I", image, zp.CODE32_START)[0] == load
    assert struct.unpack_from("<Q", image, zp.PREF_ADDRESS)[0] == load
    assert image[zp.RELOCATABLE_KERNEL] == 0
    assert struct.unpack_from("<I", image, zp.INIT_SIZE)[0] == BASE + 0x3000 - load


def test_the_entry_code_does_what_the_64_bit_protocol_asks_for() -> None:
    import capstone

    body = rawkernel.repack(bzimage(pack("xz", elf())))[1024:]
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    words = [f"{one.mnemonic} {one.op_str}".strip() for one in decoder.disasm(body[:0x33], 0x100000)]
    assert words[:2] == ["cli", "lgdt [0x100820]"]
    assert [word for word in words if word.startswith(("mov cr", "wrmsr"))] == [
        *("mov cr4, eax", "mov cr3, eax", "wrmsr", "mov cr0, eax")
    ]
    far = body.index(b"\xea", 0x20)
    target, selector = struct.unpack_from("<IH", body, far + 1)
    assert (target, selector) == (0x100000 + far + 7, 0x10)
    long = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    words = [f"{one.mnemonic} {one.op_str}" for one in long.disasm(body[far + 7 : far + 33], 0)]
    assert words[-3:] == ["mov esi, esi", f"mov eax, {BASE:#x}", "jmp rax"]
    # The identity map: each entry of the four directories maps its own 2 MiB.
    limit, gdt = struct.unpack_from("<HI", body, 0x820)
    assert (limit, gdt) == (31, 0x100800)
    pml4, directory = body[0x1000:0x1008], body[0x3000:0x7000]
    assert struct.unpack("<Q", pml4)[0] == 0x102003
    assert struct.unpack("<2048Q", directory) == tuple(number << 21 | 0x83 for number in range(2048))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "not a Linux bzImage"),
        (bytes(2048), "not a Linux bzImage"),
        (bzimage(b"\x28\xb5\x2f\xfd"), "not known here"),
        (bzimage(b"\xfd7zXZ\0 damaged from here on"), "cannot be unpacked"),
        (bzimage(pack("xz", b"no ELF")), "not a 64-bit ELF"),
        (bzimage(pack("xz", elf()[:-3])), "truncated"),
        (bzimage(pack("xz", elf(base=0x1000))), "wants to lie at"),
        (bzimage(pack("xz", elf(size=1 << 40))), "wants to lie at"),
    ],
)
def test_images_that_cannot_be_repacked(image: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        rawkernel.repack(image)


@given(st.binary(max_size=300), st.integers(0, 200))
def test_a_damaged_kernel_is_an_error_and_no_crash(noise: bytes, at: int) -> None:
    content = bytearray(elf())
    content[at : at + len(noise)] = noise
    try:
        entry, base, end, flat = rawkernel.flatten(bytes(content))
    except (ImageError, MemoryError):
        return
    assert base <= end <= 1 << 30 and len(flat) <= end - base and entry >= 0


# The line


@given(
    st.lists(st.tuples(st.sampled_from([OUTPUT, EXIT, HELLO]), st.binary(max_size=20))),
    st.binary(max_size=9),
    st.data(),
)
def test_frames_are_followed_however_they_are_cut(
    messages: list[tuple[int, bytes]], noise: bytes, data: st.DataObject
) -> None:
    stream = noise + MAGIC + b"".join(encode(*message) for message in messages)
    frames, seen = Frames(), []
    while stream:
        piece, stream = stream[: (size := data.draw(st.integers(1, 40)))], stream[size:]
        while piece:
            count = frames.feed(piece)
            assert count > 0
            piece = piece[count:]
            if frames.complete:
                seen.append(frames.last)
    assert seen == [(kind, len(payload)) for kind, payload in messages]


class Emulator:
    """The other side of a line: two FIFOs, as Bochs has them open."""

    def __init__(self, folder: Path) -> None:
        for name in ("output", "input"):
            os.mkfifo(folder / name)
        self.mailbox = folder / "mailbox"
        self.line = SteadyLine(str(folder / "output"), str(folder / "input"), str(self.mailbox), lambda: True)
        self.output = os.open(folder / "output", os.O_WRONLY)
        self.input = os.open(folder / "input", os.O_RDWR)
        self.clock = 0
        self.thread = threading.Thread(target=lambda: None)

    def send(self, data: bytes) -> None:
        """Send byte by byte on a thread, as Bochs does; `clock` counts the bytes that have gone out."""

        def run() -> None:
            for byte in data:
                os.write(self.output, bytes([byte]))
                self.clock += 1

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def letter(self) -> bytes:
        """Return what is in the mailbox, once the emulator has been let go."""
        self.thread.join(10)
        assert not self.thread.is_alive()
        data = self.mailbox.read_bytes()
        assert len(data) > MAILBOX_SIZE and len(data) % CYLINDER == 0
        return data[8 : 8 + int.from_bytes(data[:8], "little")]

    def heard(self, seconds: float = 0.0) -> bytes:
        if not select.select([self.input], [], [], seconds)[0]:
            return b""
        return os.read(self.input, 1 << 16)


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    emulator = Emulator(tmp_path)
    yield emulator
    os.close(emulator.line.fd)
    if emulator.output >= 0:
        os.close(emulator.output)
    os.close(emulator.input)


def read_all(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size and select.select([fd], [], [], 10)[0]:
        piece = os.read(fd, size - len(data))
        if not piece:
            break
        data += piece
    return data


def test_the_emulator_stands_still_until_the_answer_is_complete(emulator: Emulator) -> None:
    hello = b"noise" + MAGIC + encode(HELLO, b"6.1")
    emulator.send(hello + FILLER + encode(OUTPUT, b"later"))
    assert read_all(emulator.line.fd, len(hello)) == hello
    time.sleep(0.2)
    stopped = emulator.clock
    assert len(hello) < stopped < len(hello) + len(FILLER)
    run = encode(RUN, b"command")
    os.write(emulator.line.fd, MAGIC + run)
    time.sleep(0.1)
    assert emulator.clock == stopped
    os.write(emulator.line.fd, encode(END_OF_INPUT))
    assert read_all(emulator.line.fd, 10) == encode(OUTPUT, b"later")
    assert emulator.letter() == MAGIC + run + encode(END_OF_INPUT)
    assert emulator.heard() == b""


def test_a_command_whose_input_never_ends_starts_all_the_same(emulator: Emulator) -> None:
    hello = MAGIC + encode(HELLO)
    emulator.send(hello + FILLER)
    assert read_all(emulator.line.fd, len(hello)) == hello
    os.write(emulator.line.fd, MAGIC + encode(RUN, b"command"))
    assert emulator.letter() == MAGIC + encode(RUN, b"command")
    os.write(emulator.line.fd, encode(SIGNAL, b"\x09"))
    assert emulator.heard(10) == encode(SIGNAL, b"\x09")


def test_what_does_not_fit_into_the_mailbox_follows_over_the_line(emulator: Emulator) -> None:
    hello = MAGIC + encode(HELLO)
    emulator.send(hello + FILLER)
    assert read_all(emulator.line.fd, len(hello)) == hello
    whole = MAGIC + encode(RUN, b"command") + encode(INPUT, bytes(MAILBOX_SIZE)) + encode(END_OF_INPUT)
    rest = whole
    while rest:
        rest = rest[os.write(emulator.line.fd, rest[: 1 << 16]) :]
    assert emulator.letter() + read_all(emulator.input, len(whole) - MAILBOX_SIZE) == whole


def test_it_stops_after_each_command_and_not_after_a_piece_of_the_share(emulator: Emulator) -> None:
    first = MAGIC + encode(HELLO)
    emulator.send(first + FILLER + encode(EXIT, b"0") + FILLER + encode(SAVED, b"piece") + encode(SAVED) + FILLER)
    assert read_all(emulator.line.fd, len(first)) == first
    for reply in (encode(EXIT, b"0"), encode(SAVED, b"piece") + encode(SAVED)):
        os.write(emulator.line.fd, (MAGIC if reply[:1] == bytes([EXIT]) else b"") + encode(END_OF_INPUT))
        assert read_all(emulator.line.fd, len(reply)) == reply
    time.sleep(0.1)
    assert emulator.thread.is_alive()
    os.write(emulator.line.fd, encode(END_OF_INPUT))
    emulator.thread.join(10)
    assert not emulator.thread.is_alive()


@pytest.mark.parametrize("holding", [False, True])
def test_the_session_hears_of_the_emulators_end(emulator: Emulator, holding: bool) -> None:
    data = MAGIC + (encode(HELLO) + FILLER[:100] if holding else b"")
    emulator.send(data)
    emulator.thread.join(10)
    os.close(emulator.output)
    emulator.output = -1
    said = MAGIC + (encode(HELLO) if holding else b"")
    assert read_all(emulator.line.fd, len(said) + 1) == said
    assert os.read(emulator.line.fd, 1) == b""


def test_an_emulator_that_never_opens_its_line(tmp_path: Path) -> None:
    for name in ("output", "input"):
        os.mkfifo(tmp_path / name)
    line = SteadyLine(str(tmp_path / "output"), str(tmp_path / "input"), str(tmp_path / "mailbox"), lambda: False)
    assert select.select([line.fd], [], [], 10)[0] and os.read(line.fd, 1) == b""
    os.close(line.fd)


def test_the_relay_ends_with_the_session(emulator: Emulator) -> None:
    before = {thread.name for thread in threading.enumerate()}
    assert "lab-line" in before
    os.close(emulator.line.fd)
    deadline = time.monotonic() + 10
    while any(thread.name == "lab-line" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    emulator.line.fd = os.open("/dev/null", os.O_RDONLY)


# Limits


def check(memory: int = 1 << 30, cpus: int = 1, **settings: bool) -> None:
    kernel = LabKernel("/nowhere/vmlinuz", "/nowhere/modules", "6.1.0")
    IntelBackend().check(LabSpec("intel", module_parameters("intel", settings), memory, cpus, None, "/", {}, kernel))


def test_what_bochs_cannot_do() -> None:
    check()
    check(ept=False, unrestricted_guest=False)
    with pytest.raises(UsageError, match="1 CPU"):
        check(cpus=2)
    with pytest.raises(UsageError, match="2048 MiB"):
        check(memory=4 << 30)
    with pytest.raises(UsageError, match="unrestricted_guest needs EPT"):
        check(ept=False, unrestricted_guest=True)
