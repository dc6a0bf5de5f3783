"""Finding and fetching the lab's kernel, with make-believe Debian tools."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import HostError
from pyvmm.host.lab.kernel import LabKernel, cached_kernel, find_kernel, lab_kernel

VERSION = "6.1.0-99-amd64"

APT_CACHE = f"""#!/bin/sh
[ "$3" = linux-image-amd64 ] || exit 100
echo "Package: $3"
echo "Depends: linux-image-{VERSION} (= 6.1.1-1), other"
"""
APT_GET = f"""#!/bin/sh
echo run >>"$FAKE/runs"
echo "download in progress"
[ -z "$FAKE_SLEEP" ] || sleep "$FAKE_SLEEP"
[ -z "$FAKE_FAILS" ] || {{ echo "E: Could not resolve 'deb.example'"; exit 100; }}
: >"linux-image-{VERSION}_6.1.1-1_amd64.deb"
"""
DPKG = f"""#!/bin/sh
mkdir -p "$3/boot" "$3/lib/modules/{VERSION}"
echo kernel >"$3/boot/vmlinuz-{VERSION}"
"""
DEPMOD = """#!/bin/sh
: >"$2/lib/modules/$3/modules.dep"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put make-believe apt-cache, apt-get, dpkg and depmod first on PATH, and the cache into the test's folder."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("apt-cache", APT_CACHE), ("apt-get", APT_GET), ("dpkg", DPKG), ("depmod", DEPMOD)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYVMM_LAB_KERNEL", raising=False)
    return tmp_path


def runs(fake: Path) -> int:
    return (fake / "runs").read_text().count("run") if (fake / "runs").exists() else 0


def test_fetched_once_then_found(fake: Path, no_leaks: None) -> None:
    said: list[str] = []
    assert cached_kernel() is None
    kernel = lab_kernel(say=said.append)
    root = fake / "cache" / "pyvmm" / "linux-amd64"
    assert kernel == LabKernel(str(root / f"boot/vmlinuz-{VERSION}"), str(root / f"lib/modules/{VERSION}"), VERSION)
    assert len(said) == 1
    assert lab_kernel(say=said.append) == kernel == cached_kernel()
    assert len(said) == 1 and runs(fake) == 1
    assert sorted(os.listdir(root.parent)) == ["linux-amd64", "linux-amd64.lock"]


def test_two_at_once_fetch_it_once(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SLEEP", "0.5")
    program = "from pyvmm.host.lab.kernel import lab_kernel; print(lab_kernel().version)"
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [VERSION] * 2
    assert runs(fake) == 1


def test_killed_while_fetching_leaves_nothing(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SLEEP", "60")
    process = subprocess.Popen([sys.executable, "-c", "from pyvmm.host.lab.kernel import lab_kernel; lab_kernel()"])
    _until(lambda: runs(fake) == 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cache = fake / "cache" / "pyvmm"
    _until(lambda: os.listdir(cache) == ["linux-amd64.lock"])


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        ("fails", "apt-get download .* failed; E: Could not resolve"),
        ("no package", "apt knows no package linux-image-amd64: run apt-get update"),
        ("dpkg", "cannot be unpacked"),
        ("depmod", "depmod failed"),
        ("empty", "holds no boot/vmlinuz"),
    ],
)
def test_failures_are_one_line_and_leave_nothing(
    fake: Path, monkeypatch: pytest.MonkeyPatch, break_it: str, words: str
) -> None:
    if break_it == "fails":
        monkeypatch.setenv("FAKE_FAILS", "1")
    elif break_it == "empty":
        (fake / "bin" / "dpkg").write_text("#!/bin/sh\nmkdir -p $3/lib/modules/" + VERSION)
    else:
        tool = {"no package": "apt-cache"}.get(break_it, break_it)
        (fake / "bin" / tool).write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(HostError, match=words) as caught:
        lab_kernel()
    assert "\n" not in str(caught.value)
    if break_it != "empty":
        assert os.listdir(fake / "cache" / "pyvmm") == ["linux-amd64.lock"]


def test_no_apt(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake / "few").mkdir()
    for name in ("mkdir", "rm", "setsid"):
        (fake / "few" / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(fake / "few"))
    with pytest.raises(HostError, match="no apt-get and dpkg"):
        lab_kernel()


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("PYVMM_LAB_KERNEL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(HostError, match="XDG_CACHE_HOME"):
        lab_kernel()


def test_unknown_flavour() -> None:
    with pytest.raises(HostError, match="flavour"):
        lab_kernel("m68k")


def make_kernel(root: Path, version: str, base: str = "lib/modules") -> None:
    (root / "boot").mkdir(parents=True, exist_ok=True)
    (root / "boot" / f"vmlinuz-{version}").write_text("")
    (root / base / version).mkdir(parents=True)
    (root / base / version / "modules.dep").write_text("")


def test_a_named_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_LAB_KERNEL", str(tmp_path))
    with pytest.raises(HostError, match="PYVMM_LAB_KERNEL"):
        lab_kernel()
    make_kernel(tmp_path, VERSION, "usr/lib/modules")
    assert lab_kernel().modules == str(tmp_path / "usr/lib/modules" / VERSION)


def test_the_newest_of_the_flavour_counts(tmp_path: Path) -> None:
    for version in ("6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-57-cloud-amd64", "6.1.0-58-rt-amd64", "5.10.0-99-amd64"):
        make_kernel(tmp_path, version)
    (tmp_path / "boot" / "vmlinuz-7.0.0-1-amd64").write_text("")  # without modules
    assert find_kernel(str(tmp_path), "amd64").version == "6.1.0-56-amd64"  # type: ignore[union-attr]
    assert find_kernel(str(tmp_path), "cloud-amd64").version == "6.1.0-57-cloud-amd64"  # type: ignore[union-attr]
    assert find_kernel(str(tmp_path / "nowhere"), "amd64") is None


def kernel_with(folder: Path, dep: str, builtin: str = "") -> LabKernel:
    (folder / "modules.dep").write_text(dep)
    (folder / "modules.builtin").write_text(builtin)
    return LabKernel("/boot/vmlinuz", str(folder), VERSION)


def test_modules_come_in_an_order_that_insmod_takes(tmp_path: Path) -> None:
    kernel = kernel_with(
        tmp_path,
        "kernel/kvm/kvm-amd.ko: kernel/ccp.ko kernel/kvm/kvm.ko kernel/irqbypass.ko\n"
        "kernel/kvm/kvm.ko: kernel/irqbypass.ko\nkernel/irqbypass.ko:\nkernel/ccp.ko:\nkernel/fs/overlay.ko.xz:\n",
        "kernel/fs/ext4.ko\n",
    )
    names = [Path(path).name for path in kernel.module_files("kvm", "kvm_amd", "overlay", "ext4")]
    assert names == ["irqbypass.ko", "kvm.ko", "ccp.ko", "kvm-amd.ko", "overlay.ko.xz"]
    assert kernel.module_files("kvm-amd")[0].startswith(str(tmp_path))
    with pytest.raises(HostError, match="no module zfs"):
        kernel.module_files("zfs")


def test_modules_without_depmod(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="run depmod"):
        LabKernel("/boot/vmlinuz", str(tmp_path), VERSION).module_files("kvm")


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=40), max_size=6))
def test_any_modules_dep_is_read(lines: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        kernel = kernel_with(Path(folder), "\n".join(lines))
        with contextlib.suppress(HostError):
            assert all(path.startswith(folder) for path in kernel.module_files("kvm"))


def _until(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        threading.Event().wait(0.02)
