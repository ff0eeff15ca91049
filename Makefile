PYTHON ?= python3
VENV ?= .venv
# Which tests: `make test TESTS=tests/test_imports.py`, `make test PYTEST_ARGS='-x -k fork'`.
TESTS ?=
PYTEST_ARGS ?=
# How `make stress` is told otherwise: `make stress MINUTES=20 ONLY=power_loss,soak SEED=7`.
MINUTES ?=
ONLY ?=
SEED ?=

# What `make test-all` tries, and what it installs in each. dspy is large, so it is left out unless
# asked for: `make test-all ALL_EXTRAS=dspy,test ALL_MARKS='not stress'`.
VERSIONS ?= 3.10 3.11 3.12 3.13
ALL_EXTRAS ?= test
ALL_MARKS ?= not stress and not dspy

BIN := $(VENV)/bin
CORE := $(VENV)/.installed-core
TEST := $(VENV)/.installed-test
DEV := $(VENV)/.installed-dev
PIP := -m pip --disable-pip-version-check --quiet
comma := ,
ALL_STAMP := .installed-$(subst $(comma),-,$(ALL_EXTRAS))
SOURCES = registry_store writer readers tests benchmarks

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all pythons check format bench bench-quick stress venv clean $(VERSIONS:%=test-%)

help: ## this list
	@awk -F ':.*## ' '/^[a-z%.0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(CORE) ## a guided tour of a registry of your own
	$(BIN)/dspy-registry demo

test: $(TEST) ## the tests, dspy included
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(TESTS)

check: $(DEV) ## format, lint, types, tests: what CI runs
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy registry_store writer readers benchmarks
	$(MAKE) test

format: $(DEV) ## write the code the way check wants it
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: $(DEV) ## every benchmark, against every store that is installed
	$(BIN)/python -m benchmarks

bench-quick: $(DEV) ## the same benchmarks, a few seconds each
	$(BIN)/python -m benchmarks --quick

stress: $(TEST) ## the fault suite, for as long as its counts take, and the tests that take minutes
	$(BIN)/python -m tests.stress $(MINUTES:%=--minutes %) $(ONLY:%=--only %) $(SEED:%=--seed %)
	$(BIN)/python -m pytest -m stress --timeout 1800 $(PYTEST_ARGS) $(TESTS)

test-all: ## the tests without dspy, on every CPython 3.10 to 3.13 there is
	@found=$$($(MAKE) --silent pythons); \
	test -n "$$found" || { echo "none of Python $(VERSIONS) was found" >&2; exit 1; }; \
	echo "found Python:" $$found; \
	for version in $$found; do $(MAKE) "test-$$version" || exit 1; done

# A pyenv shim on PATH may only print a hint, so a candidate counts once it has told its version.
find_python = $$(root=$$(pyenv root 2>/dev/null || echo "$${PYENV_ROOT:-}"); \
	for candidate in python$(1) "$$root"/versions/$(1).*/bin/python; do \
		told=$$("$$candidate" -c 'import platform as p; print(p.python_implementation(), p.python_version())' \
			2>/dev/null) || continue; \
		case "$$told" in "CPython $(1)."*) echo "$$candidate"; break;; esac; \
	done)

pythons: # the versions that test-all finds
	@$(foreach version,$(VERSIONS),test -z "$(call find_python,$(version))" || echo $(version);)

$(VERSIONS:%=test-%): test-%: .venv-%/$(ALL_STAMP)
	.venv-$*/bin/python -m pytest -m "$(ALL_MARKS)" -o cache_dir=.pytest_cache/$* \
		$(PYTEST_ARGS) $(TESTS)

$(VERSIONS:%=.venv-%/$(ALL_STAMP)): .venv-%/$(ALL_STAMP): pyproject.toml
	@python="$(call find_python,$*)"; \
	test -n "$$python" || { echo "Python $* was not found" >&2; exit 1; }; \
	test -x $(@D)/bin/python || "$$python" -m venv $(@D)
	$(@D)/bin/python $(PIP) install -e '.[$(ALL_EXTRAS)]'
	@touch $@

venv: $(DEV) ## .venv with everything a developer needs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"Python 3.10 or newer is needed, this is " + sys.version + ": make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP) install -e '.[dspy]'
	@touch $@

$(TEST): pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP) install -e '.[dspy,test]'
	@touch $(CORE) $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP) install -e '.[dspy,test,lint,bench]'
	$(BIN)/python $(PIP) install -e '.[bench-compiled]' \
		|| echo "UltraDict could not be built (it needs a C compiler): benchmarks leave it out"
	@touch $(CORE) $(TEST) $@

clean: ## remove what make made
	rm -rf $(VENV) $(VERSIONS:%=.venv-%) build dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find registry_store writer readers tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
