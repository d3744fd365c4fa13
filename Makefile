# The project's commands. `make help` lists them; `make bench` and `make test`
# set up what they need. Every step says what it does in one line; a second run
# does nothing twice.
#
# The environments are stamped:
#   build/request-NAME     which interpreter was asked for
#   .venv-NAME/.created    the environment is there, with the pinned tools
#   .venv-NAME/.installed  refbuf is in it, built from the sources as they are

PYTHON ?= python3
CARGO ?= cargo
BENCH_ARGS ?=
COMPAT_ARGS ?= --rounds 3 --write
PYTEST_ARGS ?=
# Runs of the suite in `make stress`.
N ?= 20
# Seconds after which a test run that hangs is ended.
TEST_LIMIT ?= 1200

FT := .venv-ft
GIL := .venv-gil
LTO := .venv-lto
LINT := .venv-lint

SOURCES := Cargo.toml Cargo.lock build.rs pyproject.toml README.md LICENSE-MIT LICENSE-APACHE \
    $(shell find src include python -type f ! -name '*.so' ! -name '*.pyc' 2>/dev/null)

# GIL builds besides the stock one, for `make test-all`.
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions
OTHER_VERSIONS := $(foreach version,3.12 3.13,\
    $(if $(wildcard $(PYENV)/$(version).*[0-9]/bin/python$(version)),$(version)))
other_python = $(lastword $(sort $(wildcard $(PYENV)/$(1).*[0-9]/bin/python$(1))))

# Variables of the caller that would change which code is tested.
unexport PYTHONPATH PYTHONHOME PYTHON_GIL VIRTUAL_ENV RUSTFLAGS CARGO_TARGET_DIR PYO3_PYTHON CARGO_BUILD_TARGET

MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
# But for the tests that may be run two at a time.
ifndef TWO_AT_A_TIME
.NOTPARALLEL:
else
# What they run would look for this make's job server, and not find it.
unexport MAKEFLAGS MFLAGS
endif
.DELETE_ON_ERROR:
.SECONDARY:
.SUFFIXES:

# Each recipe is one shell script, which stops at its first failure.
say = printf '==> %s\n'
pip_install = -m pip install --quiet --disable-pip-version-check --no-warn-script-location
host = $$(rustc -vV | sed -n 's/^host: //p')

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

# -- set-up -------------------------------------------------------------------

.PHONY: setup setup-ft setup-gil
setup: setup-ft setup-gil ## Leave .venv-ft and .venv-gil with refbuf installed in release mode
setup-ft: $(FT)/.installed ## Only the free-threaded one
setup-gil: $(GIL)/.installed ## Only the stock python3's

.PHONY: FORCE
FORCE:

need_python = command -v $(PYTHON) > /dev/null || \
    { echo "$(PYTHON) is not installed: install Python 3.11 or later." >&2; exit 1; }

# A request changes when its text does, and only then.
define request
mkdir -p build
text="$(1)"; [ "$$text" = "$$(cat $@ 2>/dev/null || echo none)" ] || echo "$$text" > $@
endef

build/request-ft: FORCE
	@$(need_python)
	$(call request,$(REFBUF_FT_PYTHON))

build/request-gil: FORCE
	@$(need_python)
	$(call request,$$($(PYTHON) -c 'import sys; print(sys.executable, sys.version.split()[0])'))

build/request-py%: FORCE
	@$(call request,$(call other_python,$*))

# $(call create,ENVIRONMENT,INTERPRETER): anew, with the pinned tools.
define create
$(PYTHON) tools/preflight.py rust compiler
interpreter=$(2)
$(PYTHON) tools/preflight.py headers "$$interpreter"
$(say) "$(1): an environment of $$interpreter, with the tools of tools/requirements.txt"
rm -rf $(1)
"$$interpreter" -m venv $(1)
$(1)/bin/python $(pip_install) --only-binary :all: -r tools/requirements.txt
touch $@
endef

# An environment whose interpreter has gone is made again.
missing = $(if $(wildcard $(1)/bin/python),,FORCE)

$(FT)/.created: build/request-ft tools/requirements.txt $(call missing,$(FT))
	@$(call create,$(FT),$$($(PYTHON) tools/ft_python.py))

$(GIL)/.created: build/request-gil tools/requirements.txt $(call missing,$(GIL))
	@$(PYTHON) tools/preflight.py venv
	$(call create,$(GIL),$$($(PYTHON) -c 'import sys; print(sys.executable)'))

