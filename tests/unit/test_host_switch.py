"""The switch against a make-believe kernel: every refusal, every failure half-way, and the way back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import pytest

from pyvmm.errors import HostError, Terminated, UsageError
from pyvmm.host import guard
from pyvmm.host.switch import Change, HalfSwitched, Switch, left_behind, restore, set_parameters
from tests.unit.fake_kvm import SWITCH, FakeKvm

VENDORS = ("kvm_amd", "kvm_intel")


@pytest.fixture
def amd(tmp_path: Path) -> FakeKvm:
    return FakeKvm(tmp_path, "kvm_amd")


@pytest.fixture
def intel(tmp_path: Path) -> FakeKvm:
    return FakeKvm(tmp_path, "kvm_intel")


def change(fake: FakeKvm, **settings: bool | int | str) -> Change:
    return set_parameters(settings, kernel=fake.kernel, folder=fake.folder)


def switch(fake: FakeKvm, **settings: bool | int | str) -> Switch:
    return Switch(settings, kernel=fake.kernel, folder=fake.folder)


def refusal(fake: FakeKvm, **settings: bool | int | str) -> str:
    """Return why a switch is refused, having checked that both kinds are, and that nothing was touched."""
    before, node = fake.everything(), fake.device.stat().st_ino
    with pytest.raises(HostError) as caught:
        change(fake, **settings)
    with pytest.raises(HostError) as again, switch(fake, **settings):
        pass
    assert str(again.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, HalfSwitched)
    assert not [call for call in fake.calls if "show-depends" not in call]
    assert (fake.everything(), fake.device.stat().st_ino) == (before, node)
    assert left_behind(fake.kernel, fake.folder) is None
    return str(caught.value)


@pytest.mark.parametrize("vendor", VENDORS)
def test_off_and_on_and_nothing_to_do(tmp_path: Path, vendor: str) -> None:
    fake, name = FakeKvm(tmp_path, vendor), SWITCH[vendor]
    done = change(fake, **{name: False})
    assert fake.get(name) == "N" and fake.kernel.kvm().paging == "kvm-shadow"
    assert done.changed()[f"{vendor}.{name}"] == ("Y", "N") and done.reloaded == (vendor,) and done.lost == ()
    assert fake.calls == [f"modprobe --show-depends {vendor}", f"rmmod {vendor}", f"modprobe {vendor} {name}=0"]
    fake.calls.clear()
    assert change(fake, **{name: "off"}).changed() == {}
    assert fake.calls == []
    change(fake, **{name: "on"})
    assert fake.kernel.kvm().paging == name
    assert left_behind(fake.kernel, fake.folder) is None


def test_several_settings_are_one_reload(intel: FakeKvm) -> None:
    change(intel, ept=False, vpid=False)
    assert [call.split()[0] for call in intel.calls] == ["modprobe", "rmmod", "modprobe"]
    assert (intel.get("ept"), intel.get("vpid")) == ("N", "N")


def test_what_follows_ept_comes_back_with_it(intel: FakeKvm) -> None:
    before = intel.everything()
    done = change(intel, ept=False)
    assert set(done.changed()) == {f"kvm_intel.{name}" for name in ("ept", "unrestricted_guest", "eptad", "pml")}
    assert done.lost == ()
    change(intel, ept=True)
    assert intel.everything() == before
    assert intel.calls.count("rmmod kvm_intel") == 2  # one for each


def test_a_parameter_of_kvm_reloads_both(amd: FakeKvm) -> None:
    (amd.sysfs / "kvm" / "parameters" / "halt_poll_ns").write_text("7\n")
    done = change(amd, tdp_mmu=False)
    assert done.reloaded == ("kvm", "kvm_amd")
    assert amd.calls[1:] == ["rmmod kvm_amd", "rmmod kvm", "modprobe kvm tdp_mmu=0", "modprobe kvm_amd"]
    assert (amd.get("tdp_mmu"), amd.get("halt_poll_ns")) == ("N", "7")


def test_writable_parameters_need_no_reload_and_no_idle_kvm(amd: FakeKvm) -> None:
    amd.use(3)
    assert change(amd, nx_huge_pages=True, nx_huge_pages_recovery_ratio=5).reloaded == ()
    assert (amd.get("nx_huge_pages"), amd.get("nx_huge_pages_recovery_ratio")) == ("1", "5")
    with switch(amd, nx_huge_pages_recovery_ratio=9):
        assert amd.get("nx_huge_pages_recovery_ratio") == "9"
    assert amd.get("nx_huge_pages_recovery_ratio") == "5"
    assert amd.calls == []


def test_parameters_given_by_hand_are_kept_and_defaults_are_not_given(amd: FakeKvm) -> None:
    amd.unload("kvm_amd")
    amd.load("kvm_amd", {"nested": "0"})
    with switch(amd, npt=False):
        assert (amd.get("npt"), amd.get("nested")) == ("N", "0")
        assert "modprobe kvm_amd npt=0 nested=0" in amd.calls
    assert (amd.get("npt"), amd.get("nested"), amd.get("sev")) == ("Y", "0", "Y")
    assert not any("force_avic" in call for call in amd.calls)  # to give it taints the kernel


def test_options_of_modprobe_d_cost_no_second_reload(amd: FakeKvm) -> None:
    amd.options["kvm_amd"] = {"nested": "0"}
    amd.unload("kvm_amd")
    amd.load("kvm_amd", {})
    change(amd, npt=False)
    assert amd.calls.count("rmmod kvm_amd") == 1 and amd.get("nested") == "0"


def test_a_parameter_that_cannot_be_kept_is_reported(intel: FakeKvm) -> None:
    intel.unload("kvm_intel")
    intel.load("kvm_intel", {"nested": "0"})
    intel.refuse["nested="] = "Invalid argument"
    assert change(intel, vpid=False).lost == ("kvm_intel.nested was N and is Y",)
    assert intel.get("vpid") == "N"


def test_refused_open_vms(amd: FakeKvm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.host.reload._ENTRY_SECONDS", 0.1)
    amd.use(2)
    assert "in use 2 times by processes that cannot be seen" in refusal(amd, npt=False)
    amd.open_kvm(4711, "qemu-system-x86_64 -m 64")
    amd.open_kvm(99, "")
    (amd.proc / "99" / "comm").write_text("lkvm\n")
    reason = refusal(amd, npt=False)
    assert "pid 99 ([lkvm]), pid 4711 (qemu-system-x86_64 -m 64)" in reason


def test_a_vm_that_lets_go_late_is_waited_for(amd: FakeKvm) -> None:
    amd.use(1)
    timer = threading.Timer(0.1, lambda: amd.use(0))
    timer.start()
    change(amd, npt=False)
    timer.join()
    assert amd.get("npt") == "N"


def test_refused_built_in(amd: FakeKvm) -> None:
    for module in ("kvm_amd", "kvm"):
        (amd.sysfs / module / "initstate").unlink()
    assert "kvm_amd is built into the kernel" in refusal(amd, npt=False)
    assert "kvm is built into the kernel" in refusal(amd, tdp_mmu=False)
    change(amd, nx_huge_pages=True)


def test_refused_no_root(amd: FakeKvm, monkeypatch: pytest.MonkeyPatch) -> None:
    (amd.proc / "self" / "status").write_text("CapEff:\t0000000000000000\n")
    assert "only root" in refusal(amd, npt=False)
    (amd.proc / "self" / "status").unlink()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "only root" in refusal(amd, npt=False)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "only root may write" in refusal(amd, nx_huge_pages=True)


@pytest.mark.parametrize("tool", ["modprobe", "rmmod"])
def test_refused_no_tools(amd: FakeKvm, tool: str) -> None:
    amd.no_tools.add(tool)
    assert f"{tool} is missing (Debian: kmod)" in refusal(amd, npt=False)


def test_refused_by_the_kernel(amd: FakeKvm) -> None:
    (amd.proc / "sys" / "kernel" / "modules_disabled").write_text("1\n")
    assert "modules_disabled" in refusal(amd, npt=False)
    (amd.sysfs / "kvm_amd" / "refcnt").unlink()
    assert "cannot unload" in refusal(amd, npt=False)


def test_refused_another_module_holds_it(amd: FakeKvm) -> None:
    (amd.sysfs / "kvm" / "holders" / "kvmgt").touch()
    assert "kvm is in use by the modules kvmgt" in refusal(amd, tdp_mmu=False)


def test_refused_no_such_parameter(amd: FakeKvm, tmp_path: Path) -> None:
    reason = refusal(amd, ept=False)
    assert "no parameter ept" in reason and "npt, tdp_mmu, nx_huge_pages" in reason
    with pytest.raises(UsageError, match="no setting 'foo'"):
        change(amd, foo=True)
    with pytest.raises(UsageError, match="no setting 'foo'"):
        switch(amd, foo=True)


def test_refused_no_two_dimensional_paging(tmp_path: Path) -> None:
    fake = FakeKvm(tmp_path, "kvm_pvm")
    assert "no two-dimensional paging at all" in refusal(fake, npt=True)
    assert "lab run --cpu intel --set ept=on" in refusal(fake, ept=False)
    assert "no two-dimensional paging at all" in refusal(fake, tdp_mmu=True)


def test_refused_no_module(amd: FakeKvm) -> None:
    amd.unload("kvm_amd")
    assert "modprobe kvm_intel" in refusal(amd, npt=False)
    (amd.proc / "cpuinfo").write_text("flags : svm\n")
    assert "modprobe kvm_amd" in refusal(amd, npt=False)
    (amd.proc / "cpuinfo").write_text("flags : fpu\n")
    assert "neither VMX nor SVM" in refusal(amd, npt=False)


def test_refused_without_effect(intel: FakeKvm) -> None:
    change(intel, ept=False)
    intel.calls.clear()
    assert "without ept=on" in refusal(intel, unrestricted_guest=True)
    assert "without ept=on" in refusal(intel, tdp_mmu="on", vpid=False)
    change(intel, unrestricted_guest=True, ept=True)
    assert intel.get("unrestricted_guest") == "Y"


def test_refused_no_hardware_by_its_flag(tmp_path: Path) -> None:
    fake = FakeKvm(tmp_path, "kvm_amd", flags="svm")
    change(fake, npt=False)
    fake.calls.clear()
    assert "this CPU has no NPT" in refusal(fake, npt=True)


def test_no_hardware_shows_after_the_reload(intel: FakeKvm) -> None:
    change(intel, ept=False)
    intel.no_hardware.add("ept")
    before = intel.everything()
    with pytest.raises(HostError, match=r"took ept=1 but reports ept=N.*the former settings are in force again"):
        change(intel, ept=True)
    assert intel.everything() == before
    assert left_behind(intel.kernel, intel.folder) is None


def test_a_module_file_that_is_missing_is_seen_before_the_module_goes(amd: FakeKvm) -> None:
    amd.refuse["--show-depends"] = "Module kvm_amd not found"
    assert "could not be loaded again, so it stays" in refusal(amd, npt=False)


def test_a_load_that_fails_goes_back(amd: FakeKvm) -> None:
    before = amd.everything()
    amd.refuse["npt=0"] = "Operation not supported"
    with pytest.raises(HostError, match="Operation not supported; the former settings are in force again") as caught:
        change(amd, npt=False)
    assert not isinstance(caught.value, HalfSwitched)
    assert amd.everything() == before
    assert left_behind(amd.kernel, amd.folder) is None


def test_a_write_that_fails_goes_back_too(amd: FakeKvm, monkeypatch: pytest.MonkeyPatch) -> None:
    before = amd.everything()
    real = amd.kernel.write

    def write(module: str, parameter: str, value: str) -> None:
        if (parameter, value) == ("nx_huge_pages", "1"):
            raise HostError("the kernel refuses kvm.nx_huge_pages=1: Operation not permitted")
        real(module, parameter, value)

    monkeypatch.setattr(amd.kernel, "write", write)
    with (
        pytest.raises(HostError, match="not permitted; the former settings are in force again"),
        switch(amd, npt=False, nx_huge_pages=True),
    ):
        pass
    assert amd.everything() == before


def test_a_module_that_does_not_come_back(amd: FakeKvm) -> None:
    amd.refuse["modprobe kvm_amd"] = "Exec format error"
    with pytest.raises(HalfSwitched) as caught, switch(amd, npt=False):
        pass
    text = str(caught.value)
    assert "Exec format error" in text and "cannot restore npt=on" in text and "\n" not in text
    assert "now kvm is loaded without a vendor module" in text and "pyvmm host restore" in text
    left = left_behind(amd.kernel, amd.folder)
    assert left is not None and "left behind" in left.describe() and not left.alive()
    with pytest.raises(HostError, match="no KVM module is loaded"):
        change(amd, npt=False)
    assert left_behind(amd.kernel, amd.folder) == left  # a refused switch forgets nothing
    with pytest.raises(HalfSwitched, match="Exec format error"):
        restore(kernel=amd.kernel, folder=amd.folder)
    amd.refuse.clear()
    done = restore(kernel=amd.kernel, folder=amd.folder)
    assert done is not None and done.changed()["kvm_amd.npt"] == ("-", "Y")
    assert amd.get("npt") == "Y"
    assert restore(kernel=amd.kernel, folder=amd.folder) is None


def test_kvm_does_not_come_back(amd: FakeKvm) -> None:
    amd.refuse["modprobe kvm"] = "Exec format error"
    with pytest.raises(HalfSwitched, match="now no KVM module is loaded"):
        change(amd, mmio_caching=False)
    amd.refuse.clear()
    restore(kernel=amd.kernel, folder=amd.folder)
    assert (amd.get("mmio_caching"), amd.get("npt")) == ("Y", "Y")


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_context_restores(tmp_path: Path, vendor: str) -> None:
    fake, name = FakeKvm(tmp_path, vendor), SWITCH[vendor]
    before = fake.everything()
    with switch(fake, **{name: False}) as done:
        assert fake.get(name) == "N" and done.changed()[f"{vendor}.{name}"] == ("Y", "N")
        record = left_behind(fake.kernel, fake.folder)
        assert record is not None and record.alive() and f"pid {os.getpid()}" in record.describe()
    assert fake.everything() == before
    with pytest.raises(ZeroDivisionError), switch(fake, **{name: False}):
        _ = 1 / 0
    assert fake.everything() == before
    with pytest.raises(SystemExit), switch(fake, **{name: False}):
        sys.exit(3)
    assert fake.everything() == before
    assert left_behind(fake.kernel, fake.folder) is None
    assert (fake.device.stat().st_mode & 0o777) == 0o600


def test_the_device_node_keeps_its_mode(amd: FakeKvm) -> None:
    amd.device.chmod(0o666)
    amd.no_tools.clear()
    with switch(amd, npt=False):
        assert amd.device.stat().st_mode & 0o777 == 0o666
    assert amd.device.stat().st_mode & 0o777 == 0o666
    assert "udevadm settle --timeout=5" in amd.calls


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated), (signal.SIGHUP, Terminated)],
)
def test_signals_in_the_body(amd: FakeKvm, number: int, kind: type[BaseException]) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]
    with pytest.raises(kind), switch(amd, npt=False):
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert amd.get("npt") == "Y"
    assert left_behind(amd.kernel, amd.folder) is None
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]


def signal_at(fake: FakeKvm, call: str, number: int = signal.SIGINT) -> None:
    """Send this process a signal in the middle of a reload."""
    run = fake.kernel._run

    def interrupted(name: str, *arguments: str) -> None:
        if " ".join((name, *arguments)) == call:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        run(name, *arguments)

    fake.kernel._run = interrupted


def test_a_signal_on_the_way_in_waits_for_the_reload(amd: FakeKvm) -> None:
    signal_at(amd, "modprobe kvm_amd npt=0", signal.SIGTERM)
    entered = False
    with pytest.raises(Terminated), switch(amd, npt=False):
        entered = True
    assert not entered
    assert amd.get("npt") == "Y"
    assert next(call for call in amd.calls if call.startswith("modprobe kvm_amd")) == "modprobe kvm_amd npt=0"
    assert left_behind(amd.kernel, amd.folder) is None


def test_a_signal_on_the_way_out_waits_for_the_reload(amd: FakeKvm) -> None:
    signal_at(amd, "modprobe kvm_amd npt=Y")
    with pytest.raises(KeyboardInterrupt), switch(amd, npt=False):
        pass
    assert amd.get("npt") == "Y"
    assert left_behind(amd.kernel, amd.folder) is None


def test_a_signal_while_set_waits_and_the_setting_stays(amd: FakeKvm) -> None:
    signal_at(amd, "modprobe kvm_amd npt=0")
    with pytest.raises(KeyboardInterrupt):
        change(amd, npt=False)
    assert amd.get("npt") == "N"
    assert left_behind(amd.kernel, amd.folder) is None


def test_a_signal_at_any_call_restores(amd: FakeKvm) -> None:
    """Let SIGTERM arrive at the calls and returns of entering, body and leaving in turn; one more follows at once."""
    code = os.path.dirname(guard.__file__)
    left = [0]

    def count(frame: FrameType, event: str, _argument: object) -> None:
        if event == "return" and frame.f_code is Switch.__enter__.__code__:
            return  # Python looks for signals after calls and at jumps back, but not between this return and the body
        if frame.f_code.co_filename.startswith(code):
            left[0] -= 1
            if left[0] in (0, -1):
                os.kill(os.getpid(), signal.SIGTERM)

    before = amd.everything()
    outcomes = set()
    former = signal.signal(signal.SIGTERM, terminate)
    try:
        fire = 0
        while left[0] <= 0:
            fire += 7
            left[0] = fire
            sys.setprofile(count)
            try:
                with switch(amd, npt=False):
                    pass
                outcomes.add("none")
            except Terminated:
                outcomes.add("terminated")
            finally:
                sys.setprofile(None)
            assert amd.everything() == before, f"signal at step {fire}"
            assert left_behind(amd.kernel, amd.folder) is None
            assert signal.getsignal(signal.SIGTERM) is terminate
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
            amd.folder.acquire()
            amd.folder.release()
        assert fire > 300 and outcomes == {"none", "terminated"}
    finally:
        signal.signal(signal.SIGTERM, former)


def terminate(number: int, _frame: object) -> None:
    raise Terminated(number)


def test_the_programs_own_handler_is_called_and_a_new_one_stays(amd: FakeKvm) -> None:
    seen: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with switch(amd, npt=False):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            assert seen == [signal.SIGTERM]
            signal.signal(signal.SIGTERM, terminate)
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, former)
        signal.signal(signal.SIGHUP, ignored)


def test_in_another_thread(amd: FakeKvm) -> None:
    values = []

    def work() -> None:
        with switch(amd, npt=False):
            values.append(amd.get("npt"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert values == ["N"] and amd.get("npt") == "Y"


def test_a_forked_child_restores_nothing(amd: FakeKvm) -> None:
    with switch(amd, npt=False):
        pid = os.fork()
        if pid == 0:
            try:
                raise SystemExit  # as a child that ends by leaving the block
            except SystemExit:
                inner = switch(amd, npt=False)
                inner._pid = os.getppid()
                inner.__exit__(None, None, None)
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert amd.get("npt") == "N"
    assert amd.get("npt") == "Y"


def test_a_vm_left_open_keeps_the_former_settings_away(amd: FakeKvm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.host.reload._RESTORE_SECONDS", 0.1)
    with (
        pytest.raises(HalfSwitched, match=r"cannot restore npt=on: .*in use.*now kvm_amd is loaded with npt=N"),
        switch(amd, npt=False),
    ):
        amd.use(1)
    left = left_behind(amd.kernel, amd.folder)
    assert left is not None and not left.alive()
    amd.use(0)
    restore(kernel=amd.kernel, folder=amd.folder)
    assert amd.get("npt") == "Y"


def test_an_error_of_the_body_is_not_lost_behind_one_of_the_way_back(
    amd: FakeKvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyvmm.host.reload._RESTORE_SECONDS", 0.1)
    with pytest.raises(HalfSwitched) as caught, switch(amd, npt=False):
        amd.use(1)
        _ = 1 / 0
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def killed(fake: FakeKvm, **settings: bool) -> None:
    """Leave what a switch leaves whose process is killed."""
    inner = switch(fake, **settings)
    inner.__enter__()
    inner._guard.remove()
    fake.folder.release()
    record = fake.folder.read()
    assert record is not None
    record.started = "1"  # the process of that id is another one now
    fake.folder.write(record)
    fake.calls.clear()


def test_a_killed_switch_is_restored_later(amd: FakeKvm) -> None:
    before = amd.everything()
    killed(amd, npt=False, nx_huge_pages=True)
    left = left_behind(amd.kernel, amd.folder)
    assert left is not None
    assert left.describe() == (
        "npt=off nx_huge_pages=on was left behind by a switch that could not restore npt=on nx_huge_pages=off: "
        "`sudo pyvmm host restore` does"
    )
    done = restore(kernel=amd.kernel, folder=amd.folder)
    assert done is not None and done.reloaded == ("kvm_amd",)
    assert amd.everything().keys() == before.keys() and amd.get("npt") == "Y" and amd.get("nx_huge_pages") == "N"
    assert left_behind(amd.kernel, amd.folder) is None


def test_a_killed_switch_and_a_reload_by_hand(amd: FakeKvm) -> None:
    killed(amd, npt=False)
    amd.unload("kvm_amd")
    amd.load("kvm_amd", {})
    assert left_behind(amd.kernel, amd.folder) is None
    assert restore(kernel=amd.kernel, folder=amd.folder) is None


def test_killed_between_unload_and_load(amd: FakeKvm) -> None:
    killed(amd, npt=False)
    amd.unload("kvm_amd")
    amd.unload("kvm")
    restore(kernel=amd.kernel, folder=amd.folder)
    assert amd.get("npt") == "Y"


def test_the_next_switch_goes_back_beyond_a_killed_one(intel: FakeKvm) -> None:
    before = intel.everything()
    killed(intel, ept=False)
    with switch(intel, vpid=False):
        assert (intel.get("ept"), intel.get("vpid")) == ("N", "N")
    assert intel.everything() == before
    killed(intel, ept=False)
    with switch(intel, ept=False):
        assert intel.get("ept") == "N"
    assert intel.everything() == before
    killed(intel, ept=False)
    intel.refuse["vpid=0"] = "no"
    with pytest.raises(HostError, match="former settings are in force"), switch(intel, vpid=False):
        pass
    assert intel.get("ept") == "N"
    intel.refuse.clear()
    restore(kernel=intel.kernel, folder=intel.folder)
    assert intel.everything() == before


def test_set_after_a_killed_switch(intel: FakeKvm) -> None:
    killed(intel, ept=False, vpid=False)
    change(intel, vpid=False)
    left = left_behind(intel.kernel, intel.folder)
    assert left is not None and left.settings == {"ept": "0"}
    restore(kernel=intel.kernel, folder=intel.folder)
    assert (intel.get("ept"), intel.get("vpid"), intel.get("unrestricted_guest")) == ("Y", "N", "Y")
    killed(intel, ept=False)
    change(intel, ept=False)
    assert left_behind(intel.kernel, intel.folder) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"former": 3}', json.dumps({"former": {}, "pid": "x"})])
def test_a_damaged_record_is_named(amd: FakeKvm, text: str) -> None:
    os.makedirs(amd.folder.path)
    Path(amd.folder.path, "switch.json").write_text(text)
    with pytest.raises(HostError, match=r"switch\.json is damaged"):
        left_behind(amd.kernel, amd.folder)
    with pytest.raises(HostError, match=r"switch\.json is damaged"):
        change(amd, npt=False)


def test_a_second_switch_of_this_process(amd: FakeKvm) -> None:
    other = FakeKvm.__new__(FakeKvm)
    other.__dict__.update(amd.__dict__)
    other.folder = type(amd.folder)(amd.folder.path)
    with (
        switch(amd, npt=False),
        pytest.raises(HostError, match=r"this process has .* switched already"),
        switch(other, npt=True),
    ):
        pass
    assert amd.get("npt") == "Y"


def test_a_second_process_is_named_and_waited_for(amd: FakeKvm) -> None:
    lock = f"{amd.folder.path}/switch.lock"
    code = (
        "import sys, time\nfrom pyvmm.host.record import RunFolder\n"
        f"folder = RunFolder({amd.folder.path!r})\nfolder.acquire()\nprint('ready', flush=True)\n"
        "sys.stdin.read()\nfolder.release()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(HostError, match=rf"switched by pid {process.pid} \(.*python.*--wait"):
            change(amd, npt=False)
        start = time.monotonic()
        with pytest.raises(HostError, match=f"pid {process.pid} "):
            set_parameters({"npt": False}, wait=0.3, kernel=amd.kernel, folder=amd.folder)
        assert 0.3 <= time.monotonic() - start < 5
        assert amd.get("npt") == "Y" and amd.calls == []
        timer = threading.Timer(0.2, process.stdin.close)
        timer.start()
        set_parameters({"npt": False}, wait=30, kernel=amd.kernel, folder=amd.folder)
        timer.join()
    assert amd.get("npt") == "N"
    assert os.stat(lock).st_mode & 0o777 == 0o600
    assert Path(lock).read_text() == ""


def test_ctrl_c_ends_the_wait(amd: FakeKvm) -> None:
    amd.folder.acquire()
    folder = type(amd.folder)(amd.folder.path)
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        set_parameters({"npt": False}, wait=60, kernel=amd.kernel, folder=folder)
    amd.folder.release()
    assert amd.get("npt") == "Y"


def test_without_root_the_reason_comes_before_the_lock(amd: FakeKvm, monkeypatch: pytest.MonkeyPatch) -> None:
    (amd.proc / "self" / "status").write_text("CapEff:\t0000000000000000\n")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.makedirs", denied)
    assert "no parameter ept" in refusal(amd, ept=True)
    assert "only root may reload" in refusal(amd, npt=False)
    assert refusal(amd, nx_huge_pages=True) == "only root may switch KVM's settings: use sudo"


def test_everybody_may_read_what_is_switched(amd: FakeKvm) -> None:
    former = os.umask(0o077)
    try:
        with switch(amd, npt=False):
            assert os.stat(amd.folder.path).st_mode & 0o777 == 0o755
            assert os.stat(f"{amd.folder.path}/switch.json").st_mode & 0o777 == 0o644
    finally:
        os.umask(former)


def test_a_folder_that_cannot_be_made(amd: FakeKvm) -> None:
    Path(amd.folder.path).write_text("a file")
    with pytest.raises(HostError, match="cannot take the lock"):
        change(amd, npt=False)
    assert amd.calls == []
