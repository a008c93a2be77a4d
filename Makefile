# In a new clone, `make demo` trains on the embedded digits and `make test` runs the tests. The other targets are for
# development.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo install test test-min slow check lint types docs rows clean

demo: $(VENV)/.demo
	$(BIN)/sightline train

install: $(VENV)/.dev

# With COVERAGE=1, the unit tests measure coverage, which doubles their time. They fail if it is below `fail_under` in
# pyproject.toml.
UNIT := $(addprefix tests/,checks config core data engine inference metrics models optim report runs commands/test_output_levels.py)
test: $(VENV)/.dev
ifdef COVERAGE
	$(BIN)/python -m pytest --numprocesses 2 -m 'not slow' --cov=sightline $(UNIT)
	$(BIN)/python -m pytest --numprocesses 2 -m 'not slow' $(addprefix --ignore=,$(UNIT))
else
	$(BIN)/python -m pytest --numprocesses 2 -m 'not slow'
endif

# Runs the fast tests with the lowest versions that pyproject.toml allows, in a separate environment. Indirect
# dependencies have their newest version, so these packages may call functions that are deprecated there.
test-min: $(VENV)-min/.done
	$(VENV)-min/bin/python -m pytest --numprocesses 2 -m 'not slow' -W ignore::DeprecationWarning

slow: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 -m slow

check: test slow lint types docs rows

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python scripts/words
	$(BIN)/python scripts/messages --check

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

rows: $(VENV)/.dev
	$(BIN)/python scripts/rows

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sightline needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing Sightline and PyTorch into $(VENV) (some gigabytes, a minute or two)"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing Sightline with everything its tests and docs need into $(VENV)"
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.demo

$(VENV)-min/.done: pyproject.toml scripts/lowest
	$(PYTHON) -m venv $(VENV)-min
	$(PYTHON) scripts/lowest > $(VENV)-min/lowest.txt
	$(VENV)-min/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV)-min/lowest.txt --editable '.[all,test]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-min build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
