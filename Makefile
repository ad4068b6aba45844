# Development commands: `make demo` shows the locks at work, `make test`
# checks everything, `make bench` measures, `make mutants` changes the code to see
# whether the tests notice, `make matrix` tries other Pythons and servers. All need
# a Rust toolchain and Python 3.10 or later, and create their own environments in
# build/, again if PYTHON changes.

PYTHON ?= python3
BUILD := build
ENV := $(BUILD)/env
ORIGINAL := $(BUILD)/original
BIN := $(ENV)/bin
PIP := -m pip --disable-pip-version-check --quiet install

SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md \
    $(shell find src python -type f -not -name '*.pyc')

.PHONY: audit bench dist failover leaks demo test rust threads lint types stubs pytest mutants matrix model \
    chaos chaos-selftest proof docs wheel clean always
.DEFAULT_GOAL := test

demo: $(BUILD)/installed
	$(BIN)/python demo/demo.py

# Two minutes of chaos, always with one seed: without a change the result does not change.
test: SEED ?= test
test: rust lint types stubs pytest chaos docs
	@echo "== everything passed"

# Identifies the interpreter. Rewritten only when that changes, which discards its environments.
$(BUILD)/python: always
	@mkdir -p $(BUILD)
	@$(PYTHON) -c 'import sys; print(sys.executable, sys.version)' > $@.now
	@cmp -s $@.now $@ || { rm -rf $(ENV) $(ORIGINAL) $(BUILD)/bench && mv $@.now $@; }
	@rm -f $@.now

# The tools, which change rarely.
$(BUILD)/tools: $(BUILD)/python requirements/develop.txt requirements/tests.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed; set PYTHON=…")'
	$(PYTHON) -m venv $(ENV)
	$(BIN)/python $(PIP) --upgrade pip
	$(BIN)/python $(PIP) -r requirements/develop.txt
	touch $@