$(LTO)/.created: tools/requirements.txt $(call missing,$(LTO))
	@$(call create,$(LTO),$$($(PYTHON) tools/ft_python.py --lto))

.venv-py%/.created: build/request-py% tools/requirements.txt
	@$(call create,.venv-py$*,$(call other_python,$*))

# Without build isolation: maturin and libclang are in the environment already,
# at the pinned versions, so that cargo has nothing to compile twice. The stamp
# is as old as the start: a source that is edited meanwhile is newer.
.venv-%/.installed: .venv-%/.created $(SOURCES)
	@$(say) ".venv-$*: installing refbuf in release mode (about a minute)"
	touch .venv-$*/.installing
	PATH="$$PWD/.venv-$*/bin:$$PATH" CARGO_TARGET_DIR="$$PWD/target/$*" MATURIN_PEP517_ARGS="--locked" \
	    .venv-$*/bin/python $(pip_install) --no-build-isolation --no-deps --force-reinstall .
	.venv-$*/bin/python -P -c 'import refbuf, sys; assert refbuf.__file__.startswith(sys.prefix), refbuf.__file__'
	mv .venv-$*/.installing $@

$(LINT)/.created: tools/requirements-lint.txt
	@$(PYTHON) tools/preflight.py venv
	$(say) "$(LINT): an environment with the tools of tools/requirements-lint.txt"
	rm -rf $(LINT)
	$(PYTHON) -m venv $(LINT)
	$(LINT)/bin/python $(pip_install) --only-binary :all: -r tools/requirements-lint.txt
	touch $@

.PHONY: ft-lto
ft-lto: $(LTO)/.installed ## Leave .venv-lto, of a free-threaded build with link-time optimization (about 8 minutes)

# -- the two commands ---------------------------------------------------------

.PHONY: bench
bench: setup-ft ## The benchmark on the free-threaded build, into build/ (BENCH_ARGS="--quick --threads 1,2")
	@$(say) "python -m refbuf bench $(BENCH_ARGS)"
	$(FT)/bin/python -P -m refbuf bench --json build/bench.json --plot build/bench.png $(BENCH_ARGS)
	$(say) "build/bench.json and build/bench.png are written"

.PHONY: bench-gil
bench-gil: setup-gil ## The same on the stock python3: threads that hold no GIL, and threads that take turns
	@$(say) "python -m refbuf bench $(BENCH_ARGS)"
	$(GIL)/bin/python -P -m refbuf bench --json build/bench-gil.json --plot build/bench-gil.png $(BENCH_ARGS)
	$(say) "build/bench-gil.json and build/bench-gil.png are written"

# Two at a time: first those whose time is the compiler's or the processor's, then refbuf's
# own Python tests, longest first. Others' tests ask how soon something comes about, and
# the examples' are of what they install: one by one.
BESIDE = test-rust test-loom sanitize test-c test-doc test-compat test-builds
PYTHON_TESTS = test-python-ft test-python-gil test-live
ALONE = test-cpython-sample test-examples

.PHONY: test
test: setup ## All tests, on both builds
	@two_at_a_time() {
	    $(say) "two at a time, each shown when it has ended: $$*"
	    $(MAKE) --jobs=2 --output-sync=target TWO_AT_A_TIME=1 "$$@"
	}
	status=0
	step() {
	    if [ $$status -eq 0 ] || [[ "$(firstword -$(MAKEFLAGS))" == -*k* ]]; then
	        "$$@" || status=$$?
	    fi
	}
	step two_at_a_time $(BESIDE)
	step two_at_a_time $(PYTHON_TESTS)
	step $(MAKE) $(ALONE)
	[ $$status -ne 0 ] || $(say) "all tests passed"
	exit $$status

# -- the tests, one by one ----------------------------------------------------

.PHONY: rust
rust:
	@$(PYTHON) tools/preflight.py rust

.PHONY: test-rust
test-rust: rust ## The core and live mode's machinery in Rust, without Python
	@$(say) "cargo test: the core and live mode's machinery"
	CARGO_TARGET_DIR=target/core timeout $(TEST_LIMIT) $(CARGO) test --quiet --locked --no-default-features --features live

