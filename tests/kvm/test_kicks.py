"""Kicks reach a guest that never leaves KVM_RUN by itself, however many come at once."""

from __future__ import annotations

import threading
import time

import pytest

from pyvmm import EndReason, Machine
from pyvmm.engine import direct
from pyvmm.pykvm.errors import from_handler

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

SPIN = bytes.fromhex("ebfe")
HALT = bytes.fromhex("fb f4 ebfd")  # sti; hlt; jmp back


def test_a_kick_while_another_is_taken_keeps_none_back(monkeypatch: pytest.MonkeyPatch) -> None:
    meddlers: list[threading.Thread] = []
    in_time: list[bool] = []

    def meddle(error: BaseException) -> bool:
        if not meddlers:  # the vCPU's thread is about to take the signal of the first kick
            meddlers.append(threading.Thread(target=vm.engines[0].kick))
            meddlers[0].start()
            meddlers[0].join(0.2)
        return from_handler(error)

    def post() -> None:
        for _ in range(2):
            done = threading.Event()
            vm.post(done.set)
            in_time.append(done.wait(5))
            time.sleep(0.5)
        vm.engines[0]._kicked = False  # lets the test end where it fails
        vm.stop()

    with Machine("1M") as vm:
        vm.load(SPIN, format="flat", mode="real", load_addr=0x1000)
        monkeypatch.setattr(direct, "from_handler", meddle)
        poster = threading.Thread(target=post)
        poster.start()
        result = vm.run(timeout=60)
        poster.join()
        meddlers[0].join()
    assert (result.reason, in_time) == (EndReason.USER, [True, True])


@pytest.mark.parametrize("code", [SPIN, HALT])
def test_many_who_post_at_once_are_all_served(code: bytes) -> None:
    served: list[bool] = []

    def post() -> None:
        for _ in range(300):
            done = threading.Event()
            vm.post(done.set)
            served.append(done.wait(10))

    def stop() -> None:
        for thread in posters:
            thread.join()
        vm.stop()

    with Machine("1M") as vm:
        vm.load(code, format="flat", mode="real", load_addr=0x1000)
        posters = [threading.Thread(target=post) for _ in range(4)]
        for thread in [*posters, stopper := threading.Thread(target=stop)]:
            thread.start()
        result = vm.run(timeout=60)
        stopper.join()
    assert (result.reason, len(served), all(served)) == (EndReason.USER, 1200, True)
