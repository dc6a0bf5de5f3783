"""`pyvmm host set`, `pyvmm host restore` and `pyvmm boot --paging` against a make-believe kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.cli.main import main
from tests.conftest import ROOT
from tests.unit.fake_kvm import FakeKvm

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKvm:
    fake = FakeKvm(tmp_path)
    for module in ("switch", "switchable"):
        monkeypatch.setattr(f"pyvmm.host.{module}.Kernel", lambda: fake.kernel)
    monkeypatch.setattr("pyvmm.host.switch.RunFolder", lambda: fake.folder)
    monkeypatch.setattr("pyvmm.pykvm.module.kvm_module", fake.kernel.kvm)
    monkeypatch.setattr("pyvmm.host.info.kvm_module", fake.kernel.kvm)
    return fake


def test_set(amd: FakeKvm, capsys: Captured) -> None:
    assert main(["host", "set", "npt=off", "nx_huge_pages=on"]) == 0
    assert capsys.readouterr().out == (
        "kvm_amd.npt: Y -> N\nkvm.nx_huge_pages: N -> 1\npaging: kvm-shadow (reloaded: kvm_amd)\n"
    )
    assert main(["host", "set", "npt=off"]) == 0
    assert capsys.readouterr().out == "nothing to change\npaging: kvm-shadow\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["set", "ept=off"], "no parameter ept"),
        (["set", "foo=off"], "no setting 'foo'"),
        (["set", "npt"], "write NAME=VALUE"),
        (["set"], "required"),
        (["set", "npt=on", "--wait", "never"], "not a time"),
        (["reset"], "invalid choice"),
    ],
)
def test_one_line_and_status_2(amd: FakeKvm, capsys: Captured, arguments: list[str], words: str) -> None:
    try:
        status = main(["host", *arguments])
    except SystemExit as error:
        status = int(str(error.code))
    captured = capsys.readouterr()
    assert status == 2 and words in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert amd.calls == []


def test_what_was_left_is_said_and_restored(amd: FakeKvm, capsys: Captured) -> None:
    assert main(["host", "restore"]) == 0
    assert capsys.readouterr().out == "nothing was left to restore\n"
    amd.refuse["modprobe kvm_amd"] = "Exec format error"
    assert main(["host", "set", "npt=off"]) == 2
    assert "cannot restore npt=on" in capsys.readouterr().err
    main(["host", "--kvm", str(amd.device)])
    assert "switched    npt=off was left behind" in capsys.readouterr().out
    assert main(["host", "set", "npt=off"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("note: npt=off was left behind") and "no KVM module is loaded" in captured.err
    amd.refuse.clear()
    assert main(["host", "restore"]) == 0
    assert capsys.readouterr().out.startswith("kvm_amd.npt: - -> Y\n")
    main(["host", "--json", "--kvm", str(amd.device)])
    host = json.loads(capsys.readouterr().out)
    assert host["switched"] is None
    row = host["switch"][0]
    assert (row["module"], row["parameter"], row["value"], row["possible"]) == ("kvm_amd", "npt", "Y", True)


def test_a_damaged_record_does_not_hide_the_host(amd: FakeKvm, capsys: Captured) -> None:
    os.makedirs(amd.folder.path)
    Path(amd.folder.path, "switch.json").write_text("{")
    main(["host", "--kvm", str(amd.device)])
    assert "switch.json is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["shadow", "zork"])
def test_boot_with_an_unknown_paging(tmp_path: Path, capsys: Captured, name: str) -> None:
    stats = tmp_path / "stats.json"
    assert main(["boot", "--paging", name, "/nonexistent", "--stats", str(stats)]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"pyvmm: no paging {name!r}: KVM can page with ept, npt, kvm-shadow\n"
    assert not stats.exists()


def test_boot_imports_nothing_for_it() -> None:
    code = (
        "import sys\nfrom pyvmm.cli.main import main\nmain(['boot', '/nonexistent'])\n"
        "bad = [name for name in sys.modules if name.startswith('pyvmm.host') or name in ('subprocess', 'json')]\n"
        "bad += [name for name in sys.modules if name == 'pyvmm.machine.paging']\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
