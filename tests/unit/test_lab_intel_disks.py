"""The Intel lab's disks: what goes onto them, and what comes back; no emulator."""

from __future__ import annotations

import io
import lzma
import marshal
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import HostError, UsageError
from pyvmm.host.lab import bootdisk, guestinit, jobdisk
from pyvmm.host.lab.backend import LabError
from pyvmm.host.lab.bochs import CYLINDER, Disk, Wiring, bochsrc
from pyvmm.host.lab.bytecode import bytecode, bytecode_path
from pyvmm.host.lab.closure import FileTree, libraries, package_folder, parse_ldd, project_tree, python_tree
from pyvmm.host.lab.kernel import LabKernel
from pyvmm.host.lab.settings import LabSpec


def spec(share: Path | None = None, parameters: dict[str, dict[str, str]] | None = None) -> LabSpec:
    kernel = LabKernel("/nowhere/vmlinuz", "/nowhere/modules", "6.1.0")
    place = None if share is None else str(share)
    return LabSpec("intel", parameters or {}, 1 << 30, 1, place, "/some/where", {"HOME": "/home/me"}, kernel)


# The closure


def test_links_on_the_way_are_kept(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    (root / "real").mkdir()
    (root / "real" / "lib.so.1").write_bytes(b"x")
    (root / "real" / "lib.so").symlink_to("lib.so.1")
    (root / "alias").symlink_to("real")
    tree = FileTree()
    tree.add(f"{root}/alias/../alias/lib.so")
    assert tree.files == {f"{root}/real/lib.so.1": f"{root}/real/lib.so.1"}
    assert tree.links == {f"{root}/alias": "real", f"{root}/real/lib.so": "lib.so.1"}


def test_an_absolute_link(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    (root / "file").write_bytes(b"")
    (root / "link").symlink_to(root / "file")
    tree = FileTree()
    tree.add(f"{root}/link")
    assert list(tree.files) == [f"{root}/file"] and tree.links == {f"{root}/link": f"{root}/file"}


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(HostError, match="too many symbolic links"):
        FileTree().add(str(tmp_path / "a"))


def test_what_a_folder_adds(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    for name in ("a/x.py", "__pycache__/x.pyc", ".hidden/y", "b/tests/t.py", "z"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "b" / "out").symlink_to("/")
    tree = FileTree()
    tree.add_folder(str(root), {"__pycache__", "tests"})
    assert sorted(tree.files) == [f"{root}/a/x.py", f"{root}/z"]
    assert tree.links == {f"{root}/b/out": "/"}


def test_this_python_is_whole() -> None:
    tree = python_tree()
    known = {*tree.files, *tree.links}
    assert os.path.abspath(sys.executable) in known
    assert os.path.realpath(os.__file__) in tree.files
    names = {os.path.basename(path) for path in known}
    assert {"libc.so.6", "ld-linux-x86-64.so.2", "_multiarray_umath.cpython-311-x86_64-linux-gnu.so"} <= names or (
        {"libc.so.6", "ld-linux-x86-64.so.2"} <= names and any(name.startswith("_multiarray_umath.") for name in names)
    )
    assert any("/capstone/" in path for path in tree.files)
    assert not any("__pycache__" in path or "/numpy/_core/tests/" in path for path in tree.files)
    assert not any(path.startswith(package_folder() + "/") for path in tree.files)
    assert all(os.path.isfile(source) and not os.path.islink(source) for source in tree.files.values())


def test_the_project_is_whole() -> None:
    root = os.path.dirname(package_folder())
    files = project_tree().files
    for name in ("pyvmm/__init__.py", "pyvmm/host/lab/inside.py", "tests/conftest.py", "pyproject.toml"):
        assert f"{root}/{name}" in files
    assert not any("__pycache__" in path or "/." in path.removeprefix(root) for path in files)


def test_ldd_output() -> None:
    text = (
        "/bin/a:\n\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\tlibx.so => not found\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n/bin/b:\n\tlibc.so.6 => /lib/libc.so.6 (0x1)\n\tstatically linked\n"
    )
    assert parse_ldd(text) == ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]


def test_libraries_of_what_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"text")
    assert libraries([str(tmp_path / "a.so"), __file__]) == []


# Bytecode


def test_bytecode_is_taken_without_a_look_at_the_source(tmp_path: Path) -> None:
    module = tmp_path / "fresh_module.py"
    module.write_text("WORD = 'compiled'\n")
    code = bytecode(str(module), module.read_bytes())
    assert code is not None
    place = Path(bytecode_path(str(module)))
    place.parent.mkdir()
    place.write_bytes(code)
    module.write_text("WORD = 'source'\n")
    done = subprocess.run(
        [sys.executable, "-c", "import fresh_module; print(fresh_module.WORD)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.defpath},
    )
    assert done.stdout == "compiled\n"


def test_the_own_cache_is_used_when_it_is_up_to_date(tmp_path: Path) -> None:
    import py_compile

    module = tmp_path / "m.py"
    module.write_text("A = 1\n")
    place = bytecode_path(str(module))
    py_compile.compile(str(module), cfile=place, invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    marked = Path(place).read_bytes()[:16] + marshal.dumps(compile("A = 2", str(module), "exec"))
    Path(place).write_bytes(marked)
    code = bytecode(str(module), module.read_bytes())
    assert code is not None and code[16:] == marked[16:]
    os.utime(module, (1, 1))
    code = bytecode(str(module), module.read_bytes())
    assert code is not None and code[16:] != marked[16:]


def test_a_module_that_does_not_compile() -> None:
    assert bytecode("/x.py", b"def (:") is None
    assert bytecode("/x.py", b"\0") is None


# The first disk


def test_initramfs_holds_modules_in_order(tmp_path: Path) -> None:
    archive = bootdisk.initramfs(b"BB", {"scsi_mod": b"1", "sd_mod": b"2"}, {"kvm": b"3", "kvm_intel": b"4"})
    assert subprocess.run(
        ["cpio", "-t", "--quiet"], input=archive, capture_output=True, check=True
    ).stdout.decode().split()[-4:] == ["m/scsi_mod.ko", "m/sd_mod.ko", "m/kvm.ko", "m/kvm_intel.ko"]


def test_init_is_a_shell_script_that_loads_the_modules() -> None:
    script = guestinit.init_script(["scsi_mod", "sd_mod"], ["kvm", "kvm_intel"])
    assert "for m in scsi_mod sd_mod; do" in script and "for m in kvm kvm_intel; do" in script
    assert "@DISK@" not in script and "@KVM@" not in script
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)


def test_module_names() -> None:
    assert guestinit.module_name("/x/kernel/arch/x86/kvm/kvm-intel.ko.xz") == "kvm_intel"


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".zst"])
def test_modules_are_unpacked(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    content = b"\x7fELF not really"
    if suffix == ".zst":
        packed = subprocess.run(["zstd", "-qc"], input=content, capture_output=True, check=True).stdout
    else:
        packed = {"": content, ".xz": lzma.compress(content), ".gz": gzip.compress(content)}[suffix]
    path = tmp_path / f"m.ko{suffix}"
    path.write_bytes(packed)
    monkeypatch.setattr(bootdisk, "strip", lambda content: content)
    assert bootdisk.module_content(str(path)) == content


def test_a_zstd_module_without_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.ko.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setattr(bootdisk, "find_tool", lambda name: None)
    with pytest.raises(HostError, match="apt-get install zstd"):
        bootdisk.module_content(str(path))


def test_a_missing_module() -> None:
    with pytest.raises(HostError, match="cannot be read"):
        bootdisk.module_content("/nowhere/m.ko")


def test_strip_drops_symbols_and_unused_sections(tmp_path: Path) -> None:
    source = '__attribute__((section("__mcount_loc"))) void *at = 0; static int unused(void) { return 1; } int used(void) { return 2; }'
    path = tmp_path / "m.o"
    subprocess.run(
        ["gcc", "-g", "-O0", "-xc", "-", "-c", "-o", str(path)], input=source.encode(), check=True, capture_output=True
    )
    stripped = bootdisk.strip(path.read_bytes())
    path.write_bytes(stripped)
    sections = subprocess.run(["readelf", "-SsW", str(path)], capture_output=True, text=True, check=True).stdout
    assert "__mcount_loc" not in sections and ".debug_info" not in sections and "unused" not in sections
    assert "used" in sections and ".text" in sections


def test_strip_without_objcopy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootdisk, "find_tool", lambda name: None)
    assert bootdisk.strip(b"as it is") == b"as it is"


