# make demo   a fresh machine to a tuned, proven model in about two minutes after the install
# make test   all tests; without those of minutes: .venv/bin/python -m pytest -n 2 -m "not slow"
# make test-tensorflow   TensorFlow opens what was exported (installs it into .venv-tf)
# make check  what CI runs besides the tests: lint, format, types
PYTHON ?= python3
BIN := .venv/bin
BUDGET ?= 2m

.PHONY: demo test test-tensorflow check clean

demo: .venv/installed
	@n=1; while [ -e runs/demo-$$n ]; do n=$$((n + 1)); done; $(BIN)/burnish fit demo --budget $(BUDGET) --out runs/demo-$$n

test: .venv/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=20

# TensorFlow itself opens what burnish exports, in an environment of its own
test-tensorflow: .venv/installed-dev .venv-tf/installed
	BURNISH_TENSORFLOW=$(CURDIR)/.venv-tf/bin/python $(BIN)/python -m pytest -q -n 2 -k tensorflow tests/test_export_keras.py

.venv-tf/installed:
	$(PYTHON) -m venv .venv-tf
	.venv-tf/bin/python -m pip install -q tensorflow-cpu==2.21.0 keras==3.15.1 pillow
	touch $@

check: .venv/installed-dev
	scripts/check

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	scripts/install
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-tf build src/burnish.egg-info
