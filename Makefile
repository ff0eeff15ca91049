PYTHON ?= python3
VENV ?= .venv
# Which tests: `make test TESTS=tests/test_imports.py`, `make test PYTEST_ARGS='-x -k fork'`.
TESTS ?=
PYTEST_ARGS ?=
# Processes that run tests side by side. Much of a test is waiting for other processes, so more than there are cores.
WORKERS ?= 3
# How `make stress` is told otherwise: `make stress MINUTES=20 ONLY=power_loss,soak SEED=7`.
MINUTES ?=
ONLY ?=
SEED ?=

# What `make test-all` tries, and what it installs in each. dspy is large, so it is left out unless
# asked for: `make test-all ALL_EXTRAS=dspy,test ALL_MARKS='not stress and not full'`.
VERSIONS ?= 3.10 3.11 3.12 3.13
ALL_EXTRAS ?= test
ALL_MARKS ?= not stress and not full and not dspy

BIN := $(VENV)/bin
CORE := $(VENV)/.installed-core
TEST := $(VENV)/.installed-test
DEV := $(VENV)/.installed-dev
PIP := -m pip --disable-pip-version-check --quiet
PINNED := $(PIP) install -c constraints.txt
PYTEST := -m pytest -n $(WORKERS) --dist loadgroup
comma := ,
ALL_STAMP := .installed-$(subst $(comma),-,$(ALL_EXTRAS))
# The rooms are links in dspy_registry, which ruff and coverage do not follow: they are given the real folders.
ROOMS = registry_store writer readers
SOURCES = dspy_registry $(ROOMS) tests benchmarks tools examples
# Where `make test-wheel` runs tests: no other folder of the checkout is beside them.
WHEEL_TESTS := build/wheel-tests

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-full test-all test-latest test-lowest test-wheel pythons check format coverage constraints \
	bench bench-quick bench-cluster stress venv clean $(VERSIONS:%=test-%)

help: ## this list
	@awk -F ':.*## ' '/^[a-z%.0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(CORE) ## a guided tour of a registry of your own
	$(BIN)/dspy-registry demo

test: $(TEST) ## the tests, dspy included
	$(BIN)/python $(PYTEST) $(PYTEST_ARGS) $(TESTS)

test-full: $(TEST) ## the same and the slower ones: what CI runs
	$(BIN)/python $(PYTEST) -m "not stress" $(PYTEST_ARGS) $(TESTS)

check: $(DEV) ## format, lint, types
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy -p dspy_registry -p benchmarks
	$(BIN)/mypy tools/constraints.py tools/lowest.py

coverage: $(TEST) ## which statements the tests run
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run $(PYTEST) $(PYTEST_ARGS) $(TESTS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

format: $(DEV) ## write the code the way check wants it
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: $(DEV) ## every benchmark, against every store that is installed
	$(BIN)/python -m benchmarks

bench-quick: $(DEV) ## the same benchmarks, a few seconds each
	$(BIN)/python -m benchmarks --quick

bench-cluster: $(DEV) ## what a cluster costs, beside bare etcd
	$(BIN)/python -m tests.support.cluster_figures

stress: $(TEST) ## the fault suite, for as long as its counts take, and the tests that take minutes
	$(BIN)/python -m tests.stress $(MINUTES:%=--minutes %) $(ONLY:%=--only %) $(SEED:%=--seed %)
	$(BIN)/python -m pytest -m stress --timeout 1800 $(PYTEST_ARGS) $(TESTS)

test-latest: | .venv-latest/bin/python ## the tests on the newest release of everything
	.venv-latest/bin/python $(PIP) install --upgrade --upgrade-strategy eager -e '.[dspy,test,servers]'
	.venv-latest/bin/python $(PYTEST) $(PYTEST_ARGS) $(TESTS)

test-lowest: .venv-lowest/.installed ## the tests on the lowest versions that pyproject.toml allows
	.venv-lowest/bin/python $(PYTEST) $(PYTEST_ARGS) $(TESTS)

.venv-lowest/.installed: pyproject.toml tools/lowest.py | .venv-lowest/bin/python
	.venv-lowest/bin/python $(PIP) install tomli
	.venv-lowest/bin/python tools/lowest.py dspy test > .venv-lowest/lowest.txt
	.venv-lowest/bin/python $(PIP) install -c .venv-lowest/lowest.txt -e '.[dspy,test,servers]'
	@touch $@

test-wheel: $(TEST) .venv-wheel/bin/python ## the import and command-line tests from the wheel, out of the checkout
	rm -rf $(WHEEL_TESTS)
	mkdir -p $(WHEEL_TESTS)
	$(BIN)/python -m build --no-isolation --outdir $(WHEEL_TESTS)/dist >/dev/null
	.venv-wheel/bin/python $(PINNED) --force-reinstall --no-deps $(WHEEL_TESTS)/dist/*.whl
	.venv-wheel/bin/python $(PINNED) "$$(echo $(WHEEL_TESTS)/dist/*.whl)[test]"
	cp -r tests docs README.md pyproject.toml $(WHEEL_TESTS)
	cd $(WHEEL_TESTS) && $(CURDIR)/.venv-wheel/bin/python $(PYTEST) -m "$(ALL_MARKS)" \
		-k "cli or demo or face or loads" $(PYTEST_ARGS) tests/dspy_registry tests/test_face.py tests/test_imports.py

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
	.venv-$*/bin/python $(PYTEST) -m "$(ALL_MARKS)" -o cache_dir=.pytest_cache/$* \
		$(PYTEST_ARGS) $(TESTS)

$(VERSIONS:%=.venv-%/$(ALL_STAMP)): .venv-%/$(ALL_STAMP): pyproject.toml constraints.txt | .venv-%/bin/python
	$(@D)/bin/python $(PINNED) -e '.[$(ALL_EXTRAS)]'
	@touch $@

$(VERSIONS:%=.venv-%/bin/python): .venv-%/bin/python:
	@python="$(call find_python,$*)"; \
	test -n "$$python" || { echo "Python $* was not found" >&2; exit 1; }; \
	"$$python" -m venv .venv-$*

.venv-latest/bin/python .venv-lowest/bin/python .venv-wheel/bin/python: | $(BIN)/python
	$(BIN)/python -m venv $(@D:/bin=)

constraints: $(VERSIONS:%=.venv-%/bin/python) ## write constraints.txt: the newest of everything, for each Python
	$(BIN)/python tools/constraints.py $^

venv: $(DEV) ## .venv with everything a developer needs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"Python 3.10 or newer is needed, this is " + sys.version + ": make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(PINNED) -e '.[dspy]'
	@touch $@

$(TEST): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(PINNED) -e '.[dspy,test,servers,browser,deploy]'
	@touch $(CORE) $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(PINNED) -e '.[dspy,test,servers,browser,deploy,lint,bench]'
	$(BIN)/python $(PINNED) -e '.[bench-compiled]' \
		|| echo "UltraDict could not be built (it needs a C compiler): benchmarks leave it out"
	@touch $(CORE) $(TEST) $@

clean: ## remove what make made
	rm -rf $(VENV) $(VERSIONS:%=.venv-%) .venv-latest .venv-lowest .venv-wheel .coverage build dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +
