# `make` lists the targets.
# Each makes the environment .venv first, when it is missing or older than pyproject.toml and constraints.txt.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
GPUS ?= 0
CHROMIUM ?= $(firstword $(shell command -v chromium chromium-browser google-chrome))
CONDITION ?= MSCOCO, ViT-B/32
LIBRARY_TESTS := tests --ignore=tests/book --ignore=tests/experiments --ignore=tests/test_environment.py
# Written last: an install that was cut off is not taken as done.
STAMP := $(VENV)/.installed

# Idle OpenMP threads sleep at once: with one busy neighbour training takes twice as long, not four times.
export GOMP_SPINCOUNT ?= 1000
# glibc keeps what a step frees for the next one: a sixth of a step's time goes into asking for it again.
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824

.DEFAULT_GOAL := help
.PHONY: help train test book pdf lint lowest bench rows paper notebooks clean versions

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

# pip brings torch, in the build that it is configured for; uv, where it is on the path, the rest in a few seconds.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "cibr needs Python 3.11 or later, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
	       "name another: make PYTHON=python3.11 ..." >&2; exit 1; }
	@rm -f $@
	@echo "making $(VENV) with $$($(PYTHON) --version) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --constraint $(CONSTRAINTS) torch torchvision
	@$(if $(shell command -v uv),uv pip install --quiet --python $(BIN)/python,$(PIP)) \
	  --constraint $(CONSTRAINTS) --editable '.[$(EXTRAS)]'
	@touch $@

versions: $(STAMP)
	@$(BIN)/python -c 'import sys; from importlib.metadata import version; \
	  names = "torch torchvision transformers timm numpy papermill nbval jupyter-book pytest".split(); \
	  print("Python " + sys.version.split()[0], *(f"{n} {version(n)}" for n in names), sep=", ")'

train: $(STAMP)  ## train with beta 0.05 beside a twin at 0; the report is out.ipynb, and out.html for a browser
	$(BIN)/papermill book/train.ipynb out.ipynb -p beta 0.05 --log-output
	$(BIN)/python book/report.py out.ipynb

test: $(STAMP) versions  ## the tests, then every notebook again; two workers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2
	$(BIN)/python -m pytest --nbval book/ -n 2 --dist loadscope

book: $(STAMP)  ## render the stored notebooks into _build/html; any warning is an error
	$(BIN)/jupyter-book build . -W -n --keep-going --quiet

# Of one page each: the whole, whose paths are of the folder above, and the chapters of theorems.
pdf: book  ## book.pdf, theory.pdf and gaussian.pdf into _build; needs Chromium, no TeX
	@test -n "$(CHROMIUM)" || { echo "make pdf prints with Chromium: install it, or name one: make pdf CHROMIUM=..." >&2; exit 1; }
	$(BIN)/jupyter-book build . --builder custom --custom-builder singlehtml --quiet
	sed 's,href="book/intro.html#,href="#,g' _build/singlehtml/book/intro.html >_build/singlehtml/book.html
	for page in singlehtml/book html/book/theory html/book/gaussian; do $(CHROMIUM) --headless --no-sandbox \
	  --virtual-time-budget=120000 --no-pdf-header-footer --print-to-pdf=_build/$${page##*/}.pdf \
	  file://$(CURDIR)/_build/$$page.html || exit 1; done

rows: $(STAMP)  ## a sweep's rows again, into again.csv: SWEEP=ablation ONLY=MINE
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/snakemake -s experiments/Snakefile --profile experiments/profiles/local \
	  --config sweep=experiments/$(SWEEP).yaml results=again.csv $(if $(ONLY),only="$(ONLY)")

paper: $(STAMP)  ## the paper's setting, trials and then runs: CONDITION="MSCOCO, ViT-B/32" GPUS="0"
	for sweep in clip-coco-trials clip-coco; do PATH="$(abspath $(BIN)):$$PATH" $(BIN)/snakemake -s experiments/Snakefile \
	  --profile experiments/profiles/local --cores $(words $(GPUS)) \
	  --config sweep=experiments/$$sweep.yaml only="$(CONDITION)" gpus="$(GPUS)" || exit 1; done
	$(BIN)/python book/execute.py paper_scale

notebooks: $(STAMP)  ## execute every notebook of the book in place
	$(BIN)/python book/execute.py

lint: $(STAMP)  ## ruff's rules and its format, notebooks included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Every `name>=1.2` of pyproject.toml as `name==1.2`.
$(VENV)-lowest.txt: pyproject.toml
	@sed -n 's/^ *"\([A-Za-z][A-Za-z_-]*\)[>=]=\([0-9][0-9a-z.]*\).*/\1==\2/p' $< >$@

lowest: $(VENV)-lowest.txt  ## the library's tests with the lowest versions that pyproject.toml states
	@$(MAKE) --no-print-directory VENV=$(VENV)-lowest CONSTRAINTS=$< versions
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest $(LIBRARY_TESTS) -n 2 -W ignore::DeprecationWarning

bench: $(STAMP)  ## the library beside its peers, as ratios in one table; bench/ has more
	env -u MALLOC_TRIM_THRESHOLD_ -u MALLOC_MMAP_THRESHOLD_ $(BIN)/python bench/summary.py

clean:  ## remove the rendered book and caches; .venv, runs/ and data/ stay
	rm -rf _build out.ipynb out.html .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
