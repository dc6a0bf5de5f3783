"""The architectural state of one vCPU, the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass, field

CR0_PE = 1 << 0
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11
RFLAGS_FIXED = 1 << 1
RFLAGS_IF = 1 << 9
RFLAGS_VM = 1 << 17

GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
"""Names of the general registers, in the order of `struct kvm_regs`."""
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
"""Names of the segment registers, in the order of `struct kvm_sregs`."""
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
"""Names of the control state, in the order of `struct kvm_sregs`."""

TYPE_DATA_RW = 3
TYPE_CODE_RX = 11
TYPE_TSS_BUSY = 11
TYPE_LDT = 2


@dataclass(slots=True)
class Segment:
    """A segment register with its hidden part; fields as in `struct kvm_segment` (SDM vol. 3, 3.4.5; APM vol. 2, 4.7)."""

    base: int = 0
    limit: int = 0xFFFF
    selector: int = 0
    type: int = TYPE_DATA_RW
    present: int = 1
    dpl: int = 0
    db: int = 0
    s: int = 1
    l: int = 0  # noqa: E741  # the manuals' name
    g: int = 0
    avl: int = 0
    unusable: int = 0

    @classmethod
    def flat_code(cls, bits: int, selector: int) -> Segment:
        """Make a ring-0 code segment over all 4 GiB for 32- or 64-bit code."""
        return cls(0, 0xFFFFFFFF, selector, TYPE_CODE_RX, db=int(bits == 32), l=int(bits == 64), g=1)

    @classmethod
    def flat_data(cls, selector: int) -> Segment:
        """Make a ring-0 read/write data segment over all 4 GiB."""
        return cls(0, 0xFFFFFFFF, selector, TYPE_DATA_RW, db=1, g=1)


@dataclass(slots=True)
class DescriptorTable:
    """GDTR or IDTR: linear base address and limit (size in bytes minus one)."""

    base: int = 0
    limit: int = 0


@dataclass(slots=True)
class CpuState:
    """General, segment and control registers of one vCPU.

    A fresh object is the state that the loaders start from: every general register zero, interrupts off, real mode.
    """

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = RFLAGS_FIXED
    cs: Segment = field(default_factory=lambda: Segment(type=TYPE_CODE_RX))
    ds: Segment = field(default_factory=Segment)
    es: Segment = field(default_factory=Segment)
    fs: Segment = field(default_factory=Segment)
    gs: Segment = field(default_factory=Segment)
    ss: Segment = field(default_factory=Segment)
    tr: Segment = field(default_factory=lambda: Segment(type=TYPE_TSS_BUSY, s=0))
    ldt: Segment = field(default_factory=lambda: Segment(type=TYPE_LDT, s=0))
    gdt: DescriptorTable = field(default_factory=lambda: DescriptorTable(0, 0xFFFF))
    idt: DescriptorTable = field(default_factory=lambda: DescriptorTable(0, 0xFFFF))
    cr0: int = CR0_ET
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0xFEE00900

    @classmethod
    def real(cls, cs: int, ip: int, sp: int = 0) -> CpuState:
        """Make a real-mode state at CS:IP, all data segments zero, the interrupt table at 0 (SDM vol. 3, 20.1)."""
        state = cls(rip=ip, rsp=sp)
        state.cs.selector, state.cs.base = cs, cs << 4
        state.idt.limit = 0x3FF
        return state

    @classmethod
    def protected(cls, eip: int, code_selector: int = 0x10, data_selector: int = 0x18) -> CpuState:
        """Make a flat 32-bit protected-mode state at EIP with paging off, as Multiboot, PVH and Linux ask for."""
        state = cls(rip=eip, cr0=CR0_PE | CR0_ET, cs=Segment.flat_code(32, code_selector))
        state._flat_data(data_selector)
        return state

    @classmethod
    def long(cls, rip: int, cr3: int, code_selector: int = 0x10, data_selector: int = 0x18) -> CpuState:
        """Make a 64-bit state at RIP on the 4-level tables whose root is at GPA `cr3` (SDM vol. 3, 9.8.5)."""
        state = cls(
            rip=rip,
            cr0=CR0_PE | CR0_ET | CR0_NE | CR0_PG,
            cr3=cr3,
            cr4=CR4_PAE,
            efer=EFER_LME | EFER_LMA,
            cs=Segment.flat_code(64, code_selector),
        )
        state._flat_data(data_selector)
        return state

    def _flat_data(self, selector: int) -> None:
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(self, name, Segment.flat_data(selector))
        self.tr = Segment(0, 0x67, 0, TYPE_TSS_BUSY, s=0)
        self.idt = DescriptorTable(0, 0)

    @property
    def mode(self) -> str:
        """Name the operating mode: `real`, `v8086`, `protected`, `compat` or `long` (APM vol. 2, 1.3)."""
        if not self.cr0 & CR0_PE:
            return "real"
        if self.efer & EFER_LMA:
            return "long" if self.cs.l else "compat"
        return "v8086" if self.rflags & RFLAGS_VM else "protected"

    @property
    def bits(self) -> int:
        """Tell the default operand size of the code that runs: 16, 32 or 64."""
        mode = self.mode
        if mode == "long":
            return 64
        return 32 if mode in ("protected", "compat") and self.cs.db else 16

    @property
    def cpl(self) -> int:
        """Tell the current privilege level: 0 in real mode, else the DPL of SS (SDM vol. 3, 5.5)."""
        return {"real": 0, "v8086": 3}.get(self.mode, self.ss.dpl)

    @property
    def linear_rip(self) -> int:
        """Tell the linear address of the next instruction."""
        return self.rip if self.mode == "long" else (self.cs.base + self.rip) & 0xFFFFFFFF
