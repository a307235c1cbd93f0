# Everything runs in .venv, which is made from constraints.txt; only Python 3.10+ and make are needed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# The core on the newest packages, which newer WebUIs have; the page needs gradio 3.41.2 and does not go with them,
# nor do the tests that ask REST.
NEWEST := -c constraints-newest.txt
NEWEST_BIN := .venv-newest/bin
NEWEST_READY := .venv-newest/.ready
CORE := $(addprefix tests/,dataset model diffusion network runs hosts training validation jobs cli demo)
# The page's scripts are linted by oxlint, a program that a Python package brings; its rules stand in .oxlintrc.json.
SCRIPTS := --report-unused-disable-directives --deny-warnings javascript

.PHONY: demo test test-newest bench gpu soak lint ui clean

demo: $(READY)
	$(BIN)/lora-trainer demo --output demo-output

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/oxlint $(SCRIPTS)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-newest: $(NEWEST_READY)
	$(NEWEST_BIN)/python -m pytest -n 2 --dist loadfile $(if $(ARGS),$(ARGS),$(CORE) $(addprefix --ignore=tests/,cli/test_damaged.py jobs/test_blocks.py))

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

soak: $(READY)
	$(BIN)/python -m tools.soak kills
	$(BIN)/python -m tools.soak kills --webui
	$(BIN)/python -m tools.soak fuzz
	$(BIN)/python -m tools.soak beside
	$(BIN)/python -m tools.soak many
	$(BIN)/python -m tools.soak events

lint: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy
	$(BIN)/oxlint --fix $(SCRIPTS)

ui: $(READY)
	$(BIN)/lora-trainer ui $(ARGS)

clean:
	rm -rf .venv .venv-newest demo-output

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one with: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[ui,optimizers,test]'
	@touch $@

$(NEWEST_READY): pyproject.toml constraints-newest.txt
	test -x $(NEWEST_BIN)/python || $(PYTHON) -m venv .venv-newest
	$(NEWEST_BIN)/python -m pip install -q $(NEWEST) torch
	$(NEWEST_BIN)/python -m pip install -q $(NEWEST) -e '.[optimizers]' peft pytest pytest-xdist hypothesis
	@touch $@
