# Every target sets up what it needs: a virtual environment in .venv, filled from the lock files.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := bridge sinks config tests benchmarks

COUNT ?= 10000

# One worker more than cores: much of a test is waiting. A file's tests stay together, since some share a broker. tests/conftest.py
# puts the slow files first; xdist by itself would begin with the files that have most tests.
PYTEST = $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: run check quick lint corrupt bench bench-check chaos soak fuzz peers lock man format clean
.DEFAULT_GOAL := run

run: .venv/run.stamp  ## See it work: simulator, bridge and stdout sink in one go.
	@$(BIN)/event-bridge demo $(ARGS)

check: lint  ## Everything that must hold: format, lint, imports, types, tests.
	@sh tests/system-packages.sh
	$(PYTEST) $(ARGS)

quick: lint  ## The same without end-to-end tests and brokers: about a minute.
	$(PYTEST) -m "not broker" tests/bridge tests/config tests/sinks tests/fuzz tests/test_docs.py tests/test_layout.py tests/test_package.py $(ARGS)

lint: .venv/dev.stamp
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

corrupt: .venv/dev.stamp  ## Damage COUNT journals in every way, and see what is delivered of what is left.
	@CORRUPTIONS=$(COUNT) $(BIN)/pytest -q --timeout 0 -k whatever_happens_to_the_files tests/bridge/journal/test_damage.py

bench-check: .venv/dev.stamp  ## Every benchmark runs, and its figures make sense.
	$(BIN)/pytest -n 2 benchmarks >&2

bench: bench-check  ## Speed and memory; the figures of record are in docs/benchmarks.md.
	$(BIN)/python -m benchmarks $(ARGS)

KILLS ?= 1000
MINUTES ?= 60

chaos: .venv/dev.stamp  ## Kill it a thousand times at 2,000 events/s: nothing may be lost. The run of record is in docs/reliability.md.
	@sh tests/system-packages.sh
	$(BIN)/python -m tests.faults $(ARGS) chaos $(KILLS)

soak: .venv/dev.stamp  ## All faults by chance, for as long as you like.
	@sh tests/system-packages.sh
	$(BIN)/python -m tests.faults $(ARGS) soak $(MINUTES)

SECONDS ?= 60

fuzz: .venv/dev.stamp  ## Nearly right and random bytes for all parsers, for so many seconds.
	$(BIN)/python -m tests.fuzz $(SECONDS)

peers: .venv/dev.stamp  ## Brokers, receivers and proxies of others, installed for it; writes docs/compatibility.md.
	@sh tests/system-packages.sh
	$(BIN)/python -m tests.peers $(ARGS)

format: .venv/dev.stamp
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# Resolves the newest versions that pyproject.toml allows, and pins them with their hashes.
lock: .venv/dev.stamp
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --no-emit-index-url --extra build --custom-compile-command "make lock" -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --no-emit-index-url --extra build --custom-compile-command "make lock" --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

man: .venv/dev.stamp  ## The man page, from the parsers of the command line.
	@mkdir -p build
	$(BIN)/argparse-manpage --module bridge.cli.main --function parser --prog event-bridge --project-name event-bridge --manual-title event-bridge --description "journal and deliver Docker event streams" --format single-commands-section --output build/event-bridge.1

clean:
	rm -rf .venv build data *.egg-info

.venv/run.stamp: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev.stamp: requirements-dev.lock .venv/run.stamp
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@
