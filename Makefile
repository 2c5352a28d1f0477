# `make demo` and `make test` do all the set-up: they need Python 3.11 or newer with pip, and make.

PYTHON ?= python3
ARGS ?=
QUESTION ?= How does the JSON decoder report where in a document an error is?

BIN := .venv/bin
COMMA := ,
SKIP := site-packages dist-packages test tests idlelib lib2to3 turtledemo pydoc_data config-* lib-dynload __pycache__

.PHONY: demo test lint check bench picture clean
.DELETE_ON_ERROR:

# A question of the running Python's own standard library, without any language model.
demo: .venv/cli
	@$(BIN)/rlm-graph ask '$(subst ','\'',$(QUESTION))' \
	  "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
	  --model offline $(foreach each,$(SKIP),--exclude '$(each)') $(ARGS)

test: .venv/dev
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/mypy

# The quick part of what CI asks for.
check: lint
	$(BIN)/python -m pytest -m "not slow and not processes" $(ARGS)

bench: .venv/bench
	$(BIN)/python benchmarks/overhead.py $(ARGS)
	$(BIN)/python benchmarks/start.py $(if $(findstring --quick,$(ARGS)),--quick)
	$(BIN)/python benchmarks/page.py

# Draws the graph into README.md.
picture: .venv/dev
	$(BIN)/python graphs/picture.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache

# One environment; each stamp says which extras it has, and is as old as the last install.
.venv/cli .venv/dev .venv/bench: .venv/made pyproject.toml
	@echo "installing rlm-graph[$(extras_$(@F))] into .venv (a minute or two, once)"
	@$(PIP) install --quiet --disable-pip-version-check --editable '.[$(extras_$(@F))]'
	@touch $@

# The cage, for Linux without bubblewrap of its own.
ON_LINUX := $(if $(filter Linux,$(shell uname -s)),$(COMMA)sandbox)

extras_cli := cli$(ON_LINUX)
extras_dev := dev$(ON_LINUX)
extras_bench := dev,bench$(ON_LINUX)

# Where the environment has no pip (Debian's Python without python3-venv), the pip of $(PYTHON) installs into it.
PIP = $$($(BIN)/python -m pip --version >/dev/null 2>&1 \
  && echo '$(BIN)/python -m pip' || echo '$(PYTHON) -m pip --python $(BIN)/python')

.venv/made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("rlm-graph needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || $(PYTHON) -m venv --clear --without-pip .venv
	@touch $@
