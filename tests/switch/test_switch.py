"""The switch on real modules: these tests reload KVM, as root, so they belong in a lab."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pyvmm import HostError, Machine, Terminated
from pyvmm.cli.main import main
from pyvmm.host.modules import Kernel, run_tool
from pyvmm.host.record import FOLDER
from pyvmm.host.switch import HalfSwitched, Switch, left_behind, restore, set_parameters, switched
from pyvmm.pykvm import System
from pyvmm.pykvm.module import kvm_module
from tests.conftest import ROOT

pytestmark = pytest.mark.switch

SWITCHES = {"kvm_intel": "ept", "kvm_amd": "npt"}
NAME = SWITCHES.get(kvm_module().name, "npt")
"""The parameter for two-dimensional paging here."""
OTHER = {"ept": "npt", "npt": "ept"}[NAME]


def paging() -> str:
    return kvm_module().paging


def on() -> bool:
    return paging() == NAME


class Done(NamedTuple):
    """What a command of `pyvmm` did."""

    status: int
    output: str
    errors: str


def pyvmm(captured: pytest.CaptureFixture[str], *arguments: str) -> Done:
    """Run a command in this process: to start another costs seconds in a lab."""
    captured.readouterr()
    status = main(list(arguments))
    return Done(status, *captured.readouterr())


def boots() -> bool:
    with Machine("16M") as vm:
        vm.load("guest:hello-real")
        return vm.run(timeout=60).status == 0


@contextlib.contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    """Start a Python program and wait for the first line that it writes."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


def switching_child(value: bool) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    return child(
        "import time\nfrom pyvmm.host.switch import switched\n"
        f"with switched({NAME}={value}):\n print('ready', flush=True)\n time.sleep(100)"
    )


@pytest.fixture(autouse=True)
def same_host() -> Iterator[None]:
    """Check that a test leaves all parameters of the modules as it found them."""
    before = kvm_module()
    assert before.name in SWITCHES, "these tests need kvm_amd or kvm_intel as a module"
    yield
    after = kvm_module()
    if after != before:
        with contextlib.suppress(HostError):
            restore()
        if kvm_module().paging != before.paging:
            set_parameters({NAME: before.paging == NAME})
    Path(FOLDER, "switch.json").unlink(missing_ok=True)
    assert after == before


@pytest.mark.intel
def test_there_and_back_and_a_guest_runs_each_way() -> None:
    former = on()
    for value in (not former, former):
        change = set_parameters({NAME: value})
        assert on() is value
        assert change.reloaded == (kvm_module().name,) and not change.lost
        assert f"{kvm_module().name}.{NAME}" in change.changed()
        assert boots()
    assert set_parameters({NAME: former}).reloaded == ()  # in force already
    assert left_behind() is None


@pytest.mark.intel
def test_the_former_setting_is_back_after_success_and_after_an_exception() -> None:
    former = on()
    with switched(**{NAME: not former}):
        assert on() is not former
        assert boots()
    assert on() is former
    with pytest.raises(ZeroDivisionError), switched(**{NAME: not former}):
        assert on() is not former
        _ = 1 / 0
    assert on() is former
    assert left_behind() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_former_setting_is_back_after_a_signal(number: signal.Signals) -> None:
    former = on()
    with switching_child(not former) as process:
        assert on() is not former
        process.send_signal(number)
        process.send_signal(number)  # nobody waits patiently
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ("Terminated" if number != signal.SIGINT else "KeyboardInterrupt") in errors
    assert on() is former
    assert left_behind() is None


@pytest.mark.parametrize("way", ["in", "out"])
def test_a_signal_between_unload_and_load_waits(way: str) -> None:
    former = on()
    module = kvm_module().name
    loads = []

    def run(name: str, *arguments: str) -> None:
        if name == "modprobe" and arguments[0] == module:
            loads.append(arguments)
            if len(loads) == (1 if way == "in" else 2):
                assert paging() == "unknown"
                os.kill(os.getpid(), signal.SIGINT)
        run_tool(name, *arguments)

    entered = False
    with pytest.raises(KeyboardInterrupt), Switch({NAME: not former}, kernel=Kernel(run=run)):
        entered = True
    assert entered is (way == "out") and len(loads) == 2
    assert on() is former
    assert left_behind() is None


