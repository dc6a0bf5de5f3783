"""Real tools, real processes, and what `pyvmm host` shows as switchable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.errors import HostError, UsageError
from pyvmm.host.modules import Kernel, find_tool, run_tool
from pyvmm.host.switchable import Switchable, switchable
from pyvmm.host.users import command_line, kvm_users, start_time
from pyvmm.machine.paging import require_paging
from tests.unit.fake_kvm import FakeKvm


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    path = folder / "modprobe"
    path.touch(0o755)
    return path


def test_a_tool_that_works(tool: Path, tmp_path: Path) -> None:
    tool.write_text(f'#!/bin/sh\necho noise\necho "$@" > {tmp_path}/arguments\n')
    run_tool("modprobe", "kvm_amd", "npt=0")
    assert (tmp_path / "arguments").read_text() == "kvm_amd npt=0\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo one >&2; echo 'modprobe: FATAL: two' >&2; exit 1", "modprobe kvm failed: modprobe: FATAL: two"),
        ("exit 3", "modprobe kvm failed: status 3"),
        ("printf '\\377\\n' >&2; exit 1", "modprobe kvm failed: \ufffd"),
    ],
)
def test_a_tool_that_fails(tool: Path, script: str, message: str) -> None:
    tool.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(HostError) as caught:
        run_tool("modprobe", "kvm")
    assert str(caught.value) == message


def test_a_tool_that_hangs(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.host.modules._TOOL_SECONDS", 0.2)
    tool.write_text("#!/bin/sh\nexec sleep 100\n")
    with pytest.raises(HostError, match="did not end within"):
        run_tool("modprobe", "kvm")


def test_a_tool_that_is_missing() -> None:
    assert find_tool("no-such-tool") is None
    with pytest.raises(HostError, match=r"no-such-tool is missing \(Debian: kmod\)"):
        run_tool("no-such-tool")


def test_tools_are_found_where_an_ordinary_path_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_tool("ldconfig") in ("/usr/sbin/ldconfig", "/sbin/ldconfig")


def test_a_module_that_loads_without_appearing(tmp_path: Path) -> None:
    fake = FakeKvm(tmp_path)
    silent = Kernel(str(fake.sysfs), str(fake.proc), str(fake.device), run=lambda *words: None)
    fake.unload("kvm_amd")
    with pytest.raises(HostError, match="the module is not loaded"):
        silent.reload(("kvm_amd",), {})


def test_a_parameter_that_cannot_be_written(tmp_path: Path) -> None:
    kernel = FakeKvm(tmp_path).kernel
    with pytest.raises(HostError, match="the kernel refuses kvm"):
        kernel.write("kvm", "no/such", "1")
    with pytest.raises(HostError, match="the kernel refuses kvm"):
        kernel.write("kvm", "nx_huge_pages", "\u0663")


def test_processes_that_have_kvm_open(tmp_path: Path) -> None:
    fake = FakeKvm(tmp_path)
    assert kvm_users(fake.kernel.proc) == []
    fake.open_kvm(4711, "qemu-system-x86_64 " + "-device x " * 20)
    fake.open_kvm(12, "lkvm run")
    (fake.proc / "12" / "fd" / "7").unlink()
    (fake.proc / "12" / "fd" / "7").symlink_to("/srv/notkvm")
    (fake.proc / "4711" / "fd" / "9").symlink_to("/gone")
    found = kvm_users(fake.kernel.proc)
    assert [user.pid for user in found] == [4711]
    assert str(found[0]).startswith("pid 4711 (qemu-system-x86_64 -device") and len(found[0].command) == 60


def test_this_machine_has_processes() -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    sleeper = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert sleeper.stdout is not None and sleeper.stdout.readline() == b"\n"
        started = start_time(sleeper.pid)
        assert started is not None and started.isdecimal() and int(started) >= int(start_time(os.getpid()) or "0")
        assert sys.executable in command_line(sleeper.pid)
    finally:
        sleeper.communicate()
    assert start_time(sleeper.pid) is None


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) is None
    child.wait()


def rows(fake: FakeKvm) -> dict[str, Switchable]:
    return {row.parameter: row for row in switchable(fake.kernel)}


def test_what_can_be_switched(tmp_path: Path) -> None:
    fake = FakeKvm(tmp_path)
    found = rows(fake)
    assert list(found) == [
        "npt",
        "tdp_mmu",
        "nx_huge_pages",
        "nx_huge_pages_recovery_ratio",
        "mmio_caching",
    ]
    assert all(row.possible for row in found.values())
    assert found["npt"].reason == "pyvmm host set npt=off"
    assert found["nx_huge_pages"].reason == "pyvmm host set nx_huge_pages=on, without a reload"
    assert found["nx_huge_pages_recovery_ratio"].reason.startswith("pyvmm host set nx_huge_pages_recovery_ratio=NUMBER")
    assert found["npt"].to_dict()["value"] == "Y"


def test_what_has_no_effect_is_not_offered(tmp_path: Path) -> None:
    fake = FakeKvm(tmp_path, "kvm_intel")
    fake.unload("kvm_intel")
    fake.load("kvm_intel", {"ept": "0"})
    found = rows(fake)
    for name in ("tdp_mmu", "unrestricted_guest", "eptad"):
        assert not found[name].possible and "without ept=on" in found[name].reason
    assert found["ept"].possible and found["vpid"].possible


@pytest.mark.parametrize("obstacle", ["built in", "in use", "no root", "no hardware"])
def test_what_stands_in_the_way(tmp_path: Path, obstacle: str) -> None:
    fake = FakeKvm(tmp_path)
    if obstacle == "built in":
        (fake.sysfs / "kvm_amd" / "initstate").unlink()
        word = "built into"
    elif obstacle == "in use":
        fake.use()
        fake.open_kvm(4711, "qemu")
        word = "pid 4711 (qemu)"
    elif obstacle == "no root":
        (fake.proc / "self" / "status").write_text("CapEff:\t0\n")
        word = "only root"
    else:
        fake.unload("kvm_amd")
        fake.load("kvm_amd", {"npt": "0"})
        (fake.proc / "cpuinfo").write_text("flags : svm\n")
        word = "has no NPT"
    found = rows(fake)
    assert not found["npt"].possible and word in found["npt"].reason
    assert found["nx_huge_pages"].possible


def test_a_kvm_without_two_dimensional_paging(tmp_path: Path) -> None:
    first, *others = switchable(FakeKvm(tmp_path, "kvm_pvm").kernel)
    assert (first.module, first.parameter, first.possible) == ("kvm_pvm", "ept/npt", False)
    assert "no two-dimensional paging" in first.reason
    assert not next(row for row in others if row.parameter == "tdp_mmu").possible


def test_no_kvm_at_all(tmp_path: Path) -> None:
    found = switchable(Kernel(str(tmp_path), str(tmp_path), str(tmp_path / "kvm")))
    assert [(row.possible, row.reason) for row in found] == [(False, "no KVM module is loaded")]


@pytest.mark.parametrize(
    ("vendor", "off", "wanted", "way"),
    [
        ("kvm_amd", False, "npt", None),
        ("kvm_amd", True, "kvm-shadow", None),
        ("kvm_pvm", False, "kvm-shadow", None),
        ("kvm_intel", False, "ept", None),
        ("kvm_amd", False, "kvm-shadow", "pyvmm host set npt=off` switches"),
        ("kvm_amd", True, "npt", "pyvmm host set npt=on` switches"),
        ("kvm_intel", True, "ept", "pyvmm host set ept=on` switches"),
        ("kvm_intel", False, "npt", "`pyvmm lab run --cpu amd --set npt=on -- "),
        ("kvm_amd", True, "ept", "`pyvmm lab run --cpu intel --set ept=on -- "),
        ("kvm_pvm", False, "npt", "`pyvmm lab run --cpu amd --set npt=on -- "),
    ],
)
def test_the_paging_that_a_run_asks_for(tmp_path: Path, vendor: str, off: bool, wanted: str, way: str | None) -> None:
    fake = FakeKvm(tmp_path, vendor)
    if off:
        fake.unload(vendor)
        fake.load(vendor, {"npt": "0", "ept": "0"})
    if way is None:
        require_paging(wanted, str(fake.sysfs))
        return
    with pytest.raises(HostError) as caught:
        require_paging(wanted, str(fake.sysfs))
    assert way in str(caught.value) and f"paging {wanted} is not in force, {vendor} pages with" in str(caught.value)


def test_a_built_in_module_leads_to_the_lab(tmp_path: Path) -> None:
    fake = FakeKvm(tmp_path, "kvm_intel")
    (fake.sysfs / "kvm_intel" / "initstate").unlink()
    with pytest.raises(HostError, match=r"lab run --cpu intel --set ept=off"):
        require_paging("kvm-shadow", str(fake.sysfs))


def test_no_module_leads_to_the_lab(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"no KVM module is loaded: `pyvmm lab run --cpu amd --set npt=off"):
        require_paging("kvm-shadow", str(tmp_path))


@pytest.mark.parametrize("name", ["shadow", "vtlb", "brute-force", "", "NPT"])
def test_an_unknown_paging(name: str) -> None:
    with pytest.raises(UsageError, match="KVM can page with ept, npt, kvm-shadow"):
        require_paging(name)
