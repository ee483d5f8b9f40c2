# The front door. `make` alone says what there is; CI calls the same targets.
#
# PYTHON, CARGO      other interpreters and tools
# ARGS               more arguments for `make run`, `make demo`, `make bench` and `make compare`
# BASCULE_DEPS       a folder in which several checkouts share what is fetched (default: .deps in this one)
# CARGO_TARGET_DIR   where cargo builds; `make build` leaves target/release/bascule in any case

SHELL := /bin/sh
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
CARGO ?= cargo
BOX ?=

# CI starts from a clean clone each time: what is fetched and built lives outside it, so that only the first run is cold.
ifeq ($(CI),true)
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/bascule
export BASCULE_DEPS ?= $(CACHE)
export CARGO_TARGET_DIR ?= $(CACHE)/target
LOCKED := --locked
endif

TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(or $(BASCULE_DEPS),$(CURDIR)/.deps)
DENY := $(TOOLS)/cargo-deny-0.20.2/bin/cargo-deny
FUZZ := $(TOOLS)/cargo-fuzz-0.13.2/bin/cargo-fuzz
PLUGIN := libbascule_torch.so
BUILD_PLUGIN = LIBTORCH="$(CURDIR)/.deps/torch" $(CARGO) build $(LOCKED) --release --package bascule-runtime-torch --target-dir "$(TARGET)"
export CARGO
export CARGO_FUZZ := $(FUZZ)

.PHONY: help deps test-deps test-servers build torch run demo test test-all test-long test-gpu bench compare lint fmt clippy deny train

help: ## Say what there is.
	@sed -n 's/^\([a-z-]*\):.*## /\1#/p' $(firstword $(MAKEFILE_LIST)) | awk -F'#' '{ printf "  make %-12s %s\n", $$1, $$2 }'

deps: ## Fetch ONNX Runtime into .deps/ (24 MB).
	@$(PYTHON) scripts/deps.py onnxruntime

build: deps ## Build target/release/bascule, which runs from any folder.
	$(CARGO) build $(LOCKED) --release --package bascule --target-dir "$(TARGET)"
	@if ! [ "$(TARGET)/release/bascule" -ef target/release/bascule ]; then \
	  mkdir -p target/release && cp "$(TARGET)/release/bascule" target/release/.bascule.$$$$ && \
	  mv -f target/release/.bascule.$$$$ target/release/bascule; \
	fi

torch: ## Fetch libtorch (530 MB) and build the plugin that serves TorchScript models.
	@$(PYTHON) scripts/deps.py torch
	$(BUILD_PLUGIN)
	@if ! [ "$(TARGET)/release/$(PLUGIN)" -ef target/release/$(PLUGIN) ]; then \
	  mkdir -p target/release && cp "$(TARGET)/release/$(PLUGIN)" target/release/.$(PLUGIN).$$$$ && \
	  mv -f target/release/.$(PLUGIN).$$$$ target/release/$(PLUGIN); \
	fi

run: build ## Serve a copy of models/ on 127.0.0.1: HTTP 8000, gRPC 8001, admin and metrics 8002.
	@if ! [ -d .bascule/run/models ]; then \
	  rm -rf .bascule/run.partial && mkdir -p .bascule/run.partial && cp -R models .bascule/run.partial/models && \
	  rm -rf .bascule/run && mv .bascule/run.partial .bascule/run; \
	fi
	@echo "serving .bascule/run/models, a copy of models/; remove .bascule/run to start afresh. Try, from this folder:"
	@echo
	@echo "  curl -s http://127.0.0.1:8000/v2/models/digits/infer -d @models/testset/request.json"
	@echo
	@exec target/release/bascule serve --registry .bascule/run/models --state-dir .bascule/run/state $(ARGS)

demo: build ## Swap versions under real traffic and print what happened; fails where a request failed.
	@target/release/bascule demo --models models $(ARGS)