def test_a_killed_switch_is_put_back_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    former = on()
    with switching_child(not former) as process:
        process.kill()
        process.wait()
    assert on() is not former
    said = pyvmm(capsys, "host").output
    assert "left behind" in said and "pyvmm host restore" in said
    done = pyvmm(capsys, "host", "restore")
    assert (done.status, done.errors) == (0, "")
    assert f"{NAME}: " in done.output
    assert on() is former
    assert pyvmm(capsys, "host", "restore").output == "nothing was left to restore\n"


def test_the_next_switch_goes_back_beyond_a_killed_one() -> None:
    former = on()
    with switching_child(not former) as process:
        process.kill()
        process.wait()
    with switched(nx_huge_pages=False):
        assert on() is not former
    assert on() is former


def test_open_vms_are_named() -> None:
    value = not on()
    with (
        child(
            "import os, time\nos.open('/dev/kvm', os.O_RDWR)\nprint('ready', flush=True)\ntime.sleep(100)"
        ) as process,
        pytest.raises(HostError, match=f"in use.*pid {process.pid} "),
        switched(**{NAME: value}),
    ):
        pass
    with Machine("16M"), pytest.raises(HostError, match=r"in use.*this process"):
        set_parameters({NAME: value})
    with switched(**{NAME: value}):
        assert on() is value


def test_a_vm_that_stays_open_is_named_and_restore_mends_it() -> None:
    former = on()
    system = None
    with (
        pytest.raises(HalfSwitched, match=r"(?s)cannot restore.*this process.*pyvmm host restore"),
        switched(**{NAME: not former}),
    ):
        system = System()
    assert on() is not former
    assert system is not None
    system.close()
    restore()
    assert on() is former


def test_a_second_switch_is_refused_or_waits(capsys: pytest.CaptureFixture[str]) -> None:
    former = on()
    with switching_child(not former) as process:
        with pytest.raises(HostError, match=f"switched by pid {process.pid} "), switched(**{NAME: former}):
            pass
        done = pyvmm(capsys, "host", "set", f"{NAME}=on")
        assert done.status == 2 and f"pid {process.pid} " in done.errors and done.errors.count("\n") == 1
        assert f"pid {process.pid} " in pyvmm(capsys, "host").output
        process.send_signal(signal.SIGTERM)
        with switched(wait=60, **{NAME: not former}):
            assert on() is not former
    with switched(**{NAME: former}), pytest.raises(HostError, match="this process has"), switched(**{NAME: former}):
        pass


@pytest.mark.intel
def test_no_such_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HostError, match=f"no parameter {OTHER} .*{NAME}.*nx_huge_pages"), switched(**{OTHER: True}):
        pass
    done = pyvmm(capsys, "host", "set", f"{OTHER}=off")
    assert done.status == 2 and done.errors.count("\n") == 1


def test_other_parameters_are_kept() -> None:
    module, former = kvm_module().name, on()
    nested = kvm_module().parameters["nested"]
    other = {"1": "0", "0": "1", "Y": "N", "N": "Y"}[nested]
    # As somebody does who loads the module by hand: the value is nowhere but in the module.
    Kernel().reload((module,), {module: {"nested": other, NAME: "1" if former else "0"}})
    try:
        with switched(**{NAME: not former}):
            assert kvm_module().parameters["nested"] == other
            assert on() is not former
        assert kvm_module().parameters["nested"] == other
        assert on() is former
    finally:
        Kernel().reload((module,), {module: {"nested": nested, NAME: "1" if former else "0"}})


