# make train | test | test-faults | lint | bench: each sets up what it needs on a fresh machine (Python >= 3.11, a C++ compiler).
PYTHON ?= python3
VENV ?= .venv
EXAMPLE ?= pong-ez
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := setup.py pyproject.toml constraints.txt $(foreach kind,hpp cpp pyx,$(wildcard ctree/*.$(kind) cframes/*.$(kind)))
# What Cython writes; depending on it would rebuild for ever.
SOURCES := $(filter-out ctree/cytree.cpp cframes/cyframes.cpp,$(SOURCES))

.PHONY: train test test-long test-faults lint bench clean
.DELETE_ON_ERROR:

# The packages of DMControl and MiniGrid are installed only for those who train on them.
TRAIN := .train$(if $(filter dmc-%,$(EXAMPLE)),-dmc)$(if $(filter minigrid-%,$(EXAMPLE)),-minigrid)

train: $(VENV)/$(TRAIN)
	$(BIN)/rllib train file tuned_examples/$(EXAMPLE).yaml $(ARGS)

# Two processes: tests of actors wait much of their time. A file is one process's, for what its tests share; in their own
# order the files that take longest come first. What is imported is compiled once, not in each of some hundred processes.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not long" --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-long: $(VENV)/.test-long
	$(BIN)/python -m pytest -m long $(ARGS)

# Every fault the tests can provoke, the long ones too; what they measured is kept.
test-faults: $(VENV)/.test
	FAULTS_REPORT=benchmarks/results/faults.txt $(BIN)/python -m pytest tests/integration/faults $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

# One stamp per set of extras: the tests' tools are not needed to train.
$(VENV)/.train: EXTRAS := atari
$(VENV)/.train-dmc: EXTRAS := atari,dmc
$(VENV)/.train-minigrid: EXTRAS := atari,minigrid
$(VENV)/.test: EXTRAS := atari,dmc,minigrid,test
$(VENV)/.test-long: EXTRAS := atari,dmc,test,test-long
$(VENV)/.lint: EXTRAS := atari,lint
$(VENV)/.bench: EXTRAS := atari,test,bench
$(VENV)/.train $(VENV)/.train-dmc $(VENV)/.train-minigrid $(VENV)/.test $(VENV)/.test-long $(VENV)/.lint $(VENV)/.bench: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info rllib_efficientzero/*.so ctree/cytree.cpp cframes/cyframes.cpp
