# Everything a newcomer types. Each goal makes what it needs: a virtual environment in .venv (the system's
# Python is never touched), the wheel in release mode when a source changed, and the binaries.
# A machine needs a Rust toolchain and a Python of 3.11 or newer, no more.
#
#   make test                 Rust tests, then the whole-system tests
#   make demo                 the main job; DEMO_ARGS="..." is handed to it
#   make bench                what tasks and copies cost, beside the limits of this machine; BENCH_ARGS="..." is handed to it
#   make lint bench-smoke docs build clean
#
# PYTHON=/path/to/python chooses the interpreter; PYTEST_ARGS="..." is handed to pytest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV := $(CURDIR)/.venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check

# One interpreter for every build step, so that cargo and maturin share what they compiled.
export PYO3_PYTHON := $(PY)
export VIRTUAL_ENV := $(VENV)
export PATH := $(VENV)/bin:$(PATH)
unexport PYTHONHOME

# The binding crate links to Python only as an extension module, so its tests are the Python ones.
CRATES := --workspace --exclude echelon-python

RUST_SOURCES := $(shell find wire runtime session python benches/native \( -name '*.rs' -o -name Cargo.toml \) -not -path '*/target/*' 2>/dev/null) \
    Cargo.toml Cargo.lock pyproject.toml

DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
INSTRUCTIONS_ARGS ?=
MICRO_ARGS ?=

.PHONY: help test test-rust test-loom test-python demo lint lint-rust lint-python requirements bench bench-smoke bench-peers bench-micro bench-instructions docs build clean
help:
	@sed -n 's/^#   //p' Makefile

# --- set-up -------------------------------------------------------------------------------------------

$(VENV)/.created: tools/find-python.sh
	@command -v cargo >/dev/null || { echo "no cargo on the PATH: Echelon needs a Rust toolchain (1.85 or newer)" >&2; exit 1; }
	@python=$$(PYTHON="$(PYTHON)" sh tools/find-python.sh) && "$$python" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.stamp-%: requirements/%.txt $(VENV)/.created
	$(PIP) install -r $<
	@touch $@

# The feature is for the tests: a wheel for others, `maturin build --release`, has no points at which a start can be made to fail.
# `maturin develop` leaves the extension module beside the package's Python files, so those are used in place.
$(VENV)/.stamp-wheel: $(RUST_SOURCES) $(VENV)/.stamp-build
	$(VENV)/bin/maturin develop --release --locked --features failpoints
	@touch $@

$(VENV)/.stamp-bins: $(RUST_SOURCES) $(VENV)/.created
	cargo build --release --locked -p echelon-session --bins
	@touch $@

build: $(VENV)/.stamp-wheel $(VENV)/.stamp-bins

# --- the goals ----------------------------------------------------------------------------------------

test: test-rust test-loom test-python

# cargo test has no limit of its own on a hanging test (R-221); nextest has, in .config/nextest.toml.
test-rust: $(VENV)/.created
	@if cargo nextest --version >/dev/null 2>&1; then \
	    cargo nextest run --locked $(CRATES); \
	else \
	    timeout --signal=INT --kill-after=10 1200 cargo test --locked $(CRATES) --lib --bins --tests --examples; \
	fi
	timeout --signal=INT --kill-after=10 600 cargo test --locked $(CRATES) --doc

# Every interleaving of the mailbox's hand-over, and of who reads a lane. loom changes the atomics, so it has a build folder of its own.
test-loom:
	RUSTFLAGS="--cfg loom" cargo test --locked --release --target-dir target/loom -p echelon-runtime --test loom_ring --test loom_relay

test-python: $(VENV)/.stamp-wheel $(VENV)/.stamp-bins $(VENV)/.stamp-test $(VENV)/.stamp-demo
	$(PY) -m pytest $(PYTEST_ARGS)

demo: $(VENV)/.stamp-wheel $(VENV)/.stamp-demo
	$(PY) -m demo $(DEMO_ARGS)

lint: lint-rust lint-python requirements

lint-rust: $(VENV)/.created
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

lint-python: $(VENV)/.stamp-wheel $(VENV)/.stamp-lint $(VENV)/.stamp-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	cd python && $(PY) -m mypy.stubtest echelon._core --ignore-disjoint-bases

# Fails while a P0 or P1 has neither a test nor a reason in tools/requirements.toml, and lists them.
requirements: $(VENV)/.created
	$(PY) tools/requirements_table.py --check --gate

# What `make bench` needs in Rust: the limits of the machine.
$(VENV)/.stamp-benches: $(RUST_SOURCES) $(VENV)/.created
	cargo build --release --locked -p echelon-benches --bins
	@touch $@

bench: $(VENV)/.stamp-wheel $(VENV)/.stamp-bins $(VENV)/.stamp-benches $(VENV)/.stamp-test
	$(PY) -m benches $(BENCH_ARGS)

# Other systems beside ours: they go into a virtual environment of their own. PEERS_TORCH=1 adds torch, which is large.
.venv-peers/.stamp: benches/requirements-peers.txt benches/requirements-peers-torch.txt $(VENV)/.created
	$(PY) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benches/requirements-peers.txt \
	    $(if $(PEERS_TORCH),-r benches/requirements-peers-torch.txt)
	@touch $@

bench-peers: $(VENV)/.stamp-wheel $(VENV)/.stamp-bins $(VENV)/.stamp-benches $(VENV)/.stamp-test .venv-peers/.stamp
	$(PY) -m benches $(BENCH_ARGS) peers

# How many instructions a noop takes, and whether that has grown; INSTRUCTIONS_ARGS=--update replaces the table.
bench-instructions: $(VENV)/.stamp-wheel $(VENV)/.stamp-bins $(VENV)/.stamp-benches $(VENV)/.stamp-test
	$(PY) -m benches.instructions $(INSTRUCTIONS_ARGS)

# Benches of the pure parts: codec, dependency map, scheduler, ring. A minute without the build; MICRO_ARGS="-- --quick": seconds.
bench-micro:
	cargo bench --locked -p echelon-benches --no-run
	timeout --signal=INT --kill-after=10 300 cargo bench --locked -p echelon-benches --bench pure $(MICRO_ARGS)

# Everything small: it shows that everything runs, and says nothing about speed.
bench-smoke: $(VENV)/.stamp-wheel $(VENV)/.stamp-bins $(VENV)/.stamp-benches $(VENV)/.stamp-test
	$(PY) -m benches smoke
	cargo test --locked -p echelon-benches --benches

docs: $(VENV)/.created
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --workspace

# What was built goes, the virtual environment too.
clean:
	cargo clean
	rm -rf $(VENV) .venv-peers dist python/echelon/*.so demo/timeline.json demo/timeline.png .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './target/*' -prune -exec rm -rf {} +