def test_a_parameter_of_kvm_reloads_both_and_keeps_both() -> None:
    module = kvm_module().name
    kernel = Kernel()
    assert not kernel.writable("kvm", "mmio_caching")
    caching = kvm_module().common["mmio_caching"] == "Y"
    kernel.write("kvm", "halt_poll_ns", "12345")
    try:
        with switched(mmio_caching=not caching) as change:
            assert change.reloaded == ("kvm", module)
            assert (kvm_module().common["mmio_caching"] == "Y") is not caching
            assert kvm_module().common["halt_poll_ns"] == "12345"
            assert boots()
        assert kvm_module().common["halt_poll_ns"] == "12345"
    finally:
        kernel.write("kvm", "halt_poll_ns", "200000")


@pytest.mark.intel
def test_a_writable_parameter_needs_no_reload() -> None:
    value = kvm_module().common["nx_huge_pages"] == "Y"
    with System(), switched(nx_huge_pages=not value) as change:
        assert change.reloaded == ()
        assert (kvm_module().common["nx_huge_pages"] == "Y") is not value


def test_a_module_that_cannot_be_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    former = on()
    real = "/usr/sbin/modprobe"
    wanted = f"{NAME}={0 if former else 1}"
    fake = tmp_path / "modprobe"
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *{wanted}*) echo "modprobe: no such luck" >&2; exit 1;; esac\nexec {real} "$@"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(HostError, match="no such luck; the former settings are in force again"):
        set_parameters({NAME: not former})
    assert on() is former
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *show-depends*) exec {real} "$@";; esac\necho "modprobe: worse" >&2\nexit 1\n'
    )
    with pytest.raises(HalfSwitched, match=r"worse.*now kvm is loaded without a vendor module.*host restore"):
        set_parameters({NAME: not former})
    assert paging() == "unknown"
    monkeypatch.undo()
    assert "left behind" in pyvmm(capsys, "host").output
    assert pyvmm(capsys, "host", "restore").status == 0
    assert on() is former


def test_a_missing_module_file_is_seen_before_the_module_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODPROBE_OPTIONS", f"-d {tmp_path}")
    with pytest.raises(HostError, match="could not be loaded again, so it stays"):
        set_parameters({NAME: not on()})


def test_boot_checks_the_paging(capfd: pytest.CaptureFixture[str]) -> None:
    now, other = (NAME, "kvm-shadow") if on() else ("kvm-shadow", NAME)
    done = pyvmm(capfd, "boot", "--paging", now, "-q", "guest:hello-real")
    assert (done.status, done.output, done.errors) == (0, "Hello from real mode\n", "")
    done = pyvmm(capfd, "boot", "--paging", other, "guest:hello-real")
    assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1)
    setting = done.errors.partition("pyvmm host set ")[2].partition("`")[0]
    assert pyvmm(capfd, "host", "set", setting).status == 0
    try:
        assert pyvmm(capfd, "boot", "--paging", other, "-q", "guest:hello-real").status == 0
    finally:
        set_parameters({NAME: now == NAME})


def test_the_device_keeps_its_mode() -> None:
    os.chmod("/dev/kvm", 0o646)
    try:
        with switched(**{NAME: not on()}):
            assert os.stat("/dev/kvm").st_mode & 0o777 == 0o646
        assert os.stat("/dev/kvm").st_mode & 0o777 == 0o646
    finally:
        os.chmod("/dev/kvm", 0o600)


def test_what_is_switchable_is_what_can_be_switched() -> None:
    from pyvmm.host.switchable import switchable

    rows = {row.parameter: row for row in switchable()}
    assert rows[NAME].possible and rows["nx_huge_pages"].possible
    assert rows["tdp_mmu"].possible is on()
    with System():
        rows = {row.parameter: row for row in switchable()}
        assert not rows[NAME].possible and "this process" in rows[NAME].reason
        assert rows["nx_huge_pages"].possible


def test_the_default_of_sigterm_becomes_an_exception() -> None:
    former = on()
    with pytest.raises(Terminated), switched(**{NAME: not former}):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert on() is former
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_tools_fail_in_one_line() -> None:
    with pytest.raises(HostError, match=r"rmmod kvm failed: .*in use"):
        run_tool("rmmod", "kvm")
