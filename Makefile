# Every target sets up what it needs in .venv, on a bare machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA_DIR ?= var
SAMPLE := --feed replay --streaming_symbols AAPL MSFT GOOGL --replay_start 2010-03-01 --replay_end 2013-03-01

export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: run serve test lint format bench schema clean

run: $(VENV)/.ready ## replay three years of history through the whole loop, print the summary, exit
	$(BIN)/python -m monitoring.production_orchestrator $(SAMPLE) --data_dir $(DATA_DIR) --exit_when_done

serve: $(VENV)/.ready ## the same, and stay up
	$(BIN)/python -m monitoring.production_orchestrator $(SAMPLE) --data_dir $(DATA_DIR)

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks

schema: $(VENV)/.ready
	$(BIN)/python -m data_pipeline.library.migrations > schema.sql

clean: ## the environment and caches; data stays
	rm -rf $(VENV) .bench-peers .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; set PYTHON=...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
