# Two commands from a fresh clone: `make quickstart` and `make test` (at most 10 minutes on two cores, installation
# included). Each makes its own .venv first.
# `make unit` runs the tests that need no NeMo (a minute) and makes importing NeMo an error: the losses, configs, data,
# tables and statistics.
# `make test-package` installs the package as a wheel and uses its command outside the checkout (at most 10 minutes).
# `make test-deploy` adds programs that serve an exported student, and runs the tests of these, of NeMo's pipelines and of
# the tutorial (3 minutes).
# `make test-reliability` injects faults for up to 40 minutes and prints one table of what came of them.
# `make docs` builds the documentation into site/, with the API pages, in an environment of its own without NeMo.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip compiles nothing here (two minutes, mostly for modules that are never imported): what is imported is compiled once
# and kept, also where the environment says otherwise. Without that every process compiles NeMo again, for half a minute.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test unit test-package test-deploy test-reliability lint docs install clean

quickstart: install
	$(BIN)/python scripts/quickstart.py --output-dir quickstart_run

test: install
	@echo "== Testing (two workers, one thread each)"
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m "not reliability and not deploy and not package" -n 2 --dist loadfile --no-loadscope-reorder

unit: install
	@echo "== Testing what needs no NeMo, with the import of NeMo an error (two workers, one thread each)"
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest --without-nemo -m "unit and not nemo" -n 2 --dist loadfile --no-loadscope-reorder \
	$$(grep -rl --include="test_*.py" "^pytestmark = pytest.mark.unit" tests)

test-package: install
	@echo "== Testing the package as a wheel, outside the checkout (up to 10 minutes)"
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest tests/package -m "package or not package" -rs

test-deploy: $(VENV)/.installed-deploy
	@echo "== Testing the exported student in the programs that serve it, and the tutorial"
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m deploy -rs

test-reliability: install
	@echo "== Injecting faults (two workers, one thread each; up to 40 minutes), table in reliability_run/table.md"
	rm -rf reliability_run
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m reliability -n 2 --dist loadfile --no-loadscope-reorder; status=$$?; \
	$(BIN)/python -m tests.reliability.fault_table reliability_run && exit $$status

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# The variable silences an announcement of mkdocs-material about a later mkdocs; it is not about these pages.
docs: $(VENV)-docs/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/python -m mkdocs build --strict

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements.lock pyproject.toml setup.py
	@echo "== Installing into $(VENV) (PyTorch and NeMo, 2.4 GB on disk with a CPU build of PyTorch, more with a CUDA one; a few minutes)"
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 13) or sys.exit("Python 3.11 or 3.12 needed, $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep ^torch== requirements.txt)"
	@# Two at a time and without the resolver, in half the time, without warnings of what the other has half written;
	@# where that does not fit the machine, pip decides.
	grep -v '^#' requirements.lock | xargs -P 2 -n 47 $(PIP) --quiet --no-deps && $(BIN)/python -m pip check || $(PIP) -r requirements.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-deploy: $(VENV)/.installed requirements-deploy.txt
	$(PIP) --no-deps -r requirements-deploy.txt
	@touch $@

$(VENV)-docs/.installed: requirements-docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

clean:
	rm -rf quickstart_run reliability_run site .pytest_cache .ruff_cache .hypothesis
