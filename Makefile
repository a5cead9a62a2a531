# make demo   both methods on three shares of the embedded data set: tables, curves, runs/demo/report
# make test   the tests
# make check  format, lint, types
# make test-all  the tests and the slow tier (installs PyTorch for parity)
# make docs   the documentation as a site: site/index.html
# make t5x    T5X, the optional second engine (needs git and the network); docs/t5x.md
# make install EXTRAS=cuda   sets up .venv only; the launchers call it
# make audit  known weaknesses of the locked versions (needs PyPI itself)
# make lock   new versions in requirements-hashes.lock and requirements.lock

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= dev
PYTEST_FLAGS ?=
WORKERS ?= 2
UV := uv==0.13.9
# Resolves and unpacks several times as fast as pip, and compares each file with its hash.
UV_PIP = $(BIN)/uv pip install --quiet --python $(BIN)/python -c requirements-hashes.lock

.PHONY: install demo test test-all check format docs t5x lock audit clean

# Made anew whenever the project's needs change; otherwise a second run starts at once.
$(VENV)/.installed $(VENV)/.installed-$(EXTRAS): pyproject.toml requirements-hashes.lock
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), \
	  f"Python 3.11, 3.12 or 3.13 is needed, not {sys.version.split()[0]}: make PYTHON=python3.12 ..."'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing locked versions into $(VENV) (a minute the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	@$(UV_PIP) -e '.[$(word 2,$(subst -, ,$(@F)))]'
	@touch $@

install: $(VENV)/.installed-$(EXTRAS)

# Needs no extra; an installation with one will do.
demo: $(or $(wildcard $(VENV)/.installed-$(EXTRAS)),$(VENV)/.installed)
	@$(BIN)/dss demo --output_dir runs/demo

test: $(VENV)/.installed-$(EXTRAS)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(PYTEST_FLAGS)

test-all: $(VENV)/.installed-$(EXTRAS) $(VENV)/.installed-torch
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_FLAGS)

# By pip: it finds builds of PyTorch without CUDA that its configuration names.
$(VENV)/.installed-torch: requirements-parity.txt | $(VENV)/.installed-$(EXTRAS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c requirements.lock -r requirements-parity.txt
	@touch $@

check: $(VENV)/.installed-$(EXTRAS)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.installed-$(EXTRAS)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Beside the site go the pages as they are written, for llms.txt.
docs: $(VENV)/.installed-docs
	@$(BIN)/python tests/record_docs.py
	@$(BIN)/zensical build --clean --strict
	@cp docs/*.md site/

$(VENV)/.installed-docs: pyproject.toml requirements-hashes.lock | $(VENV)/.installed-$(EXTRAS)
	@$(UV_PIP) -e '.[docs]'
	@touch $@

# Two calls: T5X and what it takes from git must come without their dependencies, which would
# overwrite the locked versions.
t5x: $(VENV)/.installed-$(EXTRAS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c requirements.lock -r requirements-t5x.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --force-reinstall -r requirements-t5x-git.txt
	@$(BIN)/dss doctor --engine t5x

# For Python 3.11 to 3.13 and for every platform, with markers. The second file is the first without
# hashes, for pip: with them it takes nothing that is not in the file, such as PyTorch.
lock:
	@$(PYTHON) -m venv $(VENV)-lock
	@$(VENV)-lock/bin/python -m pip install --quiet $(UV)
	@$(VENV)-lock/bin/uv pip compile pyproject.toml --universal --python-version 3.11 \
	  --extra dev --extra docs --extra cuda --extra tpu --no-annotate --no-emit-index-url --custom-compile-command "make lock" \
	  --generate-hashes -o requirements-hashes.lock
	@sed -e '/^ *--hash=/d' -e 's/ \\$$//' requirements-hashes.lock > requirements.lock
	@rm -rf $(VENV)-lock

# Strict: a package that could not be looked up is no package without weaknesses.
audit:
	@test -x $(VENV)-audit/bin/pip-audit || ($(PYTHON) -m venv $(VENV)-audit && \
	  $(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1)
	@$(VENV)-audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
	  -r requirements-hashes.lock

clean:
	rm -rf $(VENV) $(VENV)-lock $(VENV)-audit runs site .cache .pytest_cache .ruff_cache .mypy_cache
