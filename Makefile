# Needs Python >= 3.11 and make. Everything is installed into .venv at the versions of constraints.txt.

PYTHON ?= python3
PYTEST_ARGS ?=

# One thread a process: threads of two tests side by side would wait for each other.
PARALLEL = --numprocesses=auto --maxprocesses=8 --dist=worksteal

VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip -qq --disable-pip-version-check
PINNED = $(PIP) install --constraint constraints.txt

.PHONY: help demo test test-slow test-faults test-fuzz test-browser check format mnist emoji classifier compare-methods bench bench-check site install clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed-train ## see it work: a short tour of the toolkit on the CPU
	@$(BIN)/unistep demo

test: $(VENV)/.installed-dev ## run the fast tests, a process a core (PYTEST_ARGS="..." is passed on)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev ## run the slow tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m slow $(PYTEST_ARGS)

test-faults: $(VENV)/.installed-dev ## kill, damage and crowd out runs in training, and print what became of them
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m faults $(PYTEST_ARGS) tests/faults

test-fuzz: $(VENV)/.installed-dev ## run two thousand malformed inputs, and print them by kind
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m fuzz $(PYTEST_ARGS) tests/fuzz

test-browser: $(VENV)/.installed-dev ## try the pages of `unistep serve` and of exports in Chromium (skipped where there is none)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL:worksteal=loadfile) -m "browser and not slow" $(PYTEST_ARGS) tests/serving/test_page.py tests/exporting/web/test_web_page.py

check: $(VENV)/.installed-dev ## lint, formatting, types, import layers, spelling
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "formatting differs: run 'make format'" >&2; exit 1; }
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/codespell

format: $(VENV)/.installed-dev ## format the code and sort the imports
	@$(BIN)/ruff check --quiet --fix --select I .
	@$(BIN)/ruff format .

mnist: $(VENV)/.installed-train ## make the MNIST data set
	@$(BIN)/python scripts/make_mnist.py

emoji: $(VENV)/.installed-train ## make the emoji data set
	@$(BIN)/python scripts/make_emoji.py

classifier: $(VENV)/.installed-train ## train the MNIST classifier that the metrics use
	@$(BIN)/python scripts/train_mnist_classifier.py

compare-methods: $(VENV)/.installed-train ## train every method on MNIST and write the table in docs/results.md (an hour)
	@$(BIN)/python benchmarks/compare_methods.py --write docs/results.md

bench: $(VENV)/.installed-dev ## time the start, sampling, runtimes and evaluation beside peers; write docs/performance.md
	@$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

bench-check: $(VENV)/.installed-dev ## time the same, and fail where a ratio fell by more than 10% on this processor
	@$(BIN)/python benchmarks/bench.py --check $(BENCH_ARGS)

site: $(VENV)/.installed-docs ## make the documentation as a site, with models that run in the browser (SITE_ARGS="--model ...")
	@$(BIN)/python scripts/make_site.py $(SITE_ARGS)

install: $(VENV)/.installed-dev ## install everything into .venv, and do no more

clean: ## remove .venv, caches and build outputs, site/ too (runs/ stays)
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# torch is installed first and alone: whichever build of the pinned version is nearest (or was put into
# .venv by hand) is taken, and no later resolution replaces it.
$(VENV)/.installed-base: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("unistep needs Python >= 3.11; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@echo "installing into $(VENV) (minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PINNED) torch
	@$(PINNED) hatchling editables
	@touch $@

$(VENV)/.installed-train: $(VENV)/.installed-base pyproject.toml
	@$(PINNED) --no-build-isolation --editable '.[train,evaluate,effnet,serve]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-base pyproject.toml
	@$(PINNED) --no-build-isolation --editable '.[train,evaluate,effnet,onnx,openvino,video,serve,dev]'
	@touch $@ $(VENV)/.installed-train

$(VENV)/.installed-docs: $(VENV)/.installed-base pyproject.toml
	@$(PINNED) --no-build-isolation --editable '.[onnx,docs]'
	@touch $@