# The wheel, built once per change and installed as users install it: Python
# would not find an editable install beside other packages of `score`.
$(BUILD)/installed: $(BUILD)/tools $(SOURCES)
	rm -rf $(BUILD)/wheel
	$(BIN)/maturin build --quiet --release --locked --interpreter $(BIN)/python --out $(BUILD)/wheel
	$(BIN)/python $(PIP) --force-reinstall --no-deps $(BUILD)/wheel/*.whl
	$(BIN)/python $(PIP) "$$(echo $(BUILD)/wheel/*.whl)[sqlalchemy,embedded,cli,opentelemetry,prometheus]"
	touch $@

wheel: $(BUILD)/installed
	@ls $(BUILD)/wheel

# The release, in build/dist: wheels for glibc from 2.17 and musl from 1.2, linked by zig, and the
# source distribution. Those that fit this machine are installed and tested.
TARGETS ?= x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu \
    x86_64-unknown-linux-musl aarch64-unknown-linux-musl
dist: $(BUILD)/tools
	rm -rf $(BUILD)/dist
	$(BIN)/python $(PIP) 'maturin[zig]>=1.11,<2' packaging
	rustup target add $(TARGETS)
	for target in $(TARGETS); do \
	    case $$target in *-gnu) policy=manylinux_2_17 ;; *) policy=musllinux_1_2 ;; esac; \
	    PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/maturin build --quiet --release --locked --zig \
	        --target $$target --compatibility $$policy --interpreter $(BIN)/python \
	        --out $(BUILD)/dist || exit; \
	done
	$(BIN)/maturin sdist --out $(BUILD)/dist
	$(BIN)/python checks/wheels.py $(BUILD)/dist/*

# Licences, sources and duplicates of the crates; known vulnerabilities of crates and Python
# packages. Needs a network.
audit: $(BUILD)/tools
	command -v cargo-deny > /dev/null || cargo install --quiet --locked cargo-deny
	cargo deny --all-features check bans licenses sources
	cargo deny --all-features check advisories
	$(BIN)/python $(PIP) pip-audit
	$(BIN)/pip-audit --requirement requirements/tests.txt

# score.distlock 0.2.5, the original, with its dependencies. Python 3.12 and later
# may not be able to install them; its tests are then skipped, with the reason.
$(BUILD)/original.done: $(BUILD)/python requirements/original.txt
	rm -rf $(ORIGINAL)
	$(PYTHON) -m venv $(ORIGINAL)
	@echo "== installing score.distlock 0.2.5 into $(ORIGINAL)"
	@$(ORIGINAL)/bin/python $(PIP) -r requirements/original.txt > $(BUILD)/original.log 2>&1 \
	  && $(ORIGINAL)/bin/python -c 'import score.distlock' >> $(BUILD)/original.log 2>&1 \
	  || { tail -n 3 $(BUILD)/original.log > $(ORIGINAL)/UNAVAILABLE; \
	       echo "it cannot be installed here:"; cat $(ORIGINAL)/UNAVAILABLE; }
	touch $@

rust:
	@echo "== rustfmt"
	cargo fmt --check
	@echo "== clippy"
	cargo clippy --quiet --locked --all-targets --features python -- -D warnings
	@echo "== cargo test"
	cargo test --locked

# Runs the core's threads in random orders (shuttle): SHUTTLE_ITERATIONS orders of each test, by
# default 2000, which take 30 to 60 seconds. THREADS='a_loss' selects tests. To reproduce a
# failure, set SHUTTLE_RANDOM_SEED to the seed it prints.
threads:
	cargo test --quiet --locked --features shuttle --lib interleavings::$(THREADS) -- --nocapture

lint: $(BUILD)/tools
	@echo "== ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BUILD)/installed
	@echo "== mypy"
	$(BIN)/mypy python/score
	$(BIN)/mypy tests demo checks

stubs: $(BUILD)/installed
	@echo "== stubtest"
	cd $(BUILD) && env/bin/python -m mypy.stubtest score.distlock --mypy-config-file ../pyproject.toml

# Most tests wait more than they compute. Each file stays on one of the three workers.
PYTEST ?= -n 3 --dist loadfile
pytest: $(BUILD)/installed $(BUILD)/original.done
	@echo "== pytest"
	$(BIN)/python -m pytest $(PYTEST)

# Small changes of the SQL and the Python, then of the Rust that needs no database.
# MUTANTS='release.sql _all.py' selects some; a survivor fails the run. Some forty minutes.
mutants: $(BUILD)/installed $(BUILD)/original.done
	$(BIN)/python checks/mutants.py $(MUTANTS)
	command -v cargo-mutants > /dev/null || cargo install --quiet --locked cargo-mutants
	cargo mutants --no-shuffle --output $(BUILD)

matrix: $(BUILD)/installed $(BUILD)/original.done
	$(BIN)/python checks/matrix.py $(BUILD)/wheel/*.whl

# Tries to break the locks for MINUTES, with SEED; CHAOS='--way proxy --keep FOLDER' adds options.
chaos: $(BUILD)/installed $(BUILD)/original.done
	$(BIN)/python -m checks.chaos --minutes $(or $(MINUTES),2) --seed "$(SEED)" $(CHAOS)

# Checks that chaos catches five broken versions, and 0.2.5. Some five minutes.
chaos-selftest: $(BUILD)/installed $(BUILD)/original.done
	$(BIN)/python -m checks.chaos.selftest

# The protocol, explored exhaustively for small sizes; half a minute. MODEL=--large takes five.
model:
	cargo test --quiet --release --locked --manifest-path checks/model/Cargo.toml
	cargo run --quiet --release --locked --manifest-path checks/model/Cargo.toml -- $(MODEL)

# Everything docs/maintainers/proof.rst shows: an hour of chaos for this module, ten minutes for 0.2.5, the
# broken versions, the whole model, a million calls. Some two hours; PROOF_MINUTES=2 is quick.
PROOF_MINUTES ?= 60
proof: $(BUILD)/installed $(BUILD)/original.done
	mkdir -p docs/proof
	$(BIN)/python -m checks.chaos --minutes $(PROOF_MINUTES) --seed "$(SEED)" --json docs/proof/chaos.json
	$(BIN)/python -m checks.chaos --subject 0.2.5 --minutes 10 --json docs/proof/old.json || true
	$(BIN)/python -m checks.chaos.selftest --json docs/proof/selftest.json
	$(MAKE) model MODEL="--large --json $(CURDIR)/docs/proof/model.json"
	$(MAKE) leaks && cp $(BUILD)/leaks.json docs/proof
	$(BIN)/python -m checks.report docs/proof docs/proof.txt

docs: $(BUILD)/installed
	@echo "== Sphinx"
	$(BIN)/sphinx-build -q -n -W --keep-going -b html docs $(BUILD)/docs
	@echo "see $(BUILD)/docs/index.html"

# The competitors, each in its own environment; those that cannot be installed
# here are left out, and the results say so.
$(BUILD)/bench.done: $(BUILD)/python requirements/bench.txt
	mkdir -p $(BUILD)/bench
	newest=$(PYTHON); for version in 3.12 3.13 3.14; do \
	    for python in $${PYENV_ROOT:-~/.pyenv}/versions/*/bin/python$$version python$$version; do \
	        ! $$python -c 'import ensurepip' 2> /dev/null || newest=$$python; \
	    done; \
	done; \
	grep -v '^#' requirements/bench.txt | while read -r packages; do \
	    case "$$packages" in *'# newest') python=$$newest ;; *) python=$(PYTHON) ;; esac; \
	    packages=$${packages%%#*}; \
	    name=$$(echo "$$packages" | sed 's/[[ ].*//'); \
	    test -d $(BUILD)/bench/$$name || $$python -m venv $(BUILD)/bench/$$name; \
	    $(BUILD)/bench/$$name/bin/python $(PIP) $$packages || true; \
	done
	ln -sfn ../env $(BUILD)/bench/ours
	ln -sfn ../original $(BUILD)/bench/original
	touch $@

# Some fifteen minutes; BENCH_ROUNDS, BENCH_SECONDS, BENCH_CYCLES and BENCH_PARTS make
# it shorter. The documentation shows the results, which go into docs/.
bench: $(BUILD)/installed $(BUILD)/original.done $(BUILD)/bench.done
	BENCH_OUTPUT=docs $(BIN)/python bench/run.py $(BUILD)/bench
	$(BUILD)/bench/matplotlib/bin/python bench/plot.py docs/benchmarks.json docs

# Patroni in its own environment. Root starts it as another user, who may have no access to
# a Python in root's home, so the system's is preferred.
$(BUILD)/patroni.done: requirements/failover.txt $(BUILD)/tools
	rm -rf $(BUILD)/patroni
	python=/usr/bin/python3; $$python -c 'import venv' 2> /dev/null || python=$(PYTHON); \
	$$python -m venv --without-pip $(BUILD)/patroni \
	  && $(BIN)/python -m pip --quiet --python $(BUILD)/patroni/bin/python install -r $< || true
	command -v etcd || ! command -v apt-get || [ "$$(id -u)" != 0 ] \
	  || { apt-get update -q && apt-get install -y -q etcd-server; } || true
	touch $@

# Some five minutes: three PostgreSQLs lose their leader in four ways under load.
failover: $(BUILD)/installed $(BUILD)/patroni.done
	$(BIN)/python -m tests.failover.run $(BUILD)/patroni

# Some ten minutes: memory, descriptors, threads, sessions and the table must not grow.
CALLS ?= 1000000
leaks: $(BUILD)/installed
	$(BIN)/python -m checks.leaks --calls $(CALLS) --json $(BUILD)/leaks.json

clean:
	rm -rf $(BUILD) target
