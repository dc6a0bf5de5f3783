"""What the Intel lab's kernel is told and what its first program does, up to the agent."""

from __future__ import annotations

import os
from collections.abc import Iterable

DISK_MODULES = ("ata_piix", "sd_mod", "isofs", "overlay")
KVM_MODULES = ("kvm", "kvm_intel")
"""Modules that the init loads, besides what these need: the first before it sees the disks, the others with the job's parameters."""

CMDLINE = " ".join(
    (
        "console=ttyS0 quiet",
        # A panic ends the emulator: a triple fault, which Bochs does not survive.
        "panic=-1 reboot=t",
        # Nothing random in addresses or timing: runs repeat.
        "clearcpuid=rdrand,rdseed random.trust_cpu=off nokaslr norandmaps tsc=reliable no_timer_check",
        # What saves time at boot: no self-tests, no probing of absent hardware, no side-channel mitigations, no checks of the page tables,
        # no indices of trace events.
        "cryptomgr.notests=1 8250.nr_uarts=3 audit=0 apparmor=0 nowatchdog rcupdate.rcu_expedited=1 i8042.noaux mitigations=off",
        "rodata=off initcall_blacklist=init_kprobe_trace,trace_eval_init",
    )
)

BOOT_MENU = f"""\
DEFAULT lab
PROMPT 0
LABEL lab
 LINUX /vmlinuz
 INITRD /initrd
 APPEND {CMDLINE}
"""

START = "/.pyvmm/start"
"""The script that the first job brings, which starts the agent."""
PARAMETERS = "/.pyvmm/parameters"
"""The folder that it brings with one file of parameters for each module."""

SHARE_DISK, MAILBOX = "/dev/pyvmm-share", "/dev/pyvmm-mailbox"
"""What the init calls the disk for the share on its way back, and the agent's mailbox."""

_INIT = r"""#!/bin/busybox sh
b=/bin/busybox
die() { echo "pyvmm lab: $*"; $b poweroff -f; $b sleep 100; }
try() { "$@" || die "$* failed"; }
try $b mount -t proc proc /proc
try $b mount -t sysfs sysfs /sys
try $b mount -t devtmpfs devtmpfs /dev
$b stty -F /dev/ttyS1 raw -echo 115200
$b stty -F /dev/ttyS2 raw -echo 38400
for m in @DISK@; do try $b insmod /m/$m.ko; done
# The kernel names disks in the order in which it happens to see them; their places on the two IDE channels are certain.
for disk in boot:0:0:0:0 job:0:0:1:0 share:1:0:0:0 mailbox:1:0:1:0; do
    i=50
    until set -- /sys/bus/scsi/devices/${disk#*:}/block/sd* && [ -b /dev/${1##*/} ]; do
        i=$((i - 1))
        [ $i -gt 0 ] || die "the disk ${disk%%:*} is missing"
        $b usleep 100000
    done
    $b ln -s ${1##*/} /dev/pyvmm-${disk%%:*}
done
try $b mount -t iso9660 -o ro /dev/pyvmm-boot /iso
try $b mount -t tmpfs -o mode=755,size=75% tmpfs /work
$b mkdir /work/upper /work/work
try $b mount -t overlay -o xino=off,lowerdir=/iso/tree,upperdir=/work/upper,workdir=/work/work pyvmm /root
r=/root
$b tar -x -f /dev/pyvmm-job -C $r || die "the job cannot be unpacked"
for m in @KVM@; do
    p=
    [ -e $r/.pyvmm/parameters/$m ] && read -r p <$r/.pyvmm/parameters/$m
    try $b insmod /m/$m.ko $p
done
cd $r
$b mkdir -p proc sys dev run tmp var/tmp root
$b chmod 1777 tmp var/tmp
$b mount -t proc proc proc
$b mount -t sysfs sysfs sys
$b mount -t debugfs debugfs sys/kernel/debug
$b mount -t devtmpfs devtmpfs dev
$b mkdir -p dev/pts dev/shm
$b mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts dev/pts
$b mount -t tmpfs -o mode=1777 tmpfs dev/shm
$b mount -t tmpfs -o mode=755 tmpfs run
$b ln -s /proc/self/fd dev/fd
for i in stdin:0 stdout:1 stderr:2; do $b ln -s /proc/self/fd/${i#*:} dev/${i%:*}; done
$b ifconfig lo up
$b chroot . /bin/sh /.pyvmm/start </dev/ttyS2 >/dev/ttyS1
die "the agent cannot be started"
"""


def init_script(disk_modules: Iterable[str], kvm_modules: Iterable[str]) -> str:
    """Return the init that loads these modules, in this order."""
    return _INIT.replace("@DISK@", " ".join(disk_modules)).replace("@KVM@", " ".join(kvm_modules))


def module_name(path: str) -> str:
    """Return the name under which the init finds a module's file."""
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")
