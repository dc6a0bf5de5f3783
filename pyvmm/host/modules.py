"""KVM's kernel modules: what sysfs says of them; loading, unloading and writing to them."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence

from pyvmm.errors import HostError
from pyvmm.pykvm.module import KvmModule, kvm_module

Options = Mapping[str, Mapping[str, str]]
"""Parameters of modules: module name, parameter name, value."""

_CAP_SYS_MODULE = 16
_TOOL_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where an ordinary user's PATH does not look."""
_TOOL_SECONDS = 60.0


def find_tool(name: str) -> str | None:
    """Return the path of a system administration tool, or None."""
    import shutil

    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_TOOL_FOLDERS}")


def run_tool(name: str, *arguments: str) -> None:
    """Run a system administration tool.

    Raises:
        HostError: it is missing, fails or does not end within a minute; with the last line that it wrote.
    """
    import contextlib
    import subprocess

    path = find_tool(name)
    if path is None:
        raise HostError(f"{name} is missing (Debian: kmod)")
    process = subprocess.Popen(
        [path, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C at the terminal must not reach it half-way
    )
    try:
        _, errors = process.communicate(timeout=_TOOL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        raise HostError(f"{name} {' '.join(arguments)} did not end within {_TOOL_SECONDS:.0f} s") from None
    if process.returncode != 0:
        said = [line.strip() for line in errors.splitlines() if line.strip()] or [f"status {process.returncode}"]
        raise HostError(f"{name} {' '.join(arguments)} failed: {said[-1]}")


class Kernel:
    """The running kernel's view of KVM's modules.

    Attributes:
        sysfs: folder of the modules in sysfs.
        proc: where procfs is.
        device: the KVM device node.
    """

    def __init__(
        self,
        sysfs: str = "/sys/module",
        proc: str = "/proc",
        device: str = "/dev/kvm",
        run: Callable[..., None] = run_tool,
        find: Callable[[str], str | None] = find_tool,
    ) -> None:
        """Look at the kernel through these paths.

        Args:
            run: runs a tool as `run_tool` does.
            find: finds a tool as `find_tool` does.
        """
        self.sysfs, self.proc, self.device = sysfs, proc, device
        self._run, self.find = run, find

    def kvm(self) -> KvmModule:
        """Return the vendor module that is loaded, with its parameters and those of `kvm`."""
        return kvm_module(self.sysfs)

    def loaded(self, module: str) -> bool:
        """Tell whether a module is there, loaded or built in."""
        return os.path.isdir(f"{self.sysfs}/{module}")

    def built_in(self, module: str) -> bool:
        """Tell whether a module is part of the kernel image: only a loadable one has `initstate` (Linux, kernel/module/sysfs.c)."""
        return self.loaded(module) and not os.path.exists(f"{self.sysfs}/{module}/initstate")

    def uses(self, module: str) -> int | None:
        """Return a module's use count; None where this kernel cannot unload modules (no CONFIG_MODULE_UNLOAD)."""
        text = read_text(f"{self.sysfs}/{module}/refcnt")
        return int(text) if text.lstrip("-").isdecimal() else None

    def holders(self, module: str) -> list[str]:
        """Return the modules that use a module."""
        try:
            return sorted(os.listdir(f"{self.sysfs}/{module}/holders"))
        except OSError:
            return []

    def parameters(self, module: str) -> dict[str, str]:
        """Return a module's readable parameters; none where it is not loaded."""
        found = self.kvm()
        if module == "kvm":
            return found.common
        return found.parameters if found.name == module else {}

    def writable(self, module: str, parameter: str) -> bool:
        """Tell whether the kernel takes a new value without a reload: the file's mode says so, whoever asks."""
        try:
            return bool(os.stat(self._path(module, parameter)).st_mode & stat.S_IWUSR)
        except OSError:
            return False

    def write(self, module: str, parameter: str, value: str) -> None:
        """Set a writable parameter.

        Raises:
            HostError: the kernel refuses.
        """
        try:
            with open(self._path(module, parameter), "w", encoding="ascii") as file:
                file.write(value)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise HostError(f"the kernel refuses {module}.{parameter}={value}: {reason}") from None

    def may_load(self) -> bool:
        """Tell whether this process has the right to load modules (CAP_SYS_MODULE, which root has)."""
        for line in read_text(f"{self.proc}/self/status").splitlines():
            name, _, value = line.partition(":")
            if name == "CapEff":
                return bool(int(value, 16) >> _CAP_SYS_MODULE & 1)
        return os.geteuid() == 0

    def loading_disabled(self) -> bool:
        """Tell whether the kernel has been told to load no more modules until it reboots."""
        return read_text(f"{self.proc}/sys/kernel/modules_disabled") == "1"

    def cpu_flags(self) -> frozenset[str]:
        """Return the flags of the first CPU; Intel's `vmx flags` are among them."""
        flags: set[str] = set()
        for line in read_text(f"{self.proc}/cpuinfo").splitlines():
            name, _, value = line.partition(":")
            if not name.strip():
                break
            if name.strip() in ("flags", "vmx flags"):
                flags.update(value.split())
        return frozenset(flags)

    def check_loadable(self, module: str) -> None:
        """Check, before it is unloaded, that modprobe would find a module for the running kernel.

        Raises:
            HostError: it would not.
        """
        self._run("modprobe", "--show-depends", module)

    def reload(self, modules: Sequence[str], options: Options) -> None:
        """Unload those of `modules` that are loaded, then load all with `options`; the device node keeps its owner and mode.

        Args:
            modules: in the order to load them.

        Raises:
            HostError: one cannot be unloaded or loaded; what is loaded then is anyone's guess.
        """
        node = self._node()
        for module in reversed(modules):
            if self.loaded(module):
                # Not `modprobe -r`: that would take `kvm` along, and the parameters it has.
                self._run("rmmod", module)
        for module in modules:
            self._run("modprobe", module, *(f"{name}={value}" for name, value in options.get(module, {}).items()))
            if not self.loaded(module):
                raise HostError(f"modprobe {module} ended well, but the module is not loaded")
        self._keep_node(node)

    def _path(self, module: str, parameter: str) -> str:
        return f"{self.sysfs}/{module}/parameters/{parameter}"

    def _node(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self.device)
        except OSError:
            return None
        return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid

    def _keep_node(self, former: tuple[int, int, int] | None) -> None:
        """Give the device node its former owner and mode: devtmpfs makes a new one, and a rule of udev's comes later."""
        if former is None or self._node() == former:
            return
        if self.find("udevadm") is not None:
            self._run("udevadm", "settle", "--timeout=5")
        end = time.monotonic() + 2
        while self._node() is None and time.monotonic() < end:
            time.sleep(0.01)
        if self._node() not in (None, former):
            mode, owner, group = former
            os.chown(self.device, owner, group)
            os.chmod(self.device, mode)


def read_text(path: str) -> str:
    """Return a small file's text without the white space around it; nothing where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
