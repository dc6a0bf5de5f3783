"""Parts of the machine that need no KVM: results, CPUID, interrupt lines, module descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.engine import exits
from pyvmm.engine.state import CpuState
from pyvmm.machine import cpuid
from pyvmm.machine.cpuid import host_brand
from pyvmm.machine.irq import IrqLines
from pyvmm.machine.result import CRASHES, EndReason, Result
from pyvmm.pykvm import Vm, layout
from pyvmm.pykvm.module import kvm_module


@pytest.mark.parametrize("reason", list(EndReason))
def test_every_end_has_words_and_a_status(reason: EndReason) -> None:
    result = Result(reason, "why", value=3 if reason is EndReason.DEBUG_EXIT else None)
    assert "why" in str(result) and "\n" not in str(result)
    special = {EndReason.DEBUG_EXIT: 7, EndReason.TIMEOUT: 124, EndReason.ERROR: 2}
    assert result.status == special.get(reason, 1 if reason in CRASHES else 0)
    assert result.to_dict()["crashed"] is (reason in CRASHES)


@given(st.integers(0, (1 << 32) - 1))
def test_debug_exit_status_is_qemus(value: int) -> None:
    assert Result(EndReason.DEBUG_EXIT, value=value).status == (value << 1 | 1) % 256


def entries(*rows: tuple[int, int, int, int, int, int]) -> Any:
    table = np.zeros(len(rows), layout.CPUID_ENTRY2)
    for at, (function, index, eax, ebx, ecx, edx) in enumerate(rows):
        for name, value in zip(
            ("function", "index", "eax", "ebx", "ecx", "edx"), (function, index, eax, ebx, ecx, edx), strict=True
        ):
            table[name][at] = value
    return table


def plain(table: Any) -> list[tuple[int, ...]]:
    return [row[:7] for row in table.tolist()]


def vcpu_cpuid(supported: Any, index: int, cpus: int, **options: Any) -> Any:
    made = cpuid.vcpu_cpuid(cast(Any, plain(supported)), index, cpus, **options)
    return np.array([(*entry, (0, 0, 0)) for entry in made], layout.CPUID_ENTRY2)


def paging_features(table: Any) -> cpuid.PagingFeatures:
    return cpuid.paging_features(cast(Any, plain(table)))


AMD = (0, 0, 0x10, 0x68747541, 0x444D4163, 0x69746E65)
INTEL = (0, 0, 0x16, 0x756E6547, 0x6C65746E, 0x49656E69)


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 254])
def test_each_vcpu_has_its_own_apic_id(cpus: int) -> None:
    supported = entries(
        AMD,
        (1, 0, 0, 0xAABBCCDD, 0, 1 << 28),
        (4, 0, 0x1FF03FE1, 0, 0, 0),
        (4, 4, 0, 0, 0, 0),
        (0xB, 0, 0, 0, 0, 99),
        (0x80000001, 0, 0, 0, 2, 0),
        (0x80000008, 0, 0x3030, 0, 0x7FFF, 0),
        (0x8000001D, 0, 0x1FF03F21, 0, 0, 0),
        (0x8000001D, 3, 0x1FF03F63, 0, 0, 0),
        (0x8000001E, 0, 99, 99, 99, 0),
    )
    before = supported.copy()
    for index in {0, cpus - 1}:
        table = vcpu_cpuid(supported, index, cpus, tsc_deadline=True)

        def leaf(function: int, register: str, sub: int = 0, table: Any = table) -> int:
            (found,) = table[register][(table["function"] == function) & (table["index"] == sub)]
            return int(found)

        assert leaf(1, "ebx") == index << 24 | (cpus & 0xFF) << 16 | 0xCCDD
        assert bool(leaf(1, "edx") >> 28 & 1) == (cpus > 1)
        assert leaf(1, "ecx") >> 24 & 1 and leaf(1, "ecx") >> 31 & 1
        assert leaf(4, "eax") >> 26 == min(cpus - 1, 63)
        assert leaf(4, "eax", 4) == 0
        assert leaf(0xB, "edx") == leaf(0xB, "edx", 1) == index
        assert (leaf(0xB, "ebx"), leaf(0xB, "ecx") >> 8, leaf(0xB, "eax")) == (1, 1, 0)
        assert (leaf(0xB, "ebx", 1), leaf(0xB, "ecx", 1) >> 8) == (cpus, 2)
        assert 1 << leaf(0xB, "eax", 1) >= cpus
        assert (leaf(0xB, "ebx", 2), leaf(0xB, "ecx", 2) >> 8) == (0, 0)
        assert leaf(0x80000008, "ecx") & 0xFF == (cpus - 1) & 0xFF
        assert leaf(0x80000001, "ecx") == (2 if cpus > 1 else 0), "cores, not threads"
        assert leaf(0x8000001D, "eax") >> 14 & 0xFFF == 0
        assert leaf(0x8000001D, "eax", 3) >> 14 & 0xFFF == cpus - 1
        assert leaf(0x8000001E, "eax") == index
        bare = vcpu_cpuid(supported, index, cpus, apic=False)
        assert not int(bare["edx"][bare["function"] == 1][0]) >> 9 & 1
    assert (supported == before).all()


def test_what_is_amds_stays_reserved_on_intel() -> None:
    table = vcpu_cpuid(entries(INTEL, (0x80000001, 0, 0, 0, 1, 0), (0x80000008, 0, 0x3030, 0, 0, 0)), 1, 4)
    assert list(table["ecx"][1:]) == [1, 0]


@pytest.mark.parametrize(
    ("brand", "seen"),
    [("", b""), ("AMD EPYC 7763", b"AMD EPYC 7763"), ("x" * 60, b"x" * 47), ("Core\N{TRADE MARK SIGN}", b"Core?")],
)
def test_the_brand_takes_48_bytes_of_three_leaves(brand: str, seen: bytes) -> None:
    supported = entries(*((function, 0, 0, 0, 0, 0) for function in (0x80000002, 0x80000003, 0x80000004)))
    table = vcpu_cpuid(supported, 0, 1, brand=brand)
    words = [table[register][row] for row in range(3) for register in ("eax", "ebx", "ecx", "edx")]
    assert b"".join(int(word).to_bytes(4, "little") for word in words) == seen.ljust(48, b"\0")


def test_this_hosts_brand() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    assert host_brand() == (names[0] if names else "")


def test_paging_features() -> None:
    amd = entries(
        (0, 0, 0x10, 0x68747541, 0x444D4163, 0x69746E65),
        (1, 0, 0, 0, 0, 1 << 17),
        (0x80000001, 0, 0, 0, 0, 1 << 26),
        (0x80000008, 0, 0x3030, 0, 0, 0),
    )
    assert paging_features(amd) == {"maxphyaddr": 48, "pse36": True, "gbpages": True, "nonleaf_global": True}
    assert paging_features(entries((0, 0, 0, 0, 0, 0)))["maxphyaddr"] == 36


def test_a_shared_line_is_high_while_any_source_is() -> None:
    calls: list[tuple[int, int]] = []

    class FakeVm:
        def irq_line(self, gsi: int, level: int) -> None:
            calls.append((gsi, level))

    lines = IrqLines(cast(Vm, FakeVm()))
    one, other, elsewhere = lines.source(5), lines.source(5), lines.source(6)
    for line, level in ((one, True), (one, True), (other, True), (one, False), (elsewhere, True), (other, False)):
        line.set(level)
    assert calls == [(5, 1), (6, 1), (5, 0)]


def test_exit_kinds_are_named() -> None:
    assert exits.InternalError(1, ()).kind == "internal-error"
    assert exits.Halt().kind == "halt"


def test_modes_of_cpu_states() -> None:
    assert (CpuState.real(0xF000, 0xFFF0).mode, CpuState.real(0xF000, 0xFFF0).linear_rip) == ("real", 0xFFFF0)
    assert (CpuState.protected(0x100000).mode, CpuState.protected(0).bits) == ("protected", 32)
    long = CpuState.long(0x100000, 0x9000)
    assert (long.mode, long.bits, long.cpl) == ("long", 64, 0)
    long.cs.l = 0
    long.cs.db = 1
    assert (long.mode, long.bits) == ("compat", 32)


def module_tree(root: Path, name: str, **parameters: str) -> None:
    folder = root / name / "parameters"
    folder.mkdir(parents=True)
    for parameter, value in parameters.items():
        (folder / parameter).write_text(value + "\n")


@pytest.mark.parametrize(
    ("name", "parameters", "paging"),
    [
        ("kvm_intel", {"ept": "Y", "vpid": "Y"}, "ept"),
        ("kvm_intel", {"ept": "N"}, "kvm-shadow"),
        ("kvm_amd", {"npt": "1"}, "npt"),
        ("kvm_amd", {"npt": "0"}, "kvm-shadow"),
        ("kvm_pvm", {}, "kvm-shadow"),
        ("kvm_intel", {}, "unknown"),
    ],
)
def test_the_vendor_module_tells_the_paging(tmp_path: Path, name: str, parameters: dict[str, str], paging: str) -> None:
    module_tree(tmp_path, name, **parameters)
    module_tree(tmp_path, "kvm", tdp_mmu="Y")
    module = kvm_module(str(tmp_path))
    assert (module.name, module.paging, module.common) == (name, paging, {"tdp_mmu": "Y"})


def test_no_module_at_all(tmp_path: Path) -> None:
    assert (kvm_module(str(tmp_path)).name, kvm_module(str(tmp_path)).paging) == ("unknown", "unknown")
