# Everything from a bare clone: each target makes what it needs, in a virtual environment inside the
# clone, and nothing is installed twice. `make help` lists the targets.

# What you may set, as in `make test TORCH=torch==2.13.0`:
PYTHON ?= python3
VENV ?= .venv
# What pip installs as PyTorch. Changing it reinstalls.
TORCH ?= torch
# Only tests use it; empty leaves it out (for a torch that has no torchvision).
TORCHVISION ?= torchvision
# More arguments for pytest, and for the benchmarks.
ARGS ?=
# Processes that share the tests; they are small, and use one thread each. 0 runs them in one process.
JOBS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))
# Where gpu-check writes.
OUT ?= benchmarks/results/gpu-check

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

BIN := $(VENV)/bin
DONE := $(VENV)/.done
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Says every second that something silent still runs.
TOLD := scripts/told.sh
# One stamp for each value of TORCH: "torch==2.13.0" is torch--2.13.0.
TORCH_DONE := $(DONE)/$(subst :,-,$(subst /,-,$(subst >,-,$(subst <,-,$(subst =,-,$(subst $() $(),_,$(TORCH)))))))
NATIVE_SOURCES := setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu \
	csrc/*/*.cuh csrc/*/*.inc)

# Without a GPU the targets below would compile CUDA kernels for nothing: minutes of a newcomer's
# time. `make build VAE_FAST_BUILD=auto` compiles them all the same, as a plain `pip install .` does
# wherever there is an nvcc, and `make verify` proves that they build and load.
ifeq ($(shell command -v nvidia-smi > /dev/null 2>&1 && nvidia-smi -L 2> /dev/null),)
export VAE_FAST_BUILD ?= cpu
endif

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Tests that are skipped if another library is not installed.
CLIENT_TESTS = tests/patches tests/loops tests/hub tests/test_distributions.py

PYTEST = $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

# --- what people do -------------------------------------------------------------------------------

# The run folder: runs/first, or the next number where that is taken.
.PHONY: train
train: $(DONE)/train $(DONE)/native ## train a VAE on real images, compare with plain PyTorch, draw pictures
	@run=runs/first; n=1; while [ -e "$$run" ]; do n=$$((n + 1)); run=runs/first-$$n; done; set -x; \
	$(BIN)/vae-fast train --model vae --data fashion10k --epochs 10 --out "$$run" --compare-reference

.PHONY: test
test: $(DONE)/test $(DONE)/native ## prove the kernels equal to plain PyTorch (the quick tests)
	$(PYTEST) -m "not slow and not cuda" $(ARGS)

.PHONY: test-slow
test-slow: $(DONE)/test $(DONE)/native ## the tests that take minutes
	$(PYTEST) -m "slow and not cuda" $(ARGS)

.PHONY: test-clients
test-clients: $(DONE)/clients $(DONE)/native ## inside pythae, scvi-tools, diffusers, Lightning and the rest
	$(PYTEST) $(CLIENT_TESTS) $(ARGS)
	$(PYTEST) tests/test_docs.py -k "runs_from_top and (clients or pythae or scvi or diffusers or loops or export)"

.PHONY: fuzz
fuzz: $(DONE)/test $(DONE)/native ## random calls of everything against float64, and damaged files
	$(BIN)/python -W ignore -m tests.fuzz $(ARGS)

.PHONY: bench
bench: $(DONE)/bench $(DONE)/native ## measure every op against eager PyTorch and torch.compile
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: experiments
experiments: $(DONE)/train $(DONE)/native ## measure again what the models are said to do, and make its page
	$(BIN)/python -m experiments $(or $(ARGS),all)
	$(BIN)/python -m experiments page

.PHONY: gallery
gallery: $(DONE)/train $(DONE)/native ## train every example and make the gallery of the docs
	$(BIN)/python -m experiments gallery $(ARGS)

.PHONY: docs
docs: $(DONE)/docs ## build the docs as a site, build/site/index.html; a broken link or anchor fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q
	@echo build/site/index.html

.PHONY: lint
lint: $(DONE)/lint $(DONE)/test ## style, types, and that the kernels stay free of torch's headers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z 'csrc/*' | xargs -0 $(BIN)/clang-format --dry-run -Werror
	scripts/check_includes.sh
	PYTHON="$(BIN)/python" scripts/check_tidy.sh
	$(BIN)/mypy

