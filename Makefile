# make demo   sets up, then decompiles real Tracr models with the checkpoint that ships
# make test   sets up, then runs all tests
# make check  the same, with ruff, formatting and types
# make docs   builds the documentation site under build/docs
# make latest RUN=runs/cpu   puts a run's newest checkpoint into training/latest, if it is better than what lies there
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# As many processes as there are cores, four at most, of one thread each.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export HF_HUB_OFFLINE = 1

.PHONY: demo test check docs latest setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e '.[data,dev]'
	touch $@

demo: setup
	$(BIN)/trade demo

test: setup
	$(TESTS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TESTS)

latest: setup
	$(BIN)/python scripts/export_checkpoint.py $(RUN) training/latest --if-better

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build *.egg-info
