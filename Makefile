# Two commands for a fresh Debian-like machine: `make boot` and `make test`. Each sets up all that it needs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# `make boot GUEST=guest:mode-tour`, or any image: `make boot GUEST=path/to/kernel.bin`
GUEST ?= guest:hello-elf64

# Debian packages that set-up needs and the commands that show that they are there.
PACKAGES := gcc libc6-dev binutils python3-venv
# What the lab needs besides: QEMU for AMD, Bochs for Intel, and what makes their disks. The tests use it.
LAB_PACKAGES := qemu-system-x86 bochs bochsbios vgabios isolinux syslinux-common xorriso busybox-static kmod cpio file
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: boot test test-local check soak boots bench guests bytecode lab clean tools
boot: $(VENV)/ready guests bytecode
	$(BIN)/python -m pyvmm boot $(GUEST)

# Everything, everywhere: this host, the AMD lab with NPT on and off, the Intel lab with EPT on and off.
test: $(VENV)/ready guests bytecode lab
	$(BIN)/python -m tests.everywhere

# This host only: a minute and a half.
test-local: $(VENV)/ready guests bytecode
	$(BIN)/python -m pytest

# What CI holds the code to besides the tests.
check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The KVM tests over and over: no flake, no leak. About half an hour.
soak: $(VENV)/ready guests
	$(BIN)/python -m pytest -m soak

# Stock Linux to its shell, ten times with each kernel under every setting. About an hour.
boots: $(VENV)/ready guests bytecode lab
	$(BIN)/python -m tests.everywhere boots

bench: $(VENV)/ready guests bytecode
	$(BIN)/python -m pyvmm bench exits
	$(BIN)/python -m pyvmm bench start

guests: tools
	@$(MAKE) -s -C guests

tools:
	@command -v gcc >/dev/null && command -v ld >/dev/null && [ -e /usr/include/linux/kvm.h ] \
		&& $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { $(SUDO) apt-get update -q && $(SUDO) apt-get install -qy $(PACKAGES); }

lab: $(VENV)/ready
	@$(BIN)/python -m pyvmm lab check >/dev/null 2>&1 \
		|| { $(SUDO) apt-get update -q && $(SUDO) apt-get install -qy --no-install-recommends $(LAB_PACKAGES); }

$(VENV)/ready: pyproject.toml setup.py | tools
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "pyvmm needs Python 3.11 or later: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Compiling 90 modules takes as long as importing NumPy: do it once, also where the environment keeps Python from it.
bytecode: $(VENV)/ready
	@$(BIN)/python -m compileall -q pyvmm

clean:
	rm -rf $(VENV) build guests/build *.egg-info
