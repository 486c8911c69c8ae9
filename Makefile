# Two commands do all the set-up: `make demo` shows Danlu at work, `make test` tests it. Both make .venv first.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PROCESSES ?= $(shell nproc 2>/dev/null || echo 2)
BIN = .venv/bin
PYTEST_ARGS ?=

.PHONY: help install demo test cluster cluster-down check docs lock benchmarks soak clean

help:
	@echo "make install     Danlu in .venv, nothing more"
	@echo "make demo        the platform at work: two trainings, one of them killed and resumed"
	@echo "make test        the tests that this machine can run"
	@echo "make cluster     as root: a Kubernetes cluster of two nodes on this machine, for the tests (make cluster-down)"
	@echo "make check       style, types, generated documents"
	@echo "make docs        generate docs/reference and the roles of the Helm chart again"
	@echo "make lock        resolve requirements/*.txt and the environments' locks again"
	@echo "make benchmarks  measure; prints the figures of docs/reference/performance.md"
	@echo "make soak        the simulation with 2,000 seeds, 10,000 traces, 100,000 histories of the ledger, every attack on every text"
	@echo "make clean       remove .venv and what tests and checks left"

install: .venv/installed

.venv/installed: pyproject.toml requirements/dev.txt
	@test -n "$(PYTHON)" || { echo "Danlu needs Python 3.11 or later: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "on Debian: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: install
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

test: install
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal $(PYTEST_ARGS)

cluster: install
	$(BIN)/python -m tests.kubernetes.cluster build
	$(BIN)/python -m tests.kubernetes.cluster up

cluster-down: install
	$(BIN)/python -m tests.kubernetes.cluster down

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/python docs/generate.py
	$(BIN)/python deploy/generate.py

lock: install
	$(BIN)/uv pip compile -q pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-header --no-emit-index-url -o requirements/dev.txt
	# what the server's image installs: the very versions that are tested here
	$(BIN)/uv pip compile -q pyproject.toml --extra kubernetes --extra s3 --group build --constraint requirements/dev.txt \
		--universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url -o requirements/server.txt
	$(BIN)/python -m danlu.environments.relock

benchmarks: install
	$(BIN)/python -m benchmarks

soak: install
	DANLU_SEEDS=2000 $(BIN)/python -m pytest -n $(PROCESSES) tests/simulation
	DANLU_TRACES=10000 $(BIN)/python -m pytest -n $(PROCESSES) tests/simulation/test_traces.py tests/unit/test_scheduler_promises.py
	DANLU_HISTORIES=100000 $(BIN)/python -m pytest tests/unit/test_ledger.py
	DANLU_ATTACKS=all $(BIN)/python -m pytest -n $(PROCESSES) tests/api/attacks

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
