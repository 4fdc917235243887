# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv first.
.ONESHELL:
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: help setup demo test test-all lint lock check-lock bench-smoke screenshot clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NEEDED_GIB := 10
# Test files spread over two processes; `make test SPREAD=` runs one after the other.
SPREAD ?= -n 2 --dist loadfile
COMPILE := $(BIN)/uv pip compile pyproject.toml --extra offline --extra fid --extra clip --extra concepts --extra dev --universal --fork-strategy fewest \
	--generate-hashes --no-emit-index-url --custom-compile-command 'make lock' --python-version 3.11 --quiet

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## Make .venv with exactly the packages of requirements.lock (about 8.5 GB).

# The lock first, then the project without its dependencies: never `uv pip sync`, which would remove the project again.
$(STAMP): requirements.lock pyproject.toml
	@free=$$(df -Pk . | awk 'NR==2 {print int($$4 / 1048576)}')
	if [ ! -e $(STAMP) ] && [ "$$free" -lt $(NEEDED_GIB) ]; then
		echo "setup needs $(NEEDED_GIB) GiB free here, found $$free GiB: free some space and run make again" >&2; exit 4
	fi
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
		echo "Python 3.11 or newer is needed, $(PYTHON) is older: run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	[ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: setup  ## Run the whole path on embedded data: pack, score, select, distil, train, measure, report.
	$(BIN)/coreset demo

test: setup  ## The test suite without the slow tests, under five minutes on two cores.
	$(BIN)/python -m pytest $(SPREAD) -m "not slow"

test-all: setup  ## Every test.
	$(BIN)/python -m pytest $(SPREAD)

lint: setup  ## Format, lint, types, import directions.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

lock: setup  ## Pin every package again (after a change of pyproject.toml).
	$(COMPILE) --upgrade -o requirements.lock

check-lock: setup  ## Refuse a lock that names an address or is out of step with pyproject.toml.
	@if grep -nE '://|--index|--find-links' requirements.lock; then
		echo "requirements.lock names an address: run make lock" >&2; exit 1
	fi
	fresh=$$(mktemp); trap 'rm -f "$$fresh"' EXIT
	cp requirements.lock "$$fresh"; $(COMPILE) -o "$$fresh"
	diff requirements.lock "$$fresh" || { echo "requirements.lock is out of step with pyproject.toml: run make lock" >&2; exit 1; }

bench-smoke: setup  ## The documents' figures are those of bench/results; every benchmark runs on tiny inputs.
	$(BIN)/python -m bench.docs --check
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT
	$(BIN)/python -m bench.inputs "$$folder/data"
	tiny() { $(BIN)/python -m "bench.$$1" --dry --work "$$folder" --data "$$folder/data" --repeats 1 "$${@:2}"; }
	tiny pack --part nocheck --images 12
	tiny decode --part rrc-packed256 --images 4
	tiny pixels
	tiny dynamics --part peers --samples 200 --classes 10 --batch 16
	tiny score --part usual-loop --images 2
	tiny score_scale --images 20
	tiny students --images 12 --size 32 --sizes 32 --students resnet18
	tiny selection --part ccs class --samples 2000 --classes 4
	$(BIN)/python -m bench.robustness --dry --row 14
	$(BIN)/python -m bench.first_path --help > /dev/null

screenshot: setup  ## Take the README's picture of a report, docs/report.png (needs chromium).
	out=$$(mktemp -d); trap 'rm -rf "$$out"' EXIT
	$(BIN)/coreset demo --out "$$out/demo" > /dev/null
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1300,1150 \
		--screenshot=docs/report.png "file://$$out/demo/report.html" 2> /dev/null
	[ "$$(stat -c %s docs/report.png)" -lt 300000 ] || { echo "docs/report.png has over 300 kB" >&2; exit 1; }

clean:  ## Remove what make and the tools made (not the data).
	rm -rf $(VENV) demo-run .pytest_cache .ruff_cache .hypothesis build dist
