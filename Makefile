# One command each; the first one sets everything up in $(VENV).
PYTHON ?= python3
VENV ?= .venv
DEMO_DIR ?= demo
DEMO_FLAGS ?=
EXTRAS ?= data,cld3,typography,layouts,pango,skia,scores,dev
# What tests compare with: PyTorch, diffusers, transformers. `make test PEERS=`
# does without them.
PEERS ?= parity
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help setup fonts demo test test-all lint wheel bench

help:
	@echo "make demo      train, resume, sample and report on this machine"
	@echo "make test      the fast tests"
	@echo "make test-all  and the slow ones: peers, kills, wheels, T5X (docs/t5x.md)"
	@echo "make lint      ruff and mypy"
	@echo "make bench     the benchmarks of docs/benchmarks.md"

# Debian's bare python3 has no ensurepip: virtualenv stands in for venv there.
# A set-up that fails leaves nothing behind that the next one would trust.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is too old: make PYTHON=python3.11 (or newer)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
	  rm -rf $(VENV) $(VENV).bootstrap && \
	  $(PYTHON) -m pip install -q --target $(VENV).bootstrap virtualenv && \
	  PYTHONPATH=$(VENV).bootstrap $(PYTHON) -m virtualenv -q $(VENV); } || { \
	  rm -rf $(VENV); exit 1; }

$(VENV)/.installed: $(BIN)/python setup.py pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once; a few minutes) ..."
	$(PIP) install -q --progress-bar on -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

setup: $(VENV)/.installed

# Fonts for many scripts, unpacked in the user's cache: nothing is installed
# in the system, and the demo goes on without what it cannot get.
fonts: setup
	-$(BIN)/python tools/fetch_fonts.py

demo: setup fonts
	$(BIN)/python -m byt5_diffusion.demo --output_dir $(DEMO_DIR) $(DEMO_FLAGS)

$(VENV)/.peers: $(VENV)/.installed
	@if [ -n "$(PEERS)" ]; then \
	  echo "Installing peers to compare with (once) ..."; \
	  $(PIP) install -q -c constraints.txt -e ".[$(EXTRAS),$(PEERS)]" && \
	  touch $@; fi

test: $(VENV)/.peers
	$(BIN)/python -m pytest -q

test-all: $(VENV)/.peers
	$(PIP) install -q -c constraints.txt -e ".[$(EXTRAS),parity,t5x]"
	$(BIN)/python -m pytest -q -m "slow or not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: setup
	$(PIP) wheel -q --no-deps -w dist .

bench: $(VENV)/.peers
	for f in benchmarks/*.py; do $(BIN)/python $$f || exit 1; done
