"""Numbers that are written out so that a start does without NumPy: each is what the layouts say."""

from __future__ import annotations

from pyvmm.engine import registers
from pyvmm.machine import firmware
from pyvmm.pykvm import layout, run_area, tables
from pyvmm.pykvm.layout import RUN, offset_of


def test_places_in_the_run_area() -> None:
    places = {
        "WORD_EXIT_REASON": ("exit_reason", 4),
        "QUAD_CR8": ("cr8", 8),
        "EXIT_OFFSET": ("io", 1),
        "BYTE_IO_DIRECTION": ("io.direction", 1),
        "BYTE_IO_SIZE": ("io.size", 1),
        "HALF_IO_PORT": ("io.port", 2),
        "WORD_IO_COUNT": ("io.count", 4),
        "QUAD_IO_DATA_OFFSET": ("io.data_offset", 8),
        "QUAD_MMIO_ADDR": ("mmio.phys_addr", 8),
        "BYTE_MMIO_DATA": ("mmio.data", 1),
        "WORD_MMIO_LEN": ("mmio.len", 4),
        "BYTE_MMIO_IS_WRITE": ("mmio.is_write", 1),
        "BYTE_IMMEDIATE_EXIT": ("immediate_exit", 1),
        "QUAD_VALID_REGS": ("kvm_valid_regs", 8),
        "QUAD_DIRTY_REGS": ("kvm_dirty_regs", 8),
        "QUAD_SYNC_REGS": ("s.regs.regs", 8),
        "QUAD_SYNC_SREGS": ("s.regs.sregs", 8),
    }
    for name, (path, unit) in places.items():
        assert getattr(run_area, name) * unit == offset_of(RUN, path), name


def test_sizes_of_structures() -> None:
    assert registers._REGS.size == layout.REGS.itemsize
    assert layout.SREGS.itemsize == registers._SREGS_SIZE
    assert offset_of(layout.SREGS, "gdt") == registers._TABLES_AT
    assert offset_of(layout.SREGS, "cr0") == registers._CONTROL_AT
    assert registers._SEGMENT.size == layout.SEGMENT.itemsize
    assert layout.IRQCHIP.itemsize == firmware._IRQCHIP_SIZE
    assert offset_of(layout.IRQCHIP, "chip.pic.irq_base") == firmware._PIC_IRQ_BASE
    assert layout.LAPIC_STATE.itemsize == firmware._LAPIC_SIZE
    assert tables._CPUID_ENTRY.size == layout.CPUID_ENTRY2.itemsize
    assert tables._MSR_ENTRY.size == layout.MSR_ENTRY.itemsize
    assert tables._COUNT.size == layout.CPUID2.itemsize == layout.MSRS.itemsize
