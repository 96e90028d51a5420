# Needs Python 3.11 or 3.12 and PyPI. `make test` and `make demo` set up .venv on first use.
SUPPORTED := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c '$(SUPPORTED)' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin
RUNS ?= runs/demo
PROCESSES ?= auto

.PHONY: setup test check lint types demo clean

setup: .venv/ready

.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# One file's tests stay in one process, where they share what they set up; one thread each, since there is a process a core.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: setup
	$(BIN)/mypy

check: lint types test

# The method on the miniature: drawn smears, or real WBCAtt images with `make demo DATA=path/to/wbcatt`.
demo: setup
	$(BIN)/python -m ift_components.smears $(RUNS)/contact_sheet.png
	$(BIN)/tune run ift_table_recipe --config demo.yaml output_dir=$(RUNS) \
		$(if $(DATA),'~datasets.smears' datasets.wbcatt.root=$(DATA),'~datasets.wbcatt')

clean:
	rm -rf .venv runs
