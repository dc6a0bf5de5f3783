"""A make-believe kernel: KVM's modules in a folder that looks like sysfs, and tools that load and unload them there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pyvmm.errors import HostError
from pyvmm.host.modules import Kernel
from pyvmm.host.record import RunFolder

DEFAULTS = {
    "kvm": {
        "tdp_mmu": "Y",
        "nx_huge_pages": "N",
        "nx_huge_pages_recovery_ratio": "60",
        "mmio_caching": "Y",
        "halt_poll_ns": "200000",
    },
    "kvm_amd": {"npt": "Y", "nested": "1", "force_avic": "N", "sev": "Y", "dump_invalid_vmcb": "N"},
    "kvm_intel": {
        "ept": "Y",
        "vpid": "Y",
        "unrestricted_guest": "Y",
        "eptad": "Y",
        "pml": "Y",
        "nested": "Y",
        "allow_smaller_maxphyaddr": "N",
        "vmentry_l1d_flush": "not required",
    },
    "kvm_pvm": {"verbose": "N"},
}
WRITABLE = {"nx_huge_pages", "nx_huge_pages_recovery_ratio", "halt_poll_ns", "dump_invalid_vmcb", "vmentry_l1d_flush"}
SWITCH = {"kvm_amd": "npt", "kvm_intel": "ept", "kvm_pvm": ""}


class FakeKvm:
    """The make-believe host.

    Attributes:
        calls: the tools that ran, as command lines.
        no_hardware: parameters that stay off whatever is asked for.
        options: what /etc/modprobe.d has, by module.
        refuse: command lines that fail, by a part of them, and with what message.
        no_tools: tools that are not installed.
    """

    def __init__(self, root: Path, vendor: str = "kvm_amd", flags: str = "svm npt vmx ept vpid") -> None:
        self.root, self.vendor = root, vendor
        self.sysfs, self.proc, self.device = root / "module", root / "proc", root / "kvm"
        self.calls: list[str] = []
        self.no_hardware: set[str] = set()
        self.options: dict[str, dict[str, str]] = {}
        self.refuse: dict[str, str] = {}
        self.no_tools: set[str] = {"udevadm"}
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "sys" / "kernel").mkdir(parents=True)
        (self.proc / "self" / "status").write_text("Name:\tpython\nCapEff:\t000001ffffffffff\n")
        (self.proc / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n")
        (self.proc / "sys" / "kernel" / "modules_disabled").write_text("0\n")
        (self.proc / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
        self.device.touch(0o660)
        self.kernel = Kernel(str(self.sysfs), str(self.proc), str(self.device), run=self.run, find=self.find)
        self.folder = RunFolder(str(root / "run"))
        self.load("kvm", {})
        self.load(vendor, {})
        self.calls.clear()

    def find(self, name: str) -> str | None:
        return None if name in self.no_tools else f"/sbin/{name}"

    def run(self, name: str, *arguments: str) -> None:
        line = " ".join((name, *arguments))
        self.calls.append(line)
        for part, message in self.refuse.items():
            if part in line:
                raise HostError(f"{line} failed: {message}")
        if name == "rmmod":
            self.unload(arguments[0])
        elif name == "modprobe" and arguments[0] != "--show-depends":
            pairs = [(name, value) for name, _, value in (argument.partition("=") for argument in arguments[1:])]
            if arguments[0] != "kvm" and not (self.sysfs / "kvm").exists():
                self.load("kvm", {})
            self.load(arguments[0], dict(pairs))

    def load(self, module: str, options: dict[str, str]) -> None:
        if (self.sysfs / module).exists():
            return
        values = dict(DEFAULTS[module])
        for name, value in {**self.options.get(module, {}), **options}.items():
            if name not in values:
                continue  # the kernel warns and goes on
            if values[name] in "YN":
                if value.upper() not in ("1", "0", "Y", "N"):
                    raise HostError(f"could not insert '{module}': Invalid argument")
                value = "Y" if value.upper() in ("1", "Y") else "N"
            values[name] = value
        values.update({name: "N" for name in values if name in self.no_hardware})
        if values.get("ept") == "N":
            values.update(unrestricted_guest="N", eptad="N", pml="N", vmentry_l1d_flush="EPT disabled")
            values.update(allow_smaller_maxphyaddr="Y")
        if values.get("npt") == "N":
            values.update(sev="N")
        folder = self.sysfs / module
        (folder / "parameters").mkdir(parents=True)
        (folder / "holders").mkdir()
        (folder / "initstate").write_text("live\n")
        (folder / "refcnt").write_text("0\n")
        for name, value in values.items():
            file = folder / "parameters" / name
            file.write_text(value + "\n")
            file.chmod(0o644 if name in WRITABLE else 0o444)
        if module != "kvm":
            (self.sysfs / "kvm" / "holders" / module).touch()
            (self.sysfs / "kvm" / "refcnt").write_text("1\n")
            self.device.unlink(missing_ok=True)
            self.device.touch(0o600)

    def unload(self, module: str) -> None:
        folder = self.sysfs / module
        if int((folder / "refcnt").read_text()):
            raise HostError(f"rmmod {module} failed: rmmod: ERROR: Module {module} is in use")
        shutil.rmtree(folder)
        if module != "kvm":
            (self.sysfs / "kvm" / "holders" / module).unlink()
            (self.sysfs / "kvm" / "refcnt").write_text("0\n")

    def get(self, name: str) -> str:
        found = list(self.sysfs.glob(f"*/parameters/{name}"))
        return found[0].read_text().strip() if found else "gone"

    def everything(self) -> dict[str, str]:
        return {str(file.relative_to(self.sysfs)): file.read_text() for file in self.sysfs.glob("*/parameters/*")}

    def use(self, count: int = 1) -> None:
        (self.sysfs / self.vendor / "refcnt").write_text(f"{count}\n")

    def open_kvm(self, pid: int, command: str) -> None:
        folder = self.proc / str(pid) / "fd"
        folder.mkdir(parents=True)
        (folder.parent / "cmdline").write_text(command.replace(" ", "\0"))
        (folder / "7").symlink_to("anon_inode:kvm-vm")
