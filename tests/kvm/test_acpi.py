"""ACPI and the PC's devices behind it, in machines as users make them."""

from __future__ import annotations

import pytest

from pyvmm import EndReason, Machine
from pyvmm.boot.acpi import MmioDevice
from tests.unit.aml_reader import Node, read_aml, read_resources
from tests.unit.test_boot_acpi import tables

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

HALT = bytes.fromhex("fa f4")
BIOS, BIOS_SIZE = 0xE0000, 0x20000


def bios_area(vm: Machine) -> tuple[bytes, int]:
    """Return the memory that guests scan, and the GPA of the RSDP in it."""
    area = vm.memory.read(BIOS, BIOS_SIZE)
    found = [BIOS + at for at in range(0, len(area), 16) if area[at : at + 8] == b"RSD PTR "]
    return area, found[0] if found else 0


def devices(vm: Machine) -> dict[str, Node]:
    area, rsdp = bios_area(vm)
    (bus,) = read_aml(tables(area, rsdp, BIOS)["DSDT"][36:]).children
    return {node.path: node for node in bus.children}


def test_the_tables_name_what_the_machine_has() -> None:
    with Machine("16M", 3) as vm:
        assert vm.pc is not None
        vm.attach(type(vm.pc.post)(), mmio=0xD0000000, size=0x1000)
        vm.pc.virtio_mmio.append(MmioDevice(0xD0000000, 0x1000, 5))
        vm.load(HALT)
        found = devices(vm)
        assert list(found) == ["C000", "C001", "C002", "COM1", "RTC", "PEVT", "VR00"]
        assert read_resources(found["VR00"].names["_CRS"]) == [("memory", (0xD0000000, 0x1000)), ("interrupt", (5,))]
        for node in found.values():
            for kind, numbers in read_resources(node.names["_CRS"]) if "_CRS" in node.names else []:
                if kind == "io":
                    assert any(m.base <= numbers[0] < m.base + m.size for m in vm.pio.mappings), node.path


def test_the_fixed_registers_are_where_the_fadt_says() -> None:
    with Machine("16M") as vm:
        vm.load(HALT)
        area, rsdp = bios_area(vm)
        fadt = tables(area, rsdp, BIOS)["FACP"]
        for offset in (56, 64, 76, 120):
            port = int.from_bytes(fadt[offset : offset + 4], "little")
            assert any(m.base <= port < m.base + m.size for m in vm.pio.mappings), hex(port)


def reset_code(vm: Machine) -> bytes:
    """Assemble what an operating system does with the FADT's reset register: mov dx; mov al; out; cli; hlt."""
    area, rsdp = bios_area(vm)
    fadt = tables(area, rsdp, BIOS)["FACP"]
    return b"\xba" + fadt[120:122] + b"\xb0" + fadt[128:129] + bytes.fromhex("ee fa f4")


def test_the_reset_register_resets() -> None:
    with Machine("16M") as vm:
        vm.load(HALT)
        vm.memory.write(0x7C00, reset_code(vm))
        assert vm.run(timeout=20).reason is EndReason.RESET


def test_s5_switches_off() -> None:
    with Machine("16M") as vm:
        vm.load(HALT)
        area, rsdp = bios_area(vm)
        found = tables(area, rsdp, BIOS)
        kind = read_aml(found["DSDT"][36:]).names["_S5"][0]
        value = (1 << 13 | kind << 10).to_bytes(2, "little")
        vm.memory.write(0x7C00, b"\xba" + found["FACP"][64:66] + b"\xb8" + value + bytes.fromhex("ef fa f4"))
        assert vm.run(timeout=20).reason is EndReason.POWER_OFF


def test_a_guest_that_reports_a_panic_has_crashed() -> None:
    with Machine("16M") as vm:
        vm.load(bytes.fromhex("ba 05 05 ec b0 02 ee b0 01 ee fa f4"))  # in al, dx; out 2; out 1
        result = vm.run(timeout=20)
        assert (result.reason, result.status, result.crashed) == (EndReason.PANIC, 1, True)
        assert str(result) == "the guest kernel panicked: reported through the pvpanic port"
        assert result.report is not None and "pvpanic port" in result.report.text()
        result.to_dict()


def test_what_the_console_said_explains_a_reported_panic() -> None:
    line = b"Kernel panic - not syncing: out of luck\n"
    # mov si, text; 1: lodsb; out 0xe9, al; cmp al, 10; jne 1b; mov dx, 0x505; mov al, 1; out dx, al
    code = bytes.fromhex("be 10 7c ac e6 e9 3c 0a 75 f9 ba 05 05 b0 01 ee")
    with Machine("16M") as vm:
        vm.load(code + line)
        result = vm.run(timeout=20)
        assert (result.reason, result.detail) == (EndReason.PANIC, "out of luck")


@pytest.mark.parametrize("options", [{"devices": "none"}, {"irqchip": "none"}])
def test_a_machine_that_is_no_pc_has_no_tables(options: dict[str, str]) -> None:
    with Machine("16M", **options) as vm:  # type: ignore[arg-type]
        vm.load(HALT)
        assert bios_area(vm)[1] == 0


def test_tables_can_be_left_out() -> None:
    with Machine("16M") as vm:
        vm.load(HALT, acpi=None)
        assert bios_area(vm)[1] == 0
