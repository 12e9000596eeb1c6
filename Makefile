# `make book` and `make test` do all their own set-up: they need a Python 3.11 (or newer) and nothing else.
# The environment is in .venv; it is brought up to date when pyproject.toml or constraints.txt changes.

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
READY := .venv/ready
HTML := _build/html

# What a page can depend on: a change in any of these makes the next `make book` start from nothing, because
# neither Sphinx nor the cache of executed notebooks sees that the library changed.
SOURCES := _config.yml _toc.yml $(shell find book spectrolib -type f \
	-not -path '*/__pycache__/*' -not -path '*/.*' 2>/dev/null)

# Chapters save their figures where this says, so that a build leaves the committed ones alone.
FIGURES := $(CURDIR)/_build/figures

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: help book test lint notebooks pages figures format clean
.DELETE_ON_ERROR:

help:
	@echo 'make book       build the book (executes the chapters) and say where it is'
	@echo 'make test       run the tests'
	@echo 'make lint       check style and the types of the heart; `make format` mends style'
	@echo 'make notebooks  run each chapter at profile smoke through papermill, from another folder'
	@echo 'make pages      build the book and check its pages in a browser'
	@echo 'make figures    run the chapters again and refresh the committed figures'
	@echo 'make clean      remove .venv and everything built'

$(READY): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo 'Python 3.11 or newer is needed: none found (set PYTHON=/path/to/python)'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e '.[book,test,hub,distributed]'
	@touch $@

book: $(HTML)/index.html
	@echo 'The book is at file://$(CURDIR)/$(HTML)/index.html'

$(HTML)/index.html: $(READY) $(SOURCES)
	rm -rf _build
	SPECTRO_FIGURES='$(FIGURES)' $(BIN)/jupyter-book build . -W -n --keep-going

test: $(READY)
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || \
		echo 'No Chromium on this machine: the tests that need a browser are skipped.'
	MPLBACKEND=agg $(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(READY)
	@elsewhere=$$(mktemp -d) && trap 'rm -rf "$$elsewhere"' EXIT && cd "$$elsewhere" && \
	printf '%s\n' '$(CURDIR)'/book/*.ipynb | xargs -P 2 -I '{}' sh -c 'name=$$(basename "{}") && \
		"$(CURDIR)/$(BIN)/papermill" "{}" "$$name" -p profile smoke --no-progress-bar --log-level WARNING && \
		echo "$$name -p profile smoke: done"'

pages: book
	BOOK_HTML='$(HTML)' $(BIN)/python -m pytest tests/pages

figures: $(READY)
	$(BIN)/python -m spectrobook figures --ship

clean:
	rm -rf .venv _build *.egg-info
