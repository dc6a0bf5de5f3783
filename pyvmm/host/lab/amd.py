"""The AMD lab: QEMU's TCG emulates SVM with nested paging, virtme-ng boots the kernel on this host's file system.

`virtme-run` composes QEMU's command line and the initramfs, which loads the drivers and mounts this host's root over 9p, read-only.
Then our own init takes over instead of virtme's, for two reasons: virtme's runs systemd-tmpfiles and udev, which take longer under TCG
than all the rest of the start; and without udev it finds no port for the command's output. Ours puts a tmpfs over the whole file system
(overlayfs), so that everything can be written and nothing reaches the host, loads KVM, and starts the agent on a virtio-serial port.
"""

from __future__ import annotations

import os
import shlex
import socket
import struct
import sys
from typing import TYPE_CHECKING

from pyvmm.boot import zeropage
from pyvmm.errors import ImageError
from pyvmm.host.lab.backend import LabError
from pyvmm.host.lab.kernel import cache_folder
from pyvmm.host.lab.packages import find_tool
from pyvmm.host.lab.session import ChannelLost

if TYPE_CHECKING:
    from pyvmm.host.lab.contain import Keeper
    from pyvmm.host.lab.kernel import LabKernel
    from pyvmm.host.lab.settings import LabSpec

_PORT = "pyvmm.agent"
_9P = "version=9p2000.L,trans=virtio,access=any,msize=512000"

# What saves time at boot and changes nothing that KVM does: no self-tests, no probing of absent hardware, no side-channel mitigations.
_CMDLINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests=1 tsc=reliable no_timer_check 8250.nr_uarts=1 audit=0 apparmor=0 "
    "nowatchdog rcupdate.rcu_expedited=1 i8042.noaux random.trust_cpu=1 nokaslr"
)

# Of the root that is mounted when this starts only busybox and this file are used: it has no cache, so each access is a round trip.
_INIT = r"""#!{busybox} sh
b={busybox}
die() {{ echo "pyvmm lab: $*"; $b poweroff -f; }}
try() {{ $b "$@" || die "$* failed"; }}
try mount -t tmpfs -o mode=755 tmpfs /run
try mkdir /run/lower /run/upper /run/work /run/root
try mount -t 9p -o ro,{options},cache=loose pyvmm.root /run/lower
{overlay}
try mount -t overlay -o xino=off,lowerdir=/run/lower,upperdir=/run/upper,workdir=/run/work pyvmm /run/root
try mkdir -p /run/root/run/old
cd /run/root
try pivot_root . run/old
cd /
try umount -n -l /run/old
try mkdir -p /proc /sys /dev /run /tmp
try mount -t proc proc /proc
try mount -t sysfs sysfs /sys
$b mount -t debugfs debugfs /sys/kernel/debug
try mount -t devtmpfs devtmpfs /dev
try mkdir -p /dev/pts /dev/shm
try mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
try mount -t tmpfs -o mode=1777 tmpfs /dev/shm
try mount -t tmpfs -o mode=755 tmpfs /run
$b ln -s /proc/self/fd /dev/fd
for i in stdin:0 stdout:1 stderr:2; do $b ln -s /proc/self/fd/${{i#*:}} /dev/${{i%:*}}; done
$b mkdir -p /lib/modules
[ -e /lib/modules/{version} ] || $b ln -s {modules} /lib/modules/{version}
{share}
$b ifconfig lo up
{kvm}
for name in /sys/class/virtio-ports/*/name; do
    read -r port <$name
    [ "$port" = {port} ] && device=/dev/${{name#/sys/class/virtio-ports/}} && device=${{device%/name}}
done
[ -n "$device" ] || die "the agent's port is missing"
{python} -I -S {agent} --channel $device </dev/null
echo "pyvmm lab: the agent has ended"
$b poweroff -f
"""


