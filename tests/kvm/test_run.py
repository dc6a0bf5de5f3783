"""The run loop: limits, ends, errors and signals, with guests of a few bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pyvmm import (
    CpuState,
    DebugExit,
    Device,
    DeviceError,
    EndReason,
    HostError,
    Machine,
    MemoryConsole,
    PowerOff,
    PyvmmError,
    Reset,
    Terminated,
    UsageError,
)
from pyvmm.devices.device import Action
from pyvmm.pykvm import GuestDebug

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

OUT_LOOP = bytes.fromhex("e610 fec0 ebfa")  # 1: out 0x10, al; inc al; jmp 1b
SPIN = bytes.fromhex("ebfe")


class Probe(Device):
    """Keeps what is written, reads a counter."""

    name = "probe"

    def __init__(self, action: Action | None = None) -> None:
        self.written: list[tuple[int, int, int]] = []
        self.action = action

    def read(self, offset: int, size: int) -> int:
        return 0x11 * (offset + size)

    def write(self, offset: int, size: int, value: int) -> Action | None:
        self.written.append((offset, size, value))
        return self.action


def machine(code: bytes, **options: object) -> Machine:
    vm = Machine("1M", **options)  # type: ignore[arg-type]
    vm.load(code, format="flat", mode="real", load_addr=0x1000)
    return vm


def test_max_exits_is_exact_and_the_guest_can_go_on() -> None:
    with machine(OUT_LOOP) as vm:
        probe = Probe()
        vm.attach(probe, pio=0x10)
        result = vm.run(max_exits=5)
        assert (result.reason, result.exits, result.status) == (EndReason.MAX_EXITS, 5, 0)
        assert vm.state().rip == 0x1002  # the access is complete, the next instruction is due
        vm.run(max_exits=300)
        assert probe.written == [(0, 1, n & 0xFF) for n in range(305)]


def test_max_exits_holds_for_all_vcpus_together(guests: Path) -> None:
    with Machine("16M", 4) as vm:
        vm.load(str(guests / "smp.elf"))
        for limit in (1, 1, 2, 7, 20):
            # vCPUs that wait to be started take none; of those that run, each may have one more under way.
            assert limit <= vm.run(max_exits=limit, timeout=20).exits <= limit + 3
        assert vm.run(timeout=20).reason is EndReason.POWER_OFF


def test_until_sees_the_exits_of_all_vcpus(guests: Path) -> None:
    with Machine("16M", 3) as vm:
        vm.load(str(guests / "smp.elf"))
        assert vm.run(until=lambda vm: "online" in vm.console.text, timeout=20).reason is EndReason.UNTIL  # type: ignore[attr-defined]
        assert vm.run(timeout=20).reason is EndReason.POWER_OFF


def test_halt_with_vcpus_that_wait(guests: Path) -> None:
    with Machine("1M", 3) as vm:
        vm.load(str(guests / "halt.bin"))
        assert vm.run(timeout=20).reason is EndReason.HALT


def test_a_machine_holds_one_image(guests: Path) -> None:
    with Machine("1M") as vm:
        vm.load(str(guests / "halt.bin"))
        with pytest.raises(UsageError, match="already"):
            vm.load(str(guests / "halt.bin"))


def test_an_endless_limit_is_no_limit() -> None:
    with machine(bytes.fromhex("fa f4")) as vm:
        assert vm.run(max_exits=10**30, timeout=10).reason is EndReason.HALT


def test_until_sees_finished_instructions() -> None:
    seen: list[tuple[int, int]] = []

    def look(vm: Machine) -> bool:
        state = vm.state()
        seen.append((state.rip, state.rax & 0xFF))
        return True

    with machine(bytes.fromhex("e411 fa f4")) as vm:
        vm.attach(Probe(), pio=0x11)
        vm.run(until=look)
        assert seen == [(0x1002, 0x11)]


def test_halt_under_a_timer_that_fires_in_vain(guests: Path) -> None:
    # 32-bit code: LAPIC on, its timer periodic at a short count, then cli; hlt: each tick wakes the thread, none the guest.
    code = bytes.fromhex(
        "c705f000e0feff010000 c705e003e0fe0b000000 c7052003e0fe20000200 c7058003e0fe00000400 fa f4 ebfd"
    )
    with Machine("2M") as vm:
        vm.load(code, format="flat", mode="protected")
        assert vm.run(timeout=10).reason is EndReason.HALT


def test_a_halted_vcpu_runs_again_from_a_new_state() -> None:
    with machine(bytes.fromhex("fa f4")) as vm:
        assert vm.run(timeout=10).reason is EndReason.HALT
        vm.memory.write(0x1100, bytes.fromhex("e411 f4"))
        vm.set_state(CpuState.real(0, 0x1100))
        assert vm.run(max_exits=1, timeout=10).exits == 1


def test_device_time_is_no_more_than_the_run(guests: Path) -> None:
    # cx = 40,000: in al, dx; loop. Then 16 times rep insb of 4,096 bytes: slow exits must not be scaled up by quick ones.
    code = bytes.fromhex("ba1000 b9409c ec e2fd bb1000 b90010 bf0020 fc f36c 4b 75f4 fa f4")
    with machine(code) as vm:
        vm.attach(Probe(), pio=0x10)
        result = vm.run(timeout=60)
        assert result.reason is EndReason.HALT
        statistics = vm.statistics()
        devices = sum(row.seconds for row in statistics.exits)
        assert 0 < devices < result.seconds
        assert statistics.guest_seconds[0] > 0
        assert next(row.count for row in statistics.exits if row.device == "probe") > 40_000


def test_exits_of_a_port_are_told_apart_by_device() -> None:
    with machine(OUT_LOOP) as vm:
        vm.run(max_exits=5)
        vm.attach(Probe(), pio=0x10)
        vm.run(max_exits=7)
        assert {(row.device, row.count) for row in vm.statistics().exits} >= {("-", 5), ("probe", 7)}


def test_the_first_error_surfaces_whatever_else_ends_the_run() -> None:
    class Both(Device):
        name = "both"

        def write(self, offset: int, size: int, value: int) -> None:
            vm.stop("first")
            raise RuntimeError("second")

    with machine(OUT_LOOP) as vm:
        vm.attach(Both(), pio=0x10)
        with pytest.raises(RuntimeError, match="second"):
            vm.run(timeout=10)
        assert vm.result is not None
        assert (vm.result.reason, vm.result.detail) == (EndReason.ERROR, "RuntimeError: second")


def test_a_running_machine_is_left_alone() -> None:
    problems: list[BaseException] = []

    def meddle() -> None:
        for call in (vm.state, vm.statistics, vm.close, lambda: vm.set_state(CpuState()), lambda: vm.load(b"x")):
            try:
                call()
            except BaseException as error:
                problems.append(error)
        vm.stop()

    with machine(SPIN) as vm:
        timer = threading.Timer(0.05, meddle)
        timer.start()
        assert vm.run(timeout=20).reason is EndReason.USER
        timer.join()
    assert [type(error) for error in problems] == [UsageError] * 5


def test_a_closed_machine_is_left_alone() -> None:
    vm = machine(SPIN)
    vm.close()
    vm.stop()
    vm.post(lambda: None)
    for call in (vm.state, vm.statistics, vm.run):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_a_dropped_machine_gives_everything_back(guests: Path) -> None:
    vm = Machine("16M")  # the no_leaks fixture looks for its descriptors and threads
    vm.load(str(guests / "hello-elf64.elf"))
    vm.run(timeout=10)
    del vm


def test_more_posts_than_a_signal_queue_holds() -> None:
    done: list[int] = []

    class Slow(Device):
        def post_many(self) -> None:
            for _ in range(200_000):
                vm.post(lambda: done.append(1))

        def write(self, offset: int, size: int, value: int) -> None:
            if not done:
                poster = threading.Thread(target=self.post_many)
                poster.start()
                poster.join()

    with machine(OUT_LOOP) as vm:
        vm.attach(Slow(), pio=0x10)
        assert vm.run(until=lambda vm: len(done) >= 200_000, timeout=60).reason is EndReason.UNTIL


def test_input_faster_than_the_guest_is_not_lost(guests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.machine.pc._INPUT_LIMIT", 1000)
    console = MemoryConsole()
    with Machine("16M", console=console) as vm:
        vm.load(str(guests / "echo.elf"))
        text = bytes(97 + n % 16 for n in range(20_000))
        waiting: list[int] = []

        def type_() -> None:
            for at in range(0, len(text), 500):
                console.send(text[at : at + 500])
                assert vm.pc is not None
                waiting.append(vm.pc.serial.waiting)
            console.send(b"q")

        typist = threading.Thread(target=type_)
        typist.start()
        result = vm.run(timeout=60)
        typist.join()
        assert result.reason is EndReason.DEBUG_EXIT
        assert console.output == b"echo ready\n" + text + b"qbye\n"
        assert max(waiting) < 4000  # the typist was made to wait, not the text to pile up


def test_a_failed_load_leaves_nothing(guests: Path, tmp_path: Path) -> None:
    with Machine("16M") as vm:
        with pytest.raises(PyvmmError):
            vm.load(str(guests / "hello-multiboot.elf"), initrd=str(tmp_path / "missing"))
        assert not vm.memory.array(0, 16 << 20).any()
        vm.load(str(guests / "hello-multiboot.elf"))
        assert vm.run(timeout=10).reason is EndReason.POWER_OFF


def test_a_bare_cpu_has_no_apic_and_keeps_cr8(guests: Path) -> None:
    with Machine("2M", irqchip="none", devices="none") as vm:
        vm.load(bytes.fromhex("fa f4"), format="flat", mode="long")
        assert b"_MP_" not in vm.memory.read(0xF0000, 0x10000)
        (leaf,) = (entry for entry in vm.vcpus[0].cpuid2() if entry["function"] == 1)
        assert not int(leaf["edx"]) >> 9 & 1 and not int(leaf["ecx"]) >> 21 & 1
        state = vm.state()
        state.cr8 = 5
        vm.set_state(state)
        assert vm.run(timeout=10).reason is EndReason.HALT
        assert vm.state().cr8 == 5


@pytest.mark.parametrize(
    "arguments",
    [
        {"memory": None},
        {"memory": 1.5},
        {"memory": True},
        {"memory": -4096},
        {"cpus": "2"},
        {"cpus": 1.5},
        {"console": 5},
    ],
)
def test_arguments_of_the_wrong_kind(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Machine(**{"memory": "1M", **arguments})  # type: ignore[arg-type]


def test_calls_of_the_wrong_kind() -> None:
    with Machine(np.int64(1 << 20)) as vm:
        for call in (
            lambda: vm.load(None),  # type: ignore[arg-type]
            lambda: vm.load(b"x", bogus=1),
            lambda: vm.state(5),
            lambda: vm.state(-1),
            lambda: vm.post(5),  # type: ignore[arg-type]
            lambda: vm.translate(2**70),
            lambda: vm.translate(-1),
            lambda: vm.attach(Device(), mmio=0xFEE00000, size=16),
        ):
            with pytest.raises(UsageError):
                call()
        vm.load(bytearray(SPIN), mode="real")


def test_single_step_ends_each_run() -> None:
    with machine(bytes.fromhex("90 90 fec0 fa f4")) as vm:
        vm.vcpus[0].set_guest_debug(GuestDebug.ENABLE | GuestDebug.SINGLESTEP)
        seen = []
        for _ in range(3):
            result = vm.run(timeout=10)
            assert (result.reason, result.status) == (EndReason.DEBUG, 0)
            seen.append(vm.state().rip)
        assert seen == [0x1001, 0x1002, 0x1004]
        vm.vcpus[0].set_guest_debug(0)
        assert vm.run(timeout=10).reason is EndReason.HALT


def test_devices_come_and_go_between_runs() -> None:
    with machine(OUT_LOOP) as vm:
        vm.run(max_exits=3)
        probe = Probe()
        mapping = vm.attach(probe, pio=0x10)
        vm.run(max_exits=4)
        vm.detach(mapping)
        vm.run(max_exits=5)
        assert len(probe.written) == 4


def test_until_is_asked_after_each_exit() -> None:
    with machine(OUT_LOOP) as vm:
        probe = Probe()
        vm.attach(probe, pio=0x10)
        result = vm.run(until=lambda vm: len(probe.written) == 7)
        assert (result.reason, result.exits) == (EndReason.UNTIL, 7)


def test_timeout_ends_a_guest_that_never_exits() -> None:
    with machine(SPIN) as vm:
        began = time.monotonic()
        result = vm.run(timeout=0.1)
        assert (result.reason, result.status) == (EndReason.TIMEOUT, 124)
        assert 0.09 < time.monotonic() - began < 5
        assert vm.run(timeout=0.05).reason is EndReason.TIMEOUT  # and it can be run on


def test_timeout_ends_a_guest_that_sleeps() -> None:
    with machine(bytes.fromhex("fb f4 ebfc")) as vm:  # 1: sti; hlt; jmp 1b: interrupts on, so it could wake
        assert vm.run(timeout=0.2).reason is EndReason.TIMEOUT


def test_halt_with_interrupts_off_ends_the_run() -> None:
    with machine(bytes.fromhex("fa f4")) as vm:
        result = vm.run(timeout=10)
        assert (result.reason, result.status) == (EndReason.HALT, 0)
        assert result.seconds < 5


@pytest.mark.parametrize(
    ("action", "reason", "status"),
    [
        (PowerOff(), EndReason.POWER_OFF, 0),
        (Reset(), EndReason.RESET, 0),
        (DebugExit(0), EndReason.DEBUG_EXIT, 1),
        (DebugExit(0x15), EndReason.DEBUG_EXIT, 0x2B),
        (DebugExit(0xFFFFFFFF), EndReason.DEBUG_EXIT, 0xFF),
    ],
)
def test_actions_of_devices(action: Action, reason: EndReason, status: int) -> None:
    with machine(OUT_LOOP) as vm:
        vm.attach(Probe(action), pio=0x10)
        result = vm.run(timeout=10)
        assert (result.reason, result.status, result.crashed) == (reason, status, False)
        assert result.value == getattr(action, "value", None)


def test_an_exit_that_is_both_the_last_and_an_end_is_an_end() -> None:
    with machine(OUT_LOOP) as vm:
        vm.attach(Probe(PowerOff()), pio=0x10)
        assert vm.run(max_exits=1).reason is EndReason.POWER_OFF


def test_sizes_directions_and_strings() -> None:
    # in al,0x11; mov [0x800],al; in ax,0x12; mov [0x802],ax; in eax,0x14; mov [0x804],eax
    # mov si,0x900; mov dx,0x18; mov cx,5; cld; rep outsb; mov di,0xa00; mov cx,3; mov dx,0x1c; rep insw; cli; hlt
    code = bytes.fromhex(
        "e411 a20008 e512 a30208 66e514 66a30408 be0009 ba1800 b90500 fc f36e bf000a b90300 ba1c00 f36d fa f4"
    )
    with machine(code) as vm:
        probe = Probe()
        vm.attach(probe, pio=0x10, size=16)
        vm.memory.write(0x900, b"hello")
        assert vm.run(timeout=10).reason is EndReason.HALT
        assert vm.memory.read_u8(0x800) == 0x22
        assert vm.memory.read_u16(0x802) == 0x44
        assert vm.memory.read_u32(0x804) == 0x88
        assert bytes(value for _, _, value in probe.written) == b"hello"
        assert {(offset, size) for offset, size, _ in probe.written} == {(8, 1)}
        assert vm.memory.array(0xA00, 3, "<u2").tolist() == [0x11 * 14] * 3


def test_mmio_of_every_size() -> None:
    # mov al,[0]; mov [0x11],al; mov ax,[2]; mov [0x12],ax; mov eax,[4]; mov [0x14],eax; cli; hlt   (ds at 16 MiB)
    code = bytes.fromhex("a00000 a21100 a10200 a31200 66a10400 66a31400 fa f4")
    with machine(code) as vm:
        probe = Probe()
        vm.attach(probe, mmio=16 << 20, size=4096)
        state = vm.state()
        state.ds.base = 16 << 20
        vm.set_state(state)
        assert vm.run(timeout=10).reason is EndReason.HALT
        assert probe.written == [(0x11, 1, 0x11), (0x12, 2, 0x44), (0x14, 4, 0x88)]
        rows = {row.kind: row for row in vm.statistics().exits}
        assert (rows["mmio-read"].count, rows["mmio-write"].count) == (3, 3)
        assert (rows["mmio-read"].device, rows["mmio-read"].base, rows["mmio-read"].size) == ("probe", 16 << 20, 4096)


def test_nobody_answers() -> None:
    # in al,0x11; mov [0x800],al; out 0x11,al; mov al,[ds:0]... reads all ones
    with machine(bytes.fromhex("e411 a20008 e611 fa f4"), devices="none") as vm:
        assert vm.run(timeout=10).reason is EndReason.HALT
        assert vm.memory.read_u8(0x800) == 0xFF
        assert {(row.kind, row.device) for row in vm.statistics().exits} >= {("pio-in", "-"), ("pio-out", "-")}


def test_an_access_across_a_devices_end_floats() -> None:
    with machine(bytes.fromhex("e511 a30008 fa f4")) as vm:  # in ax,0x11; mov [0x800],ax
        probe = Probe()
        vm.attach(probe, pio=0x10, size=2)
        assert vm.run(timeout=10).reason is EndReason.HALT
        assert vm.memory.read_u16(0x800) == 0xFFFF


class Broken(Device):
    name = "broken"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def write(self, offset: int, size: int, value: int) -> None:
        raise self.error

    def read(self, offset: int, size: int) -> int:
        return 0x100


@pytest.mark.parametrize("error", [RuntimeError("boom"), OSError(11, "not ours"), KeyError("x")])
def test_an_exception_in_a_device_surfaces_with_a_note(error: Exception) -> None:
    with machine(OUT_LOOP) as vm:
        vm.attach(Broken(error), pio=0x10)
        with pytest.raises(type(error)) as caught:
            vm.run(timeout=10)
        assert caught.value is error
        assert "broken" in caught.value.__notes__[0] and "0x10" in caught.value.__notes__[0]


def test_a_read_that_does_not_fit_its_size_names_the_device() -> None:
    with machine(bytes.fromhex("e410")) as vm:
        vm.attach(Broken(RuntimeError()), pio=0x10)
        with pytest.raises(ValueError) as caught:
            vm.run(timeout=10)
        assert "broken" in caught.value.__notes__[0]


def test_a_wrong_action_is_refused() -> None:
    class Odd(Device):
        def write(self, offset: int, size: int, value: int) -> Action | None:
            return "halt"  # type: ignore[return-value]

    with machine(OUT_LOOP) as vm:
        vm.attach(Odd(), pio=0x10)
        with pytest.raises(TypeError, match="return None or an Action"):
            vm.run(timeout=10)


def test_an_exception_on_another_vcpu_surfaces() -> None:
    class Trap(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            if threading.current_thread() is not threading.main_thread():
                raise RuntimeError("from a vCPU thread")

    with Machine("1M", 2) as vm:
        vm.load(SPIN, format="flat", mode="real")
        vm.attach(Trap(), mmio=0xD0000000, size=4096)
        state = CpuState.real(0, 0x1000)
        state.ds.base = 0xD0000000
        vm.memory.write(0x1000, bytes.fromhex("a20000 ebfb"))  # 1: mov [0],al; jmp 1b
        vm.set_state(state, cpu=1)
        vm.vcpus[1].set_mp_state(0)
        with pytest.raises(RuntimeError, match="from a vCPU thread"):
            vm.run(timeout=20)


def test_stop_from_another_thread() -> None:
    with machine(SPIN) as vm:
        timer = threading.Timer(0.05, vm.stop, ("enough",))
        timer.start()
        result = vm.run(timeout=20)
        timer.join()
        assert (result.reason, result.detail, result.status) == (EndReason.USER, "enough", 0)


def test_run_in_a_thread_that_is_not_the_main_one() -> None:
    results = []
    with machine(SPIN) as vm:
        thread = threading.Thread(target=lambda: results.append(vm.run(timeout=0.1)))
        thread.start()
        thread.join(20)
    assert [result.reason for result in results] == [EndReason.TIMEOUT]


def test_posted_work_runs_between_exits() -> None:
    with machine(SPIN) as vm:
        done: list[int] = []

        def work() -> None:
            done.append(threading.get_ident())
            vm.stop("posted")

        timer = threading.Timer(0.05, vm.post, (work,))
        timer.start()
        result = vm.run(timeout=20)
        timer.join()
        assert result.detail == "posted"
        assert done == [threading.get_ident()]


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_signals_stop_the_vcpus_and_surface(number: int, error: type[BaseException]) -> None:
    with machine(SPIN) as vm:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
        timer.start()
        with pytest.raises(error):
            vm.run(timeout=20)
        timer.join()
        assert vm.result is not None
        assert (vm.result.reason, vm.result.detail) == (EndReason.USER, signal.Signals(number).name)
        assert vm.run(timeout=0.05).reason is EndReason.TIMEOUT  # nothing was lost: the guest can go on


def test_a_programs_own_handler_is_called_after_the_run() -> None:
    caught: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        with machine(SPIN) as vm:
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
            timer.start()
            assert vm.run(timeout=20).reason is EndReason.USER
            timer.join()
        assert caught == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, former)


def test_an_os_error_from_a_signal_handler_is_not_kvms() -> None:
    def expire(number: int, frame: object) -> None:
        raise TimeoutError("the program's own alarm")

    former = signal.signal(signal.SIGALRM, expire)
    try:
        with machine(SPIN) as vm:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(TimeoutError, match="own alarm"):
                vm.run(timeout=20)
    finally:
        signal.signal(signal.SIGALRM, former)


def test_console_input_reaches_the_guest(guests: Path) -> None:
    console = MemoryConsole()
    with Machine("16M", console=console) as vm:
        vm.load(str(guests / "echo.elf"))

        def type_() -> None:
            console.expect("echo ready\n")
            console.send("abc")
            console.expect("abc")
            console.send("q")

        typist = threading.Thread(target=type_)
        typist.start()
        result = vm.run(timeout=20)
        typist.join()
        assert console.text == "echo ready\nabcqbye\n"
        assert (result.reason, result.value, result.status) == (EndReason.DEBUG_EXIT, 3, 7)


def test_limits_that_make_no_sense() -> None:
    with machine(SPIN) as vm:
        for limits in (
            {"timeout": 0},
            {"timeout": -1},
            {"timeout": float("nan")},
            {"timeout": "3"},
            {"max_exits": 0},
            {"max_exits": 1.5},
            {"max_exits": True},
        ):
            with pytest.raises(UsageError):
                vm.run(**limits)
    with pytest.raises(UsageError, match="closed"):
        vm.run()


def test_a_crashed_guest_is_not_run_on(guests: Path) -> None:
    with Machine("16M") as vm:
        vm.load(str(guests / "triple-fault.elf"))
        assert vm.run(timeout=10).crashed
        with pytest.raises(UsageError, match="crashed"):
            vm.run()


@pytest.mark.parametrize("cpus", [0, -1, 255, 5000])
def test_impossible_cpu_counts(cpus: int) -> None:
    with pytest.raises(UsageError, match="CPUs"):
        Machine("1M", cpus)


def test_impossible_machines(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Machine("1M", irqchip="i8259")
    with pytest.raises(UsageError):
        Machine("1M", 2, irqchip="none")
    with pytest.raises(UsageError):
        Machine("1M", devices="atari")
    with pytest.raises(HostError, match="no-such"):
        Machine("1M", kvm=str(tmp_path / "no-such"))


def test_attach_refuses_what_cannot_work() -> None:
    with Machine("1M") as vm:
        with pytest.raises(UsageError, match="RAM"):
            vm.attach(Device(), mmio=0x8000, size=16)
        with pytest.raises(UsageError, match="either"):
            vm.attach(Device())
        with pytest.raises(DeviceError, match="com1"):
            vm.attach(Device(), pio=0x3F8)
        with pytest.raises(UsageError, match="0 to 23"):
            vm.attach(Device(), pio=0x10, irq=24)
        assert vm.pio.find(0x10, 1) is None  # a refused device is not half attached


def test_translate_agrees_with_kvm(guests: Path) -> None:
    with Machine("64M") as vm:
        vm.load(str(guests / "hello-elf64.elf"))
        for gva in (0, 0x1234, 0x100000, 0x3FFFFFF, 0xFFFFFFFF, 1 << 32, 1 << 47, (1 << 64) - 4096):
            ours = vm.translate(gva)
            theirs = vm.vcpus[0].translate(gva)
            assert (ours.gpa is not None) == bool(theirs.valid)
            if ours.gpa is not None:
                assert ours.gpa == theirs.gpa


def test_statistics_name_counts_and_kvms_counters(guests: Path) -> None:
    with Machine("16M") as vm:
        vm.load(str(guests / "hello-elf64.elf"))
        result = vm.run(timeout=10)
        statistics = vm.statistics()
        assert statistics.total == result.exits
        com1 = [row for row in statistics.exits if row.device == "com1" and row.kind == "pio-out"]
        assert [(row.base, row.count) for row in com1] == [(0x3F8, len("Hello from ELF64 long mode\n"))]
        document = statistics.to_dict()
        exits = document["kvm"]["vcpu0"]["exits"]
        assert exits["value"] >= result.exits
        assert exits["kind"] == "cumulative"


def test_no_page_is_touched_by_hand(guests: Path) -> None:
    def resident(memory: str) -> int:
        code = (
            "from pyvmm import Machine; import re\n"
            f"with Machine({memory!r}) as vm:\n"
            f"    vm.load({str(guests / 'hello-elf64.elf')!r}); vm.run(timeout=10)\n"
            "    print(re.search(r'Pss_Shmem:\\s+(\\d+)', open('/proc/self/smaps_rollup').read())[1])"
        )
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    assert resident("1G") == resident("64M") < 200  # KiB: image, page tables, boot parameters
