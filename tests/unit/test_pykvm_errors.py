"""Errors of the binding, and the paths to KVM that fail, without KVM."""

from __future__ import annotations

import errno
import os
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import HostError, PyvmmError
from pyvmm.pykvm import ClosedError, KvmError, KvmUnavailable, MissingCapability, MsrError, System, layout
from pyvmm.pykvm.constants import ExitReason, name_of
from pyvmm.pykvm.errors import from_handler
from pyvmm.pykvm.handle import Handle, address_of, as_c_int, record_of
from pyvmm.pykvm.ioctls import Ioctl


def test_kvm_error_carries_what_failed() -> None:
    error = KvmError("SET_USER_MEMORY_REGION", errno.EEXIST)
    assert isinstance(error, OSError) and isinstance(error, PyvmmError)
    assert (error.errno, error.ioctl) == (errno.EEXIST, "KVM_SET_USER_MEMORY_REGION")
    assert str(error) == "KVM_SET_USER_MEMORY_REGION: EEXIST: " + error.meaning
    assert "overlaps" in error.meaning


def test_the_name_is_taken_with_and_without_prefix() -> None:
    assert str(KvmError("KVM_RUN", errno.EFAULT)) == str(KvmError("RUN", errno.EFAULT))


@given(st.sampled_from(list(Ioctl)), st.sampled_from(sorted(errno.errorcode)))
def test_every_message_is_one_line_with_a_meaning(request: Ioctl, number: int) -> None:
    text = str(KvmError(request.name, number))
    assert text.startswith(f"KVM_{request.name}: {errno.errorcode[number]}: ")
    assert "\n" not in text
    assert len(text.split(": ", 2)[2]) > 3


def test_unknown_errno_still_reads() -> None:
    assert "9999" in str(KvmError("RUN", 9999))


def test_what_a_signal_handler_raised_is_told_apart() -> None:
    def handler() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError) as caught:
        handler()
    assert from_handler(caught.value)
    with pytest.raises(OSError, match="Bad file descriptor") as failed:
        ioctl(0x7FFFFFFF, Ioctl.RUN)
    assert not from_handler(failed.value)
    assert not from_handler(OSError())


def test_msr_error_names_the_register() -> None:
    error = MsrError("SET_MSRS", 0x10A, 3)
    assert (error.index, error.done, error.errno, error.ioctl) == (0x10A, 3, errno.EINVAL, "KVM_SET_MSRS")
    assert "0x10a" in str(error)


def test_missing_capability_names_it() -> None:
    error = MissingCapability("KVM_CAP_SYNC_REGS")
    assert isinstance(error, HostError)
    assert error.capability == "KVM_CAP_SYNC_REGS"
    assert "KVM_CAP_SYNC_REGS" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOENT, "load kvm_intel or kvm_amd"),
        (errno.ENODEV, "load kvm_intel or kvm_amd"),
        (errno.EACCES, "usermod -aG kvm"),
        (errno.EPERM, "--device="),
        (errno.ELOOP, "cannot open"),
    ],
)
def test_why_the_device_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, number: int, hint: str) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(KvmUnavailable) as caught:
        System("/dev/kvm")
    assert hint in str(caught.value) and "/dev/kvm" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.path, caught.value.errno) == ("/dev/kvm", number)


def test_not_kvm(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    plain = tmp_path / "kvm"
    plain.touch()
    for path in ("/dev/null", str(plain)):
        with pytest.raises(KvmUnavailable, match="not KVM's device"):
            System(path)
    with pytest.raises(KvmUnavailable, match=r"no .*nothing: load"):
        System(str(tmp_path / "nothing"))
    with pytest.raises(KvmUnavailable, match="cannot open"):
        System(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_wrong_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "api_version", lambda self: 11)
    with pytest.raises(KvmUnavailable, match="version 11, not 12") as caught:
        System("/dev/null")
    assert caught.value.errno is None


def test_closed_handles_refuse() -> None:
    handle = Handle(os.memfd_create("x"), "VM")
    fd = handle.fd
    handle.close()
    handle.close()
    assert handle.closed and "closed" in repr(handle)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(ClosedError, match="VM is closed") as caught:
        handle.call(Ioctl.CREATE_VCPU)
    assert caught.value.what == "VM"
    with pytest.raises(ClosedError):
        handle.exchange(Ioctl.GET_REGS, np.zeros((), layout.REGS))


def test_closing_a_parent_closes_its_children_first() -> None:
    order: list[str] = []

    class Noted(Handle):
        def close(self) -> None:
            if not self.closed:
                order.append(self.name)
            super().close()

    parent = Noted(os.memfd_create("a"), "parent")
    child = parent.adopt(Noted(os.memfd_create("b"), "child"))
    grandchild = child.adopt(Noted(os.memfd_create("c"), "grandchild"))
    parent.close()
    assert child.closed and grandchild.closed
    assert order == ["parent", "child", "grandchild"]  # each is asked before it closes those below, and closes after


def test_a_dropped_handle_closes_itself() -> None:
    handle = Handle(os.memfd_create("x"), "x")
    fd = handle.fd
    del handle
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@given(st.integers(0, 2**32 - 1))
def test_c_int_keeps_the_bits(value: int) -> None:
    signed = as_c_int(value)
    assert -(2**31) <= signed < 2**31
    assert signed & 0xFFFFFFFF == value


def test_record_of_checks_and_copies() -> None:
    regs = np.zeros((), layout.REGS)
    regs["rip"] = 7
    copy = record_of(regs, layout.REGS)
    copy["rip"] = 8
    assert int(regs["rip"]) == 7
    assert int(record_of(np.zeros(1, layout.REGS)[0], layout.REGS)["rip"]) == 0
    with pytest.raises(TypeError, match="rax"):
        record_of(np.zeros((), layout.SREGS), layout.REGS)


def test_address_of_is_where_the_bytes_are() -> None:
    array = np.arange(8, dtype=np.uint64)
    assert address_of(array[3:]) == address_of(array) + 24


def test_name_of() -> None:
    assert name_of(ExitReason, 6) == "MMIO"
    assert name_of(ExitReason, 999) == "999"
