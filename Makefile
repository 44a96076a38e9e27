# Two commands for a newcomer: `make demo` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.ready-demo
DEMO_OUT ?= runs/demo
RIVALS ?= $(wildcard .venv-rivals/bin/python)
ARGS ?=

.PHONY: demo test test-fleet check format bench rivals claims setup clean

setup: $(READY)

$(READY): EXTRA := test
$(DEMO_READY): EXTRA := lab

$(READY) $(DEMO_READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; a few minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Potluck needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch>=2.6"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRA)]"
	@touch $@

demo: $(DEMO_READY)  ## twelve unequal devices train on real data: five systems, FedAvg and training alone, one table
	$(BIN)/potluck compare recipes/demo.toml --methods local,fedavg,fedode,feddeq,fedhm,feddlr,fedh2l --out $(DEMO_OUT)

test: $(READY)  ## the tests
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

test-fleet: $(READY)  ## peers, and devices behind a server, in processes of their own, over sockets
	$(BIN)/python -m pytest -q -m fleet

check: $(READY)  ## lint, format, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Potluck and its rivals in turn, into docs/performance.md; ARGS="--quick --only B1,B5"
	$(BIN)/python benchmarks/speed/contest --rivals "$(RIVALS)" $(ARGS)

rivals:  ## an environment with what make bench measures against
	$(PYTHON) -m venv .venv-rivals
	.venv-rivals/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/speed/requirements-rivals.txt

claims: $(READY)  ## runs what the claims rest on and rewrites their table in docs/results.md: hours, resumable
	$(BIN)/python benchmarks/claims/claims.py

clean:
	rm -rf $(VENV) runs