class AmdBackend:
    """Starts QEMU through virtme-ng."""

    start_timeout = 180.0
    grace = 10.0

    def check(self, spec: LabSpec) -> None:
        """Nothing is refused."""

    def start(self, spec: LabSpec, keeper: Keeper) -> tuple[int, int]:
        """Start it; see `Backend.start`."""
        init = os.path.join(keeper.folder, "init")
        with open(init, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(_init(spec, compile_agent(keeper.folder)))
        os.chmod(init, 0o755)
        address = os.path.join(keeper.folder, "agent")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(address)
            listener.listen(1)
            environment = {
                "HOME": keeper.folder,  # virtme-ng reads and keeps files there
                "TMPDIR": keeper.folder,
                "PATH": os.pathsep.join(_folders()),
                "LANG": "C.UTF-8",
            }
            keeper.start(_command(spec, init, address), env=environment)
            listener.settimeout(0.1)
            while True:
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    if not keeper.alive:
                        raise ChannelLost from None
                else:
                    fd = connection.detach()
                    return fd, fd

    def archive(self, spec: LabSpec) -> None:
        """Return None: both sides see one folder."""

    def unpack(self, spec: LabSpec, archive: bytes) -> None:
        """Never called."""
        raise LabError("the AMD lab's share is the host's own folder")

    def log(self, keeper: Keeper) -> str:
        """Return the serial console and QEMU's own words."""
        return keeper.log()


def _command(spec: LabSpec, init: str, address: str) -> list[str]:
    devices = [
        *_folder("pyvmmroot", "/", "pyvmm.root", "readonly=on"),
        *("-chardev", f"socket,id=pyvmmagent,path={address}"),
        *("-device", "virtio-serial-pci,id=pyvmmserial"),
        *("-device", f"virtserialport,bus=pyvmmserial.0,chardev=pyvmmagent,name={_PORT}"),
    ]
    if spec.share is not None:
        devices += _folder("pyvmmshare", spec.share, "pyvmm.share", "readonly=off")
    return [
        find_tool("virtme-run") or "virtme-run",
        *(
            "--kimg",
            spec.kernel.vmlinuz,
            "--mods",
            "auto",
            "--force-9p",
            "--disable-kvm",
            "--disable-microvm",
            "--disable-monitor",
        ),
        *("--memory", f"{spec.memory >> 20}M", "--cpus", str(spec.cpus)),
        # Of options that come twice QEMU takes the last. Without XSAVE: a guest's writes to XCR0 are not intercepted by the emulated SVM,
        # so that its kernel finds a state of another size than CPUID says, and warns.
        *("--qemu-opts", "-cpu", "EPYC,+svm,+npt,-xsave", "-no-reboot", *devices),
        *("-kernel", unpacked_kernel(spec.kernel), "-append", f"{_CMDLINE} init={init}"),
    ]


def unpacked_kernel(kernel: LabKernel) -> str:
    """Return the path of the kernel as an ELF file, which QEMU enters through its PVH note, or of the bzImage if it cannot be had.

    The bzImage's own decompressor takes three seconds under TCG. The unpacked kernel is kept in the cache, under its content's name.
    """
    import hashlib

    from pyvmm.host.lab.contain import Keeper
    from pyvmm.host.lab.rawkernel import PAYLOAD_OFFSET, unpack

    with open(kernel.vmlinuz, "rb") as file:
        image = file.read()
    path = os.path.join(cache_folder(), f"vmlinux-{kernel.version}-{hashlib.sha256(image).hexdigest()[:16]}")
    if not os.path.exists(path):
        try:
            # boot.rst, "The Real-Mode Kernel Header": payload_offset counts from the end of the setup code.
            (start, length) = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
            start += ((image[zeropage.SETUP_SECTS] or 4) + 1) * 512
            elf = unpack(image[start : start + length])
        except (ImageError, struct.error):
            return kernel.vmlinuz
        with Keeper(parent=cache_folder()) as keeper:
            new = os.path.join(keeper.folder, "vmlinux")
            with open(new, "wb") as file:
                file.write(elf)
            os.replace(new, path)
    return path


def _folder(name: str, path: str, tag: str, access: str) -> list[str]:
    """Return QEMU's arguments for one folder over 9p; in an option's value a comma is written twice."""
    quoted = path.replace(",", ",,")
    return [
        "-fsdev",
        f"local,id={name},path={quoted},security_model=none,{access},multidevs=remap",
        "-device",
        f"virtio-9p-pci,fsdev={name},mount_tag={tag}",
    ]


def compile_agent(folder: str) -> str:
    """Compile the agent and what it imports into a folder, as a tree of its own, and return the path of its bytecode.

    A script is compiled anew at each start, which takes half a second under an emulator.
    """
    import py_compile

    here = os.path.dirname(os.path.abspath(__file__))
    for module in ("errors", "host/lab/channel", "host/lab/agent"):
        source = os.path.join(here, "..", "..", f"{module}.py")
        target = os.path.join(folder, "pyvmm", f"{module}.pyc")
        py_compile.compile(
            source, target, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
    return target


def _init(spec: LabSpec, agent: str) -> str:
    share = ""
    if spec.share is not None:
        # Not `loose`: what the host changes there must be seen. `mmap` is no cache but for mapped files.
        share = f"try mount -t 9p -o rw,{_9P},cache=mmap pyvmm.share {shlex.quote(spec.share)}"
    kernel = spec.kernel
    kvm = [_insmod(path, spec) for path in kernel.module_files("kvm", spec.vendor_module)]
    return _INIT.format(
        busybox=find_tool("busybox"),
        options=_9P,
        overlay="\n".join(_insmod(path, spec) for path in kernel.module_files("overlay")),
        version=kernel.version,
        modules=shlex.quote(kernel.modules),
        share=share,
        kvm="\n".join(kvm),
        port=_PORT,
        python=shlex.quote(sys.executable),
        agent=shlex.quote(agent),
    )


def _insmod(path: str, spec: LabSpec) -> str:
    name = os.path.basename(path).partition(".")[0].replace("-", "_")
    options = [f"{parameter}={value}" for parameter, value in spec.parameters.get(name, {}).items()]
    # busybox reads plain modules only; kmod also what a distribution has compressed.
    tool = "try insmod" if path.endswith(".ko") else f"{find_tool('insmod')}"
    line = " ".join([tool, shlex.quote(path), *options])
    return line if path.endswith(".ko") else f"{line} || die {name} cannot be loaded"


def _folders() -> list[str]:
    """Return a PATH that holds every tool that virtme-run calls, wherever this host keeps it."""
    tools = [find_tool(name) for name in ("virtme-run", "qemu-system-x86_64", "busybox", "file", "modprobe")]
    return [
        *dict.fromkeys(os.path.dirname(tool) for tool in tools if tool),
        "/usr/local/bin",
        "/usr/bin",
        "/bin",
        "/usr/sbin",
        "/sbin",
    ]
