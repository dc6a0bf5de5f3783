"""Flat binaries in the three modes."""

from __future__ import annotations

import pytest

from pyvmm.boot import BootOptions, load
from pyvmm.errors import ImageError, UsageError
from pyvmm.memory import GuestMemory
from tests.unit.boot_images import CODE

MIB = 1 << 20


def test_default_is_real_mode_at_7c00(memory: GuestMemory) -> None:
    image = load(CODE, memory)
    state = image.state
    assert (image.format, state.mode, image.entry) == ("flat", "real", 0x7C00)
    assert (state.cs.selector, state.rip, state.ss.selector, state.rsp, state.ds.selector) == (0, 0x7C00, 0, 0x7C00, 0)
    assert state.rflags == 2
    assert memory.read(0x7C00, 4) == CODE


def test_real_mode_above_64_kib_uses_cs(memory: GuestMemory) -> None:
    state = load(CODE * 4, memory, BootOptions(load_addr=0x20000, entry=0x20004)).state
    assert (state.cs.selector, state.cs.base, state.rip, state.linear_rip) == (0x2000, 0x20000, 4, 0x20004)


def test_stack_moves_out_of_the_image(memory: GuestMemory) -> None:
    state = load(bytes(0x8000), memory, BootOptions(load_addr=0x1000)).state
    assert state.ss.base + state.rsp == 0x9FC00
    assert state.ss.base == state.ss.selector << 4


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_other_modes_at_1_mib(memory: GuestMemory, mode: str) -> None:
    image = load(CODE, memory, BootOptions(mode=mode))
    assert (image.state.mode, image.entry, image.state.rsi) == (mode, MIB, 0)
    assert memory.read(MIB, 4) == CODE
    assert memory.contains(image.state.rsp - 16, 16)


def test_load_address_and_entry(memory: GuestMemory) -> None:
    image = load(CODE * 8, memory, BootOptions(mode="long", load_addr=0x200000, entry=0x200010))
    assert image.entry == 0x200010
    for entry in (0x1FFFFF, 0x200020):
        with pytest.raises(UsageError, match="lies outside the image"):
            load(CODE * 8, memory, BootOptions(mode="long", load_addr=0x200000, entry=entry))


def test_what_does_not_fit(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match="taken for a flat real-mode image"):
        load(bytes(MIB), memory)
    with pytest.raises(ImageError, match="outside the guest's RAM"):
        load(bytes(MIB), memory, BootOptions(mode="long", load_addr=0x380000))
    with pytest.raises(UsageError, match="real mode's reach"):
        load(CODE, memory, BootOptions(load_addr=MIB))
    with pytest.raises(ImageError, match="outside the guest's RAM"):
        load(CODE, memory, BootOptions(mode="long", load_addr=(1 << 64) - 1))


def test_a_reset_vector_image_may_lie_below_1_mib(memory: GuestMemory) -> None:
    image = load(bytes(0x10000), memory, BootOptions(load_addr=0xF0000, entry=0xFFFF0))
    assert (image.state.cs.selector, image.state.rip) == (0xFFFF, 0)


def test_options_that_do_not_suit(memory: GuestMemory) -> None:
    for options in (BootOptions(cmdline="x"), BootOptions(initrd=b"x"), BootOptions(modules=[(b"x", "")])):
        with pytest.raises(UsageError, match="a flat image takes no"):
            load(CODE, memory, options)


def test_any_image_can_be_forced_flat(memory: GuestMemory) -> None:
    data = b"\x1f\x8b" + CODE
    with pytest.raises(ImageError, match="gunzip"):
        load(data, memory)
    assert load(data, memory, BootOptions(format="flat")).entry == 0x7C00
