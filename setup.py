"""Build the guests into the package, so that whoever installs the wheel needs no compiler to boot one."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithGuests(build_py):
    """`build_py`, and the guests as `pyvmm/_guests`."""

    def run(self) -> None:
        """Build the Python files, then the guests next to them."""
        super().run()
        if self.editable_mode:
            return  # a source tree has its guests in guests/build
        missing = [tool for tool in ("make", "gcc", "ld", "objcopy") if shutil.which(tool) is None]
        if missing:
            raise SystemExit(
                f"pyvmm: the guests are built from source, and {', '.join(missing)} is missing: install make, gcc and binutils"
            )
        built = ROOT / "build" / "guests"
        subprocess.run(["make", "-s", "-C", str(ROOT / "guests"), f"OUT={built}"], check=True)
        target = Path(self.build_lib) / "pyvmm" / "_guests"
        target.mkdir(parents=True, exist_ok=True)
        for pattern in ("*.elf", "*.bin"):
            for guest in built.glob(pattern):
                shutil.copyfile(guest, target / guest.name)


setup(cmdclass={"build_py": BuildWithGuests})