.PHONY: test-loom
test-loom: rust ## The core's protocols, every interleaving of them
	@$(say) "loom: the models"
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom timeout $(TEST_LIMIT) \
	    $(CARGO) test --quiet --locked --no-default-features --release --test loom
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom timeout $(TEST_LIMIT) \
	    $(CARGO) test --quiet --locked --no-default-features --release --lib models

.PHONY: sanitize sanitize-valgrind sanitize-address
sanitize: sanitize-valgrind sanitize-address ## The core in Rust under valgrind and AddressSanitizer, where installed

# Fair: its own lock, under which one thread runs at a time, is a race otherwise.
VALGRIND = valgrind --quiet --error-exitcode=99 --fair-sched=yes \
    --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite

# One counts to millions, one measures time: minutes each, and nothing that valgrind would see.
SLOW_UNDER_VALGRIND = --skip a_full_slot_is_settled_in_part --skip costs_are_measured_and_plausible

sanitize-valgrind: rust
	@if command -v valgrind > /dev/null; then
	    $(say) "valgrind: the core"
	    triple=$(host)
	    runner="CARGO_TARGET_$$(tr a-z- A-Z_ <<< "$$triple")_RUNNER"
	    env "$$runner=$(VALGRIND)" CARGO_TARGET_DIR=target/core PROPTEST_CASES=8 timeout $(TEST_LIMIT) \
	        $(CARGO) test --quiet --locked --no-default-features --lib --tests -- $(SLOW_UNDER_VALGRIND)
	else
	    $(say) "SKIPPED valgrind: it is not installed (on Debian: apt-get install valgrind)"
	fi

sanitize-address: rust
	@if $(CARGO) +nightly --version > /dev/null 2>&1; then
	    $(say) "AddressSanitizer: the core"
	    env CARGO_TARGET_DIR=target/asan RUSTFLAGS="-Zsanitizer=address" PROPTEST_CASES=64 timeout $(TEST_LIMIT) \
	        $(CARGO) +nightly test --quiet --locked --no-default-features --lib --tests --target $(host)
	else
	    $(say) "SKIPPED AddressSanitizer: it needs Rust's nightly toolchain (rustup toolchain install nightly)"
	fi

# pytest against the installed package: -P keeps this folder off sys.path.
pytest = timeout --kill-after=10 $(TEST_LIMIT) $(1)/bin/python -P -m pytest --quiet $(PYTEST_ARGS)

.PHONY: test-c test-c-ft test-c-gil
test-c: test-c-ft test-c-gil ## The header and the shim, in all languages, and extensions that use them, on both builds

test-c-ft: setup-ft
	@$(say) "pytest tests/c: the C headers on the free-threaded build"
	$(call pytest,$(FT)) tests/c

test-c-gil: setup-gil
	@$(say) "pytest tests/c: the C headers on the stock python3"
	$(call pytest,$(GIL)) tests/c

.PHONY: compat test-compat
compat: setup ## Packages from PyPI, built stock and with the shim, and their own tests, into docs/COMPAT.md (COMPAT_ARGS= for a look)
	@$(say) "packages from PyPI, stock and with the shim"
	$(PYTHON) tools/compat.py $(GIL)/bin/python $(FT)/bin/python $(COMPAT_ARGS)

test-compat: setup ## Three of them, and the tests of what compares them
	@$(say) "pytest tests/compat"
	$(call pytest,$(GIL)) tests/compat
	$(say) "three packages from PyPI, stock and with the shim"
	$(PYTHON) tools/compat.py $(GIL)/bin/python $(FT)/bin/python --sample

.PHONY: test-builds test-builds-ft test-builds-gil
test-builds: test-builds-ft test-builds-gil ## An extension by each build system, with the shim, on both builds

test-builds-ft: setup-ft
	@$(say) "pytest examples/shim on the free-threaded build"
	$(call pytest,$(FT)) examples/shim/tests

test-builds-gil: setup-gil
	@$(say) "pytest examples/shim on the stock python3"
	$(call pytest,$(GIL)) examples/shim/tests

.PHONY: test-python-ft
test-python-ft: setup-ft ## The Python tests on the free-threaded build
	@$(say) "pytest tests/python on the free-threaded build"
	$(call pytest,$(FT)) tests/python

# What must hold whoever counts. Outside of it are tests that look at numbers of operations,
# in which those of the interpreter would be, and live mode's own.
FOUNDATION = $(addprefix tests/python/test_,$(addsuffix .py,\
    dying exact_counts finalized_once finalizers fork gc shutdown subinterpreters))

