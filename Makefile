# Everything runs in .venv, which is made from constraints.txt; only Python 3.10+ and make are needed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test bench soak lint ui clean

demo: $(READY)
	$(BIN)/lora-trainer demo --output demo-output

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

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

ui: $(READY)
	$(BIN)/lora-trainer ui $(ARGS)

clean:
	rm -rf .venv demo-output

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one with: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[ui,optimizers,test]'
	@touch $@
