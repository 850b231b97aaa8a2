# `make demo` and `make test` set up what they need: a .venv beside this file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-browser test-tools test-faults test-ray test-oldest test-newest test-vllm lint format bench bench-gpu bench-vllm bench-learning notebook figures docs site wheel-smoke clean help

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# With a GPU, pip chooses the versions; without one, they are those that the tests were run with.
# The package index decides whether that is a CPU or a CUDA build of torch: constraints.txt does not.
CONSTRAINTS := $(shell nvidia-smi >/dev/null 2>&1 || echo -c constraints.txt)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS)

# Marks: what running needs, and what developing and the site need besides.
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
SITE := $(VENV)/.ready-site

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[plot]'
	touch $@

# An older pip knows no dependency groups.
GROUPS_PIP := 'pip>=25.1'

$(DEV): $(READY)
	$(PIP) --upgrade $(GROUPS_PIP)
	$(PIP) -e . --group dev
	touch $@

$(SITE): $(READY)
	$(PIP) --upgrade $(GROUPS_PIP)
	$(PIP) -e . --group docs
	touch $@

# One process per core, each with one thread of torch: two would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist loadfile

demo: $(READY)  ## the whole loop on the embedded world: beams, sft, generate, train, evaluate
	$(BIN)/pointer-rl run --output-dir demo --test-opt split=test --test-limit 200 --test-shots 1..3 \
	    --max-calls 14300

test: $(DEV)  ## the default suite, under six minutes on two cores
	$(PYTEST) -m "not slow"

test-all: $(DEV)  ## the default suite with the slow tests
	$(PYTEST)

# A browser, for the report: Debian's chromium, driven by puppeteer from npm.
build/browser/.ready:
	command -v chromium >/dev/null || apt-get install --yes --no-install-recommends chromium
	npm install --silent --no-audit --no-fund --prefix build/browser puppeteer-core@24 axe-core@4
	touch $@

test-browser: $(DEV) build/browser/.ready  ## the report in headless Chromium (needs node; installs chromium)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/browser

# The tools that we write for, over the packages of .venv, in which they could change versions.
TOOLS := build/tools
$(TOOLS)/.ready: $(DEV)
	$(BIN)/python -m venv $(TOOLS)
	where='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	    echo "import site; site.addsitedir('$$($(BIN)/python -c "$$where")')" \
	    >"$$($(TOOLS)/bin/python -c "$$where")/venv.pth"
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade $(GROUPS_PIP)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[inspect,tensorboard,trackio]' --group tools
	touch $@

test-tools: $(TOOLS)/.ready  ## what we write for Inspect, Datasette, TensorBoard and Trackio, with these tools themselves
	OMP_NUM_THREADS=1 $(TOOLS)/bin/python -m pytest -q tests/tools

test-faults: $(DEV)  ## attacks on every command: kills, full disks, damaged files, failing servers (20 minutes; see docs)
	$(BIN)/python tests/e2e/campaign.py "$$(mktemp -d)/campaign" --kills 30 --fresh 2 --disks 6 --damages 25
	POINTER_RL_TRIALS=1000 POINTER_RL_FUZZ=10000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q \
	    tests/e2e/test_train_kills.py tests/e2e/test_server_faults.py tests/fuzz

test-ray: $(DEV)  ## the executor ray on clusters whose workers, nodes and drivers are killed (5 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s tests/with_ray

# The suites of what runs a model here, in .venv-oldest with the oldest transformers that
# pyproject.toml allows (whose own warnings are no faults of ours), or in .venv-newest.
PIN_oldest = $(shell sed -n 's/.*"\(transformers\)>=\(.*\)",/\1==\2/p' pyproject.toml)
PIN_newest = transformers
LOCAL_SUITES = $(foreach each,qwen2vl hf_backend hf_loading flamingo clip,tests/plugins/test_$(each)*.py)

.venv-%/.ready: pyproject.toml constraints.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --upgrade $(GROUPS_PIP)
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -e . --group dev \
	    '$(PIN_$*)' $$(grep '^torch=' constraints.txt)
	touch $@

test-oldest:  ## the model suites on the oldest transformers that we allow, in its own environment
test-newest:  ## the same on the newest
test-oldest test-newest: test-%: .venv-%/.ready
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -q --numprocesses auto --maxprocesses 8 \
	    --dist loadfile -m "not slow" -W ignore::FutureWarning $(LOCAL_SUITES)

# An environment of its own: vLLM pins another version of transformers. Warnings are vLLM's.
VLLM := .venv-vllm
$(VLLM)/.ready: pyproject.toml tests/with_vllm/setup.sh
	PYTHON=$(PYTHON) sh tests/with_vllm/setup.sh
	touch $@

test-vllm: $(VLLM)/.ready  ## the vllm backend, and openai against a server, with vLLM's CPU build
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -q -W default tests/with_vllm tests/plugins/test_vllm.py

bench-vllm: $(VLLM)/.ready  ## parity and speed of vLLM, in this process and as a server
	OMP_NUM_THREADS=1 $(VLLM)/bin/python tests/benchmarks/bench_vllm.py
	OMP_NUM_THREADS=1 $(VLLM)/bin/python tests/benchmarks/bench_vllm.py --server

lint: $(DEV)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)  ## benchmarks, each against a baseline in the same run
	@for each in tests/benchmarks/bench_*.py; do echo "== $$each"; $(BIN)/python $$each || exit 1; done

bench-gpu: $(DEV)  ## tests and benchmark of the qwen2vl engines on a GPU (minutes)
	$(BIN)/python -m pytest -q tests/gpu
	$(BIN)/python tests/benchmarks/gpu.py

bench-learning: $(DEV)  ## what learning is worth on glyphs, three worlds (hours; goes on where it stopped)
	$(BIN)/python tests/benchmarks/learning.py runs/learning

notebook: $(DEV)  ## run the tutorial's notebook and keep what it shows
	OMP_NUM_THREADS=1 $(BIN)/python docs/run_notebook.py

# Of learning.png and cost.png the script says where they come from.
figures: $(READY) build/browser/.ready  ## the images of the pages, from what make demo left
	$(BIN)/python docs/make_figures.py demo

docs: $(READY)  ## write the generated reference pages
	$(BIN)/python docs/generate_reference.py

site: $(SITE)  ## build the documentation's site into site/, links checked
	$(BIN)/python -m sphinx -E -W --keep-going --quiet -d build/doctrees docs site

wheel-smoke: $(DEV)  ## build the wheel, install it elsewhere, run it from another folder
	sh tests/wheel_smoke.sh

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest $(VLLM) dist build site demo .pytest_cache .mypy_cache .ruff_cache
