"""What a start pays for: no NumPy, and few faults on guest memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm import Machine
from pyvmm.memory import GuestMemory, Region
from pyvmm.memory.region import HUGE_PAGE_SIZE

pytestmark = pytest.mark.kvm

BOOT = """
import sys
from pyvmm.cli.main import main
status = main(["boot", *sys.argv[1:]])
slow = sorted({"numpy", "json", "socket", "subprocess", "tempfile", "shutil", "capstone"} & set(sys.modules))
assert not slow, slow
sys.exit(status)
"""


@pytest.mark.parametrize(
    "guest", ["hello-elf64.elf", "hello-pvh.elf", "hello-real.bin", "halt.bin", "timer.elf", "smp.elf"]
)
def test_a_boot_imports_nothing_slow(guests: Path, guest: str) -> None:
    command = [sys.executable, "-c", BOOT, str(guests / guest)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


def test_guest_memory_is_aligned_to_huge_pages() -> None:
    for gpa in (0, 4 << 30):
        region = Region(gpa, 8 << 20, hugepages="auto")
        assert region.fd >= 0 or region.hva % HUGE_PAGE_SIZE == gpa % HUGE_PAGE_SIZE
        region.close()


def test_private_memory_behaves_as_shared_memory_does() -> None:
    for hugepages in ("none", "auto"):
        memory = GuestMemory(8 << 20, hugepages=hugepages)
        try:
            memory.write(0x201000, b"still here")
            memory.write((8 << 20) - 4, b"end.")
            assert memory.array((8 << 20) - 4, 4).tobytes() == b"end."
            assert memory.regions[0].array(dtype="<u4").size == 2 << 20
            memory.unmap(0x201000)
            assert memory.read(0x201000, 10) == b"still here"
            memory.clear()
            assert memory.read(0x201000, 10) == bytes(10)
        finally:
            memory.close()


def test_regions_are_not_taken_for_one_another() -> None:
    regions = [Region(0, 4 << 20, hugepages="auto") for _ in range(5)]
    for number, region in enumerate(regions):
        region.view[0] = number
        assert open_memory(region.hva) == number
    for region in regions:
        region.close()


def open_memory(address: int) -> int:
    """Return the byte at an address of this process."""
    with open("/proc/self/mem", "rb", 0) as file:
        file.seek(address)
        return file.read(1)[0]


def test_a_machine_runs_on_every_kind_of_memory(guests: Path) -> None:
    for hugepages in ("none", "auto"):
        with Machine("16M", hugepages=hugepages) as vm:
            vm.load(str(guests / "hello-elf64.elf"))
            assert vm.run(timeout=20).status == 0