# With jumps all the time, with lulls, and with what is patched then but none that begins: which is usual
# depends on the processor.
pytest_live = for lulls in 0 1 never; do REFBUF_LULLS=$$lulls timeout --kill-after=10 $(TEST_LIMIT) \
    $(1)/bin/python -P -m refbuf run -m pytest --quiet $(PYTEST_ARGS) $(2); done

.PHONY: test-live
test-live: setup-ft ## The foundation's tests again, in an interpreter that counts through the buffers
	@$(say) "pytest of the foundation under live mode"
	$(call pytest_live,$(FT),$(FOUNDATION))

.PHONY: test-cpython-sample test-cpython
test-cpython-sample: setup-ft ## Some of CPython's own tests, in an interpreter that counts through the buffers
	@$(say) "a sample of CPython's own tests under live mode"
	REFBUF_LULLS=0 $(PYTHON) tools/cpython_suite.py $(FT)/bin/python --sample

test-cpython: setup-ft ## All of CPython's own tests under live mode, with lulls and without (30 minutes)
	@for lulls in 0 never 1; do
	    $(say) "CPython's own tests under live mode, REFBUF_LULLS=$$lulls"
	    REFBUF_LULLS=$$lulls $(PYTHON) tools/cpython_suite.py $(FT)/bin/python
	done

LIVE_TESTS = $(addprefix tests/python/test_,$(addsuffix .py,live doctor lulls run_command run_program run_ends))

.PHONY: test-lto
test-lto: ft-lto ## Live mode's tests, and others' under it, on the build with link-time optimization
	@$(say) "pytest of live mode on the build with link-time optimization"
	$(call pytest,$(LTO)) $(LIVE_TESTS)
	$(say) "pytest of the foundation under live mode on the build with link-time optimization"
	$(call pytest_live,$(LTO),$(FOUNDATION))
	$(say) "a sample of CPython's own tests under live mode on the build with link-time optimization"
	REFBUF_LULLS=0 $(PYTHON) tools/cpython_suite.py $(LTO)/bin/python --sample

.PHONY: test-python-gil
test-python-gil: setup-gil ## The Python tests on the stock python3
	@$(say) "pytest tests/python on the stock python3"
	$(call pytest,$(GIL)) tests/python

.PHONY: test-doc
test-doc: setup ## The examples in the crate's documentation, on both builds
	@for kind in ft gil; do
	    $(say) "cargo test --doc, for .venv-$$kind"
	    eval "$$(.venv-$$kind/bin/python tools/embedding.py)"
	    RUSTDOCFLAGS="$$link" LD_LIBRARY_PATH="$$libraries" \
	        PYO3_PYTHON="$$PWD/.venv-$$kind/bin/python" PATH="$$PWD/.venv-$$kind/bin:$$PATH" \
	        CARGO_TARGET_DIR=target/$$kind timeout $(TEST_LIMIT) $(CARGO) test --quiet --locked --doc
	done

RUST_EXAMPLE = examples/rust-extension
C_EXAMPLE = examples/c-extension
# On top of what its setup.py asks for.
STRICT_C = -Wundef -Werror

.PHONY: test-examples
test-examples: setup ## The example extensions, on both builds
	@for kind in ft gil; do
	    $(say) "$(RUST_EXAMPLE): installing it in .venv-$$kind"
	    PATH="$$PWD/.venv-$$kind/bin:$$PATH" CARGO_TARGET_DIR="$$PWD/target/$$kind" MATURIN_PEP517_ARGS="--locked" \
	        .venv-$$kind/bin/python $(pip_install) --no-build-isolation --no-deps --force-reinstall ./$(RUST_EXAMPLE)
	    $(say) "pytest $(RUST_EXAMPLE)"
	    $(call pytest,.venv-$$kind) $(RUST_EXAMPLE)/tests
	    $(say) "$(C_EXAMPLE): installing it in .venv-$$kind"
	    CFLAGS="$(STRICT_C)" \
	        .venv-$$kind/bin/python $(pip_install) --no-build-isolation --no-deps --force-reinstall ./$(C_EXAMPLE)
	    $(say) "pytest $(C_EXAMPLE)"
	    $(call pytest,.venv-$$kind) $(C_EXAMPLE)/tests
	done
	$(say) "examples/live: installing its libraries in $(FT)"
	$(FT)/bin/python $(pip_install) -r examples/live/requirements.txt
	$(say) "pytest examples/live"
	$(call pytest,$(FT)) examples/live/tests