# From the sdist, so that a wheel proves that nothing is missing from it.
.PHONY: dist
dist: $(DONE)/dist $(TORCH_DONE) ## an sdist and a wheel in dist/, which passes the quick tests in an empty environment
	rm -rf dist
	@echo "building: some minutes; what is said goes to build/dist.log"
	@$(TOLD) "building" sh -c '$(BIN)/python -m build --no-isolation > build/dist.log 2>&1' || \
		{ tail -n 40 build/dist.log; exit 1; }
	@ls -lh dist
	PYTHON="$(PYTHON)" NEW_TORCH="$(TORCH)" scripts/check_dist.sh dist/*.whl

.PHONY: gpu-check
gpu-check: ## on a machine with a GPU: build, test, sanitize and measure with its own python3
	PYTHON="$(PYTHON)" scripts/gpu_check.sh "$(OUT)"

.PHONY: ptx-check
ptx-check: $(DONE)/test ## the CUDA kernels' tests on what nvcc made of them, run on the host
	$(BIN)/python -m tests.ptx --jobs $(JOBS) $(ARGS)

.PHONY: sanitize
sanitize: $(DONE)/test ## the CPU kernels under ASan with UBSan and under TSan, by the op tests
	PYTHON="$(abspath $(BIN)/python)" scripts/sanitize_cpu.sh $(ARGS)

.PHONY: coverage
coverage: $(DONE)/coverage ## the lines of Python and C++ that the quick tests run: build/coverage
	PYTHON="$(abspath $(BIN)/python)" scripts/coverage.sh -n $(JOBS) $(ARGS)

.PHONY: build
build: $(DONE)/native ## compile the kernels in place

.PHONY: verify
verify: ## the checks of building and installing (scripts/check_*.sh); they download several torches
	PYTHON="$(PYTHON)" NEW_FROM="$(if $(wildcard $(DONE)/torch),$(VENV))" scripts/verify_builds.sh

.PHONY: aarch64-check
aarch64-check: ## the CPU kernels' accuracy on aarch64, under qemu; downloads a torch
	PYTHON="$(PYTHON)" NEW_TORCH="$(TORCH)" scripts/check_aarch64.sh || [ $$? = 77 ]

.PHONY: clean
clean: ## remove what was compiled; the environment and your runs stay
	rm -rf build dist *.egg-info vae_fast/_C*.so $(DONE)/native

.PHONY: distclean
distclean: clean ## remove the environment as well
	rm -rf $(VENV)

# --- the environment ------------------------------------------------------------------------------

$(DONE)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	    "vae_fast needs Python 3.10 or newer, and $(PYTHON) is %d.%d: make ... PYTHON=python3.11" \
	    % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(DONE) && touch $@

# Pinned: a new version brings new rules, and those are taken on purpose. mypy reads the types of what
# the tests need, torch's above all.
$(DONE)/lint: $(DONE)/venv Makefile
	$(PIP) install -q "ruff==0.17.6" "mypy==2.4.1" "clang-format==23.1.5" "clang-tidy==23.1.4" types-PyYAML types-tqdm
	touch $@

$(DONE)/coverage: $(DONE)/test
	$(PIP) install -q "coverage==7.17.5" "gcovr==8.8"
	touch $@

$(DONE)/dist: $(DONE)/venv
	@mkdir -p build
	$(PIP) install -q "build==1.6.1"
	touch $@

# Pinned in scripts/requirements-docs.txt, with the tools that check links and read docstrings. No torch
# is needed.
$(DONE)/docs: $(DONE)/venv scripts/requirements-docs.txt
	$(PIP) install -q -r scripts/requirements-docs.txt
	touch $@

$(TORCH_DONE): $(DONE)/venv
	@echo "installing $(TORCH): several GB are downloaded and unpacked, which takes minutes"
	@$(TOLD) "installing $(TORCH)" $(PIP) install -q "$(TORCH)" "setuptools>=77" wheel "pybind11>=2.13" ninja numpy
	rm -f $(DONE)/torch* && touch $@

# The package itself is installed editable and without its kernels: those are compiled below, where
# only what changed is compiled again.
INSTALL = @VAE_FAST_BUILD=off $(TOLD) "installing what $(@F) needs" $(PIP) install -q --no-build-isolation

$(DONE)/train: $(TORCH_DONE) pyproject.toml Makefile
	$(INSTALL) -e ".[train]"
	touch $@

$(DONE)/test: $(TORCH_DONE) pyproject.toml Makefile
	$(INSTALL) "$(TORCH)" $(TORCHVISION) -e ".[test]"
	touch $@

# TORCH is named again, so that pip keeps the torch that is installed.
$(DONE)/clients: $(DONE)/test pyproject.toml Makefile
	$(INSTALL) "$(TORCH)" -e ".[clients]"
	touch $@

$(DONE)/bench: $(TORCH_DONE) pyproject.toml Makefile
	$(INSTALL) -e ".[bench,train]"
	touch $@

# What the compiler says goes to a log, and is shown where it matters.
$(DONE)/native: $(TORCH_DONE) $(NATIVE_SOURCES)
	@mkdir -p build
	@echo "compiling the kernels: about a minute; the compiler's words go to build/native.log"
	@$(TOLD) "compiling" sh -c '$(BIN)/python setup.py -q build_ext --inplace > build/native.log 2>&1' || \
		{ cat build/native.log; exit 1; }
	@grep "^vae_fast: " build/native.log
	touch $@
