# `make demo` and `make test` do all their set-up themselves; `make help` lists the targets and the settings.

VENV ?= .venv
PYTHON ?= python3
TORCH_SPEC ?= torch==2.13.0
TORCH_INDEX_URL ?=
SYSTEM_SITE_PACKAGES ?= auto
TEST_WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Exit code 0 if this Python imports a torch the package can use.
HAS_TORCH := import torch; raise SystemExit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8))
# Where a Python keeps its packages: --system-site-packages alone does not see those of another virtual environment.
SITE := import sysconfig; print(sysconfig.get_path("purelib"))
HAS_PYTHON := import sys; raise SystemExit(sys.version_info < (3, 11))

# A torch that is there already is kept, unless another one is asked for by name. The stamp records what was asked
# for, so that asking for something else installs it.
ASKED := $(if $(filter file,$(origin TORCH_SPEC)),any,$(TORCH_SPEC)) $(TORCH_INDEX_URL)
ifneq ($(strip $(ASKED)),$(strip $(shell cat "$(VENV)/.torch" 2>/dev/null)))
.PHONY: $(VENV)/.torch
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench bench-check clean

help:
	@echo "make demo    set up $(VENV), train a tiny DiP and a tiny PixelDiT, draw them side by side"
	@echo "make test    set up $(VENV), then lint, type-check and run the tests"
	@echo "make lint    ruff and mypy alone"
	@echo "make format  rewrite the code as ruff wants it, and docs/api.md from the docstrings"
	@echo "make bench   measure the table of docs/performance.md (under 25 minutes on two idle cores)"
	@echo "make bench-check  compare this machine's speed ratios with benchmarks/ratios.json (some minutes)"
	@echo "make clean   remove $(VENV) and the caches (runs and samples stay)"
	@echo
	@echo "Settings, as make variables or in the environment (value now):"
	@echo "  VENV                  the virtual environment, made if absent ($(VENV))"
	@echo "  PYTHON                the Python it is made from, 3.11 or newer ($(PYTHON))"
	@echo "  TORCH_SPEC            what pip installs where no torch >= 2.8 is found; named by you, it is"
	@echo "                        installed even where one is ($(TORCH_SPEC))"
	@echo "  TORCH_INDEX_URL       index for torch alone, such as https://download.pytorch.org/whl/cpu ($(TORCH_INDEX_URL))"
	@echo "  SYSTEM_SITE_PACKAGES  1: the new environment sees the packages of PYTHON; 0: it does not;"
	@echo "                        auto: it does where PYTHON has torch >= 2.8 ($(SYSTEM_SITE_PACKAGES))"
	@echo "  TEST_WORKERS          test processes ($(TEST_WORKERS))"
	@echo "  PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, ... are read by pip itself"

demo: $(VENV)/.train
	@echo "make demo: trains and draws for about 4 minutes on two cores"
	$(BIN)/python examples/demo.py

# Only the plugins the tests use: those of a shared environment may have warnings of their own, which are errors here.
test: export PYTEST_DISABLE_PLUGIN_AUTOLOAD = 1
test: lint
	@echo "make test: the tests take about 10 minutes on two cores"
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -p xdist -p hypothesispytest -n $(TEST_WORKERS)

lint: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(BIN)/python docs/api.py

bench: $(VENV)/.train
	$(BIN)/python benchmarks/bench.py --suite performance --compile yes --out docs/results/performance --overwrite

bench-check: $(VENV)/.train
	$(BIN)/python benchmarks/bench.py --suite check --compile yes --seconds 20 --no-memory --check benchmarks/ratios.json

clean:
	rm -rf "$(VENV)" .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c '$(HAS_PYTHON)' || { echo "make: $(PYTHON) is not Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	@case "$(SYSTEM_SITE_PACKAGES)" in \
	  0) flag= ;; \
	  1) flag=--system-site-packages ;; \
	  auto) if $(PYTHON) -c '$(HAS_TORCH)' 2>/dev/null; then flag=--system-site-packages; else flag=; fi ;; \
	  *) echo "make: SYSTEM_SITE_PACKAGES is $(SYSTEM_SITE_PACKAGES); give 0, 1 or auto" >&2; exit 1 ;; \
	esac; \
	echo "$(PYTHON) -m venv $$flag $(VENV)"; $(PYTHON) -m venv $$flag "$(VENV)"; \
	if [ -n "$$flag" ]; then $(PYTHON) -c '$(SITE)' > "$$($(BIN)/python -c '$(SITE)')/outside.pth"; fi

$(VENV)/.torch: | $(BIN)/python
	@if [ "$(origin TORCH_SPEC)" = file ] && $(BIN)/python -c '$(HAS_TORCH)' 2>/dev/null; then \
	  echo "torch is there already"; \
	else \
	  echo "installing $(TORCH_SPEC)"; \
	  $(PIP) install $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") "$(TORCH_SPEC)"; \
	fi
	@echo "$(ASKED)" > $@

$(VENV)/.train $(VENV)/.dev: $(VENV)/.%: pyproject.toml $(VENV)/.torch
	$(PIP) install --quiet --editable ".[$*]"
	@touch $@
