"""The lab's kernel: Debian's, unmodified, unpacked into the cache folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from pyvmm.errors import HostError

FLAVOURS = ("amd64", "cloud-amd64")
VARIABLE = "PYVMM_LAB_KERNEL"

# Everything is done by Debian's own tools in one go, in a folder that is thrown away unless all of it worked.
_FETCH = r"""
set -e
PATH=$PATH:/usr/sbin:/sbin
meta="linux-image-$1"
command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "!this host has no apt-get and dpkg"; exit 1; }
command -v depmod >/dev/null || { echo "!depmod is missing (Debian: kmod)"; exit 1; }
package=$(apt-cache show --no-all-versions "$meta" 2>/dev/null | sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p' | head -n 1)
[ -n "$package" ] || { echo "!apt knows no package $meta: run apt-get update"; exit 1; }
apt-get -q -o APT::Sandbox::User=root download "$package" || { echo "!apt-get download $package failed"; exit 1; }
mkdir tree
dpkg -x "$package"_*.deb tree || { echo "!$package cannot be unpacked"; exit 1; }
rm -f -- *.deb
version=${package#linux-image-}
base=tree
[ -d tree/lib/modules ] || base=tree/usr
depmod -b "$base" "$version" || { echo "!depmod failed"; exit 1; }
"""


@dataclass(frozen=True, slots=True)
class LabKernel:
    """An unpacked kernel.

    Attributes:
        vmlinuz: path of the bzImage.
        modules: its folder of modules, `.../lib/modules/VERSION`, with depmod's files in it.
        version: what `uname -r` will say.
    """

    vmlinuz: str
    modules: str
    version: str

    def module_files(self, *names: str) -> list[str]:
        """Return the paths of modules and of all that they need, in an order in which insmod takes them.

        Args:
            names: names with dash or underscore. One that is built into the kernel adds nothing.

        Raises:
            HostError: the kernel has no such module, or depmod has not run there.
        """
        needs = {_stem(path): (path, deps) for path, deps in self._dependencies().items()}
        order: list[str] = []
        for name in names:
            if name.replace("-", "_") in needs:
                path, deps = needs[name.replace("-", "_")]
                # modules.dep lists nearest first: the last one needs none of the others.
                order += [file for file in (*reversed(deps), path) if file not in order]
            elif not self._is_builtin(name):
                raise HostError(f"kernel {self.version} in {self.modules} has no module {name}")
        return [os.path.join(self.modules, file) for file in order]

    def _dependencies(self) -> dict[str, list[str]]:
        """Read modules.dep(5)."""
        rows = (line.partition(":") for line in self._lines("modules.dep"))
        return {path: deps.split() for path, colon, deps in rows if colon}

    def _is_builtin(self, name: str) -> bool:
        return any(_stem(line) == name.replace("-", "_") for line in self._lines("modules.builtin"))

    def _lines(self, file: str) -> list[str]:
        try:
            with open(os.path.join(self.modules, file), encoding="utf-8", errors="replace") as lines:
                return [line.strip() for line in lines]
        except OSError as error:
            raise HostError(
                f"{self.modules}/{file} cannot be read ({error.strerror}): run depmod {self.version}"
            ) from None


def lab_kernel(flavour: str = "amd64", say: Callable[[str], None] | None = None) -> LabKernel:
    """Return a kernel for the lab, fetched from Debian's archive when this host has none yet.

    Looked for in this order: the folder named by $PYVMM_LAB_KERNEL (with `boot/vmlinuz-*` and `lib/modules` in it; `/` is
    possible), the cache, `apt-get download`. Safe with several processes at once; a process that is killed leaves nothing half done.

    Args:
        flavour: "amd64", or "cloud-amd64", which lacks 9p and serves as a guest only.
        say: called with one line before something slow.

    Raises:
        HostError: there is none and it cannot be fetched.
    """
    if flavour not in FLAVOURS:
        raise HostError(f"there is no kernel flavour {flavour!r}: {' or '.join(FLAVOURS)}")
    named = os.environ.get(VARIABLE)
    if named:
        kernel = find_kernel(named, flavour)
        if kernel is None:
            raise HostError(
                f"{VARIABLE}={named}: no boot/vmlinuz-*-{flavour} that can be read, with its lib/modules, is there"
            )
        return kernel
    folder = os.path.join(cache_folder(), f"linux-{flavour}")
    return find_kernel(folder, flavour) or _fetch(folder, flavour, say)


def cached_kernel(flavour: str = "amd64") -> LabKernel | None:
    """Return the kernel that `lab_kernel` would use without fetching any, or None."""
    place = os.environ.get(VARIABLE) or os.path.join(cache_folder(), f"linux-{flavour}")
    return find_kernel(place, flavour)


def cache_folder() -> str:
    """Return the folder where kernels and images are kept, made if need be.

    Raises:
        HostError: it cannot be made.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(os.path.abspath(base), "pyvmm")
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
    except OSError as error:
        raise HostError(f"the cache folder {folder} cannot be made ({error.strerror}): set XDG_CACHE_HOME") from None
    return folder


def find_kernel(root: str, flavour: str) -> LabKernel | None:
    """Return the newest kernel of a flavour below `root` that can be read and has its modules, or None."""
    pattern = re.compile(rf"vmlinuz-([0-9]+\.[0-9]+[^/]*?-(?:{re.escape(flavour)}))", re.ASCII)
    found = []
    for name in _listing(os.path.join(root, "boot")):
        match = pattern.fullmatch(name)
        if match is None or _flavour(match[1]) != flavour:
            continue
        vmlinuz = os.path.join(root, "boot", name)
        for base in ("lib/modules", "usr/lib/modules"):
            modules = os.path.join(root, base, match[1])
            if os.path.exists(os.path.join(modules, "modules.dep")) and os.access(vmlinuz, os.R_OK):
                found.append(LabKernel(os.path.abspath(vmlinuz), os.path.abspath(modules), match[1]))
                break
    return max(found, key=lambda kernel: [int(part) for part in re.findall(r"[0-9]+", kernel.version)], default=None)


def _flavour(version: str) -> str:
    """Return the flavour at the end of a Debian version, as `cloud-amd64` of `6.1.0-56-cloud-amd64`."""
    match = re.search(r"-((?:[a-z][a-z0-9]*-)*amd64)$", version)
    return match[1] if match else ""


def _fetch(folder: str, flavour: str, say: Callable[[str], None] | None) -> LabKernel:
    import fcntl

    from pyvmm.host.lab.contain import Keeper

    with open(f"{folder}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernel = find_kernel(folder, flavour)  # another process may have fetched it while this one waited
        if kernel is not None:
            return kernel
        if say is not None:
            say(f"fetching Debian's linux-image-{flavour} into {folder} (once)")
        with Keeper(parent=os.path.dirname(folder)) as keeper:
            keeper.start(["/bin/sh", "-c", _FETCH, "sh", flavour], cwd=keeper.folder)
            status = keeper.wait()
            if status:
                raise HostError(_reason(keeper.log(), flavour))
            os.rename(os.path.join(keeper.folder, "tree"), folder)
    kernel = find_kernel(folder, flavour)
    if kernel is None:
        raise HostError(
            f"Debian's linux-image-{flavour} holds no boot/vmlinuz with its modules: remove {folder} and try again"
        )
    return kernel


def _reason(log: str, flavour: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    marked = [line[1:] for line in lines if line.startswith("!")]
    errors = [line for line in lines if line.startswith("E: ")]
    why = "; ".join(marked[-1:] + errors[-1:]) or (lines[-1] if lines else "no reason was given")
    return f"the lab's kernel cannot be fetched: {why} (or set {VARIABLE} to a folder with boot/vmlinuz-*-{flavour} and lib/modules)"


def _stem(path: str) -> str:
    """Return the name that the kernel knows a module file by."""
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")


def _listing(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
