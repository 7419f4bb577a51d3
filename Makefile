# `make demo` and `make test` work from a fresh clone; tools/setup gets what they need.

PYTHON_VENV := .venv/bin/python
export SHADOWBELL_CACHE ?= $(CURDIR)/.cache
SOURCES := $(shell find src -name '*.py' -o -name '*.pyi' -o -name '*.pyx' -o -name '*.px[di]' \
	-o -name '*.h' -o -name 'py.typed') meson.build pyproject.toml README.md tools/list_sources.py

.PHONY: demo test test-ceph lint format build inplace qemu guest soak clean

demo: build
	@.venv/bin/shadowbell demo

# Without QEMU and a guest the guest tests are skipped with a reason; in CI that is a failure.
test: build .venv/.dev
	@$(MAKE) --no-print-directory guest || test -z "$$CI"
	@$(PYTHON_VENV) -m pytest $(PYTEST_ARGS)

# A Ceph cluster of our own on this machine, and what needs one. Only this installs Ceph's packages.
test-ceph: .venv/.ceph .venv/.dev
	@$(MAKE) --no-print-directory build
	@$(MAKE) --no-print-directory guest || test -z "$$CI"
	@$(PYTHON_VENV) -m pytest tests/ceph $(PYTEST_ARGS)

lint: .venv/.dev
	@$(PYTHON_VENV) -m ruff format --check --quiet . || \
		{ $(PYTHON_VENV) -m ruff format --check . ; exit 1; }
	@$(PYTHON_VENV) -m ruff check --quiet .
	@$(PYTHON_VENV) -m mypy

format: .venv/.dev
	@$(PYTHON_VENV) -m ruff check --quiet --fix-only .
	@$(PYTHON_VENV) -m ruff format .

build: build/.installed

build/.installed: $(SOURCES) .venv/.build
	@echo building shadowbell
	@tools/build
	@touch $@

# For work in the checkout: extension modules beside their sources, PYTHONPATH=src.
inplace: .venv/.build
	@$(PYTHON_VENV) tools/inplace.py

qemu: .venv/.build
	@$(PYTHON_VENV) tools/fetch_qemu.py

guest: qemu
	@$(PYTHON_VENV) tools/build_guest.py

MINUTES ?= 10
soak: build
	@$(PYTHON_VENV) tests/soak.py --minutes $(MINUTES)
	@$(PYTHON_VENV) tests/kill.py --kills 100
	@$(MAKE) --no-print-directory guest
	@$(PYTHON_VENV) tests/guest/hunt_power_failures.py --minutes $(MINUTES)

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests tools -name __pycache__ -prune -exec rm -rf {} +
	find src -name '*.so' -delete

.venv/.build: pyproject.toml tools/setup tools/requirements.py
	@tools/setup build
	@touch $@

.venv/.dev: pyproject.toml tools/setup tools/requirements.py .venv/.build
	@tools/setup dev
	@touch $@

# A build made before librbd was there has no Ceph back end, and meson remembers that.
.venv/.ceph: tools/setup .venv/.build
	@tools/setup ceph
	@rm -rf build/.installed build/wheel-*
	@touch $@