test-deps: ## Set up what only tests need: Python clients (310 MB), real models (23 MB) and an object store (150 MB).
	@$(PYTHON) scripts/deps.py onnxruntime models venv || echo "make: going on without; the tests that need it will be counted as skipped"
	@$(PYTHON) scripts/deps.py oci-registry || echo "make: going on without an OCI registry; its tests will be counted as skipped"

	@$(PYTHON) scripts/deps.py seaweedfs || echo "make: going on without SeaweedFS; the tests that need an object store will be counted as skipped"

test-servers: ## Set up the servers that only the long tests need: a second S3, storage of Azure and Google, MLflow (1.4 GB).
	@for part in moto azurite gcs mlflow; do \
	  $(PYTHON) scripts/deps.py $$part || echo "make: going on without $$part; its tests will be counted as skipped"; \
	done

test: test-deps ## Run the tests; those of TorchScript where `make torch` was run.
	@$(PYTHON) scripts/run_tests.py short

test-all: torch test test-long ## Run the tests and the long ones: 1,000 swaps, 10,000 seeds, fuzzing, the demo.

test-gpu: test-deps ## Run the tests that need an NVIDIA GPU; elsewhere each says that it is skipped.
	@$(PYTHON) scripts/run_tests.py gpu

# The long tests alone; BOX=SECONDS runs as many as fit.
test-long: test-deps test-servers
	@$(MAKE) $(FUZZ) || echo "make: going on without cargo-fuzz; fuzzing will be counted as skipped"
	@$(PYTHON) scripts/run_tests.py long $(if $(BOX),--box $(BOX))

bench: build ## Measure beside bare servers, at overload and in swaps; JSON goes to .bascule/bench.json.
	@$(PYTHON) scripts/deps.py load-tools models seaweedfs || echo "make: going on with what there is"
	@mkdir -p .bascule
	$(CARGO) run $(LOCKED) --release --package bascule-benches --target-dir "$(TARGET)" -- --json .bascule/bench.json $(ARGS)

compare: build ## Measure beside servers that pip installs (2.2 GB); ARGS="--only mlserver,kserve" takes these.
	@mkdir -p .bascule
	@$(PYTHON) benches/compare/compare.py --json .bascule/compare.json $(ARGS)

lint: fmt clippy deny ## Check formatting, lints, licences and dependency rules.

fmt:
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path tests/fuzz/Cargo.toml --check

# The test program that needs a GPU is named: no test run builds it, and `--all-targets` leaves it out.
clippy:
	$(CARGO) clippy $(LOCKED) --all-targets -- -D warnings
	$(CARGO) clippy $(LOCKED) --package bascule --test gpu -- -D warnings
	@if [ -e .deps/torch ]; then set -x; \
	  LIBTORCH="$(CURDIR)/.deps/torch" $(CARGO) clippy $(LOCKED) --release --package bascule-runtime-torch --all-targets -- -D warnings; \
	else echo "make: the torch plugin is not linted: libtorch is not there (make torch)"; fi

deny: $(DENY)
	$(DENY) $(LOCKED) check --hide-inclusion-graph --allow unused-wrapper bans licenses sources

train: ## Train the sample models again and compare with what is committed.
	@$(PYTHON) scripts/deps.py train
	@.deps/train/bin/python models/train.py
	@.deps/train/bin/python models/train.py --check

# Tools are built in a scratch folder of cargo's, not in ours; the version is part of the path, so a new pin is a new folder.
$(TOOLS)/cargo-deny-%/bin/cargo-deny:
	env -u CARGO_TARGET_DIR $(CARGO) install --locked --root $(TOOLS)/cargo-deny-$* --version $* cargo-deny

$(TOOLS)/cargo-fuzz-%/bin/cargo-fuzz:
	env -u CARGO_TARGET_DIR $(CARGO) install --locked --root $(TOOLS)/cargo-fuzz-$* --version $* cargo-fuzz