def test_strip_of_what_is_no_module() -> None:
    with pytest.raises(HostError, match="objcopy cannot strip"):
        bootdisk.strip(b"no ELF")


def test_busybox_gives_way_to_real_programs(tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    assert busybox is not None
    tree = FileTree()
    tree.files["/usr/bin/cat"] = "/usr/bin/cat"
    bootdisk.add_busybox(tree, busybox)
    assert "/usr/bin/cat" not in tree.links
    assert tree.links["/usr/bin/sh"] == "busybox" and tree.links["/bin"] == "usr/bin"


def test_busybox_where_bin_is_a_folder_of_its_own() -> None:
    tree = FileTree()
    tree.files["/bin/python3"] = "/bin/python3"
    bootdisk.add_busybox(tree, shutil.which("busybox") or "")
    assert "/bin" not in tree.links and tree.links["/bin/sh"] == "/usr/bin/busybox"


def test_graft_points(tmp_path: Path) -> None:
    odd = tmp_path / "a=b\\c.py"
    odd.write_text("A = 1\n")
    tree = FileTree()
    tree.files = {str(odd): str(odd)}
    tree.links = {"/link": "target"}
    stage = tmp_path / "stage"
    stage.mkdir()
    lines = bootdisk.graft(tree, str(stage))
    quoted = str(odd).replace("\\", "\\\\").replace("=", "\\=")
    assert lines[0] == f"/tree{quoted}={quoted}"
    assert lines[1].endswith(f"={stage}/0.pyc") and "__pycache__" in lines[1]
    assert lines[2] == f"/tree/link={stage}/0.link" and os.readlink(stage / "0.link") == "target"


def test_cylinders(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    for size, padded in ((0, 0), (1, CYLINDER), (CYLINDER, CYLINDER), (CYLINDER + 1, 2 * CYLINDER)):
        path.write_bytes(bytes(size))
        bootdisk.pad(str(path))
        assert path.stat().st_size == padded
        jobdisk.write_disk(str(path), bytes(size))
        assert path.stat().st_size == padded


def test_a_disk_is_made_once_and_again_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_file = tmp_path / "vmlinuz"
    kernel_file.write_bytes(b"no bzImage, so taken as it is")
    module = tmp_path / "m.ko"
    module.write_bytes(b"module")
    package = tmp_path / "package.py"
    package.write_text("A = 1\n")

    class Kernel(LabKernel):
        def module_files(self, *names: str) -> list[str]:
            return [str(module)]

    tree = FileTree()
    tree.files = {str(package): str(package)}
    monkeypatch.setattr(bootdisk, "python_tree", lambda: tree)
    monkeypatch.setattr(bootdisk, "strip", lambda content: content)
    cache = tmp_path / "cache"
    said: list[str] = []

    def make() -> str:
        return bootdisk.boot_disk(Kernel(str(kernel_file), str(tmp_path), "1"), str(cache), said.append)

    path = make()
    assert len(said) == 1 and os.path.getsize(path) % CYLINDER == 0
    listing = subprocess.run(
        ["xorriso", "-indev", path, "-find", "/"], capture_output=True, text=True, check=True
    ).stdout
    for name in ("/vmlinuz", "/initrd", "/isolinux/isolinux.cfg", f"/tree{package}", "/tree/usr/bin/busybox"):
        assert f"'{name}'" in listing
    assert make() == path and len(said) == 1
    package.write_text("A = 22\n")
    assert make() == path and len(said) == 2
    assert sorted(os.listdir(cache)) == sorted(
        [os.path.basename(path), f"{os.path.basename(path)}.files", "intel.lock"]
    )


def test_old_disks_go(tmp_path: Path) -> None:
    for number in range(4):
        for name in (f"intel-{number}.iso", f"intel-{number}.iso.files"):
            (tmp_path / name).write_bytes(b"")
            os.utime(tmp_path / name, (number, number))
    bootdisk._prune(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["intel-2.iso", "intel-2.iso.files", "intel-3.iso", "intel-3.iso.files"]


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError, match="XDG_CACHE_HOME"), bootdisk.locked(str(tmp_path / "file" / "cache")):
        pass


# The second and the third


def members(archive: bytes) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for entry in tar:
            content = tar.extractfile(entry) if entry.isreg() else None
            found[entry.name] = None if content is None else content.read()
    return found


def test_job(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / "in.txt").write_text("hello")
    cache = tmp_path / "cache"
    cache.mkdir()
    job = spec(share, {"kvm_intel": {"ept": "0", "vpid": "1"}})
    archive = jobdisk.job_archive(job, str(cache))
    found = members(archive)
    assert found[".pyvmm/parameters/kvm_intel"] == b"ept=0 vpid=1\n"
    start = found[".pyvmm/start"]
    assert start is not None and b"inside.py" in start and os.fsencode(sys.executable) in start
    assert found[f"{str(share).lstrip('/')}/in.txt"] == b"hello"
    root = os.path.dirname(package_folder()).lstrip("/")
    assert f"{root}/pyvmm/__init__.py" in found and bytecode_path(f"{root}/pyvmm/__init__.py") in found
    assert "some/where" in found and "home/me" in found
    assert jobdisk.job_archive(job, str(cache)) == archive
    assert len([name for name in os.listdir(cache) if name.endswith(".tar")]) == 1


def test_a_share_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobdisk, "SHARE_LIMIT", 1 << 20)
    (tmp_path / "big").write_bytes(bytes((1 << 20) + 1))
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as tar, pytest.raises(UsageError, match="more than 1 MiB"):
        jobdisk.add_share(tar, str(tmp_path))


def test_only_files_folders_and_links_are_shared(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("sub")
    os.mkfifo(tmp_path / "fifo")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        jobdisk.add_share(tar, str(tmp_path))
    base = str(tmp_path).lstrip("/")
    assert sorted(members(out.getvalue())) == sorted([base, f"{base}/link", f"{base}/sub"])


def archive_of(*entries: tuple[str, bytes | str | None, int]) -> io.BytesIO:
    """Make a disk with a tar archive: content bytes for files, a string for a link, None for a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content, mode in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            if isinstance(content, bytes):
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            else:
                entry.type = tarfile.DIRTYPE if content is None else tarfile.SYMTYPE
                entry.linkname = content or ""
                tar.addfile(entry)
    out.write(bytes(CYLINDER))
    out.seek(0)
    return out


def test_what_changed_comes_back(tmp_path: Path) -> None:
    (tmp_path / "same").write_bytes(b"same")
    os.chmod(tmp_path / "same", 0o644)
    os.utime(tmp_path / "same", (1, 1))
    (tmp_path / "other").write_bytes(b"old")
    (tmp_path / "stays").write_bytes(b"here only")
    disk = archive_of(
        (".", None, 0o755),
        ("./same", b"same", 0o644),
        ("./other", b"new", 0o755),
        ("./new/deep", None, 0o750),
        ("./new/deep/file", b"\0\xff", 0o600),
        ("./link", "other", 0o777),
    )
    jobdisk.take_back(disk, b"saved\n", str(tmp_path))
    assert (tmp_path / "same").stat().st_mtime == 1
    assert (tmp_path / "other").read_bytes() == b"new" and (tmp_path / "other").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "new" / "deep" / "file").read_bytes() == b"\0\xff"
    assert os.readlink(tmp_path / "link") == "other"
    assert (tmp_path / "stays").read_bytes() == b"here only"


def test_nothing_outside_of_the_share_is_written(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (share / "way").symlink_to(outside)
    disk = archive_of(
        ("../escaped", b"x", 0o644),
        ("/etc/pyvmm-escaped", b"x", 0o644),
        ("./way/escaped", b"x", 0o644),
        ("./trap", str(outside), 0o777),
        ("./trap/escaped", b"x", 0o644),
    )
    jobdisk.take_back(disk, b"saved\n", str(share))
    assert not (tmp_path / "escaped").exists() and not os.path.exists("/etc/pyvmm-escaped")
    assert not os.listdir(outside)
    assert sorted(os.listdir(share)) == ["trap", "way"]


@pytest.mark.parametrize("answer", [b"", b"tar: write error: No space left on device\n"])
def test_a_share_that_the_lab_could_not_write(tmp_path: Path, answer: bytes) -> None:
    with pytest.raises(LabError, match="could not be brought back") as caught:
        jobdisk.take_back(archive_of(), answer, str(tmp_path))
    assert "\n" not in str(caught.value) and "[" not in str(caught.value)


def test_a_third_disk_that_holds_no_archive(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="could not be brought back"):
        jobdisk.take_back(io.BytesIO(b"\xaa" * 4096), b"saved\n", str(tmp_path))


@given(st.binary(max_size=2048))
def test_no_third_disk_breaks_anything(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("share")
    disk = archive_of(("./file", b"content", 0o644))
    disk.write(content)
    disk.seek(0)
    try:
        jobdisk.take_back(disk, b"saved\n", str(folder))
    except (LabError, HostError) as error:
        assert "\n" not in str(error)
    assert all(path.is_relative_to(folder) for path in folder.rglob("*"))


def test_the_third_disk_takes_no_room(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    jobdisk.blank_disk(str(path))
    status = path.stat()
    assert status.st_size > jobdisk.SHARE_LIMIT and status.st_size % CYLINDER == 0 and status.st_blocks == 0


# Bochs


def wiring(**changes: object) -> Wiring:
    fields: dict[str, object] = {
        "memory": 1 << 30,
        "disks": (Disk("/t/boot", volatile=True), Disk("/t/job"), Disk("/t/share")),
        "console": "/t/console",
        "output": "/t/output",
        "input": "/t/input",
        "log": "/t/log",
    }
    return Wiring(**{**fields, **changes})  # type: ignore[arg-type]


def test_bochsrc_is_for_runs_that_repeat() -> None:
    lines = bochsrc(wiring()).splitlines()
    assert "clock: sync=none, time0=1700000000" in lines
    assert "memory: guest=1024, host=1024" in lines
    assert "panic: action=fatal" in lines
    assert any(
        line.startswith("cpu: model=broadwell_ult, count=1,") and "reset_on_triple_fault=0" in line for line in lines
    )
    assert "ata0-master: type=disk, path=/t/boot, mode=volatile, journal=/t/boot.journal" in lines
    assert "ata1-master: type=disk, path=/t/share, mode=flat" in lines
    assert [line for line in lines if line.startswith("com")] == [
        "com1: enabled=1, mode=file, dev=/t/console",
        "com2: enabled=1, mode=file, dev=/t/output",
        "com3: enabled=1, mode=term, dev=/t/input",
    ]


def test_one_disk_needs_one_channel() -> None:
    text = bochsrc(wiring(disks=(Disk("/t/a"),)))
    assert "ata1: enabled=0" in text and "ata1: enabled=1" not in text


@pytest.mark.parametrize("path", ["/t/a b", "/t/a,b", '/t/a"b', "/t/a\nb", "/t/$a"])
def test_paths_that_bochs_would_misread(path: str) -> None:
    with pytest.raises(UsageError, match="choose"):
        bochsrc(wiring(console=path))