.PHONY: test-all
test-all: test $(OTHER_VERSIONS:%=test-py%) ## All tests, and the Python and C ones on pyenv's 3.12 and 3.13 as well

test-py%: .venv-py%/.installed
	@$(say) "pytest tests/c and tests/python on $*"
	$(call pytest,.venv-py$*) tests/c
	$(call pytest,.venv-py$*) tests/python

# Without those of the commands, which measure, print and write files.
STRESS = $(filter-out %/test_config.py %/test_doctor.py $(wildcard tests/python/test_bench*.py \
    tests/python/test_lab_*.py tests/python/test_run_*.py),$(wildcard tests/python/test_*.py))

.PHONY: stress
stress: setup-ft ## The Python tests of what counts, on the free-threaded build, N=20 times in a row
	@for ((run = 1; run <= $(N); run++)); do
	    $(say) "stress: run $$run of $(N)"
	    $(call pytest,$(FT)) $(STRESS)
	done

# -- the lints ----------------------------------------------------------------

.PHONY: lint lint-format lint-clippy lint-python
lint: lint-format lint-clippy lint-python ## rustfmt, clippy in every configuration, ruff

CLIPPY = clippy --quiet --locked --all-targets
DENY = -- -D warnings

lint-format: rust
	@if $(CARGO) fmt --version > /dev/null 2>&1; then
	    $(say) "cargo fmt --check"
	    $(CARGO) fmt --check
	    $(CARGO) fmt --check --manifest-path $(RUST_EXAMPLE)/Cargo.toml
	else
	    $(say) "SKIPPED cargo fmt: it is not installed (rustup component add rustfmt)"
	fi

lint-clippy: $(FT)/.created $(GIL)/.created
	@if ! $(CARGO) clippy --version > /dev/null 2>&1; then
	    $(say) "SKIPPED cargo clippy: it is not installed (rustup component add clippy)"
	    exit 0
	fi
	$(say) "clippy: the core alone"
	CARGO_TARGET_DIR=target/core $(CARGO) $(CLIPPY) --no-default-features $(DENY)
	$(say) "clippy: the core under loom"
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) $(CLIPPY) --no-default-features $(DENY)
	for kind in ft gil; do
	    $(say) "clippy: everything, for .venv-$$kind"
	    PYO3_PYTHON="$$PWD/.venv-$$kind/bin/python" PATH="$$PWD/.venv-$$kind/bin:$$PATH" \
	        CARGO_TARGET_DIR=target/$$kind $(CARGO) $(CLIPPY) $(DENY)
	    PYO3_PYTHON="$$PWD/.venv-$$kind/bin/python" PATH="$$PWD/.venv-$$kind/bin:$$PATH" \
	        CARGO_TARGET_DIR=target/$$kind $(CARGO) $(CLIPPY) --manifest-path $(RUST_EXAMPLE)/Cargo.toml $(DENY)
	done

lint-python: $(LINT)/.created
	@$(say) "ruff check"
	$(LINT)/bin/ruff check --quiet python tests tools examples
	$(say) "ruff format --check"
	$(LINT)/bin/ruff format --quiet --check python tests tools examples

.PHONY: format
format: $(LINT)/.created ## Let rustfmt and ruff put the sources into shape
	@$(CARGO) fmt
	$(CARGO) fmt --manifest-path $(RUST_EXAMPLE)/Cargo.toml
	$(LINT)/bin/ruff check --quiet --fix python tests tools examples
	$(LINT)/bin/ruff format --quiet python tests tools examples

# -- the rest -----------------------------------------------------------------

.PHONY: clean
clean: ## Remove all that was built here; the interpreter in the cache stays
	@$(say) "removing build, target and the environments"
	rm -rf build target .venv-ft .venv-gil .venv-lto .venv-lint .venv-py3.12 .venv-py3.13 .pytest_cache .ruff_cache .hypothesis
	rm -rf $(C_EXAMPLE)/build $(C_EXAMPLE)/*.egg-info
	find python tests tools examples -name __pycache__ -type d -prune -exec rm -rf {} +
	find python -name '*.so' -delete
