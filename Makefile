# Two commands from a fresh clone: `make quickstart` and `make test`. Each makes its own .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint install clean

quickstart: install
	$(BIN)/python scripts/quickstart.py --output-dir quickstart_run

test: install
	@echo "== Testing (two workers, one thread each)"
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	@echo "== Installing into $(VENV) (PyTorch and NeMo, 2.4 GB on disk with a CPU build of PyTorch, more with a CUDA one; a few minutes)"
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 13) or sys.exit("Python 3.11 or 3.12 needed, $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf quickstart_run .pytest_cache .ruff_cache .hypothesis
