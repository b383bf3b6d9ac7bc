# One command for each job; `make` alone lists them. Whatever needs the environment makes it.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-pyproject
CORES = $(shell getconf _NPROCESSORS_ONLN)
# The first Python from 3.11 on that can make environments. A pyenv shim of a version that is not active fails.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# The package with all that may be had with it, and the tests that touch the most of what it depends on.
ALL := .[dask,ipython,joblib,mpi,numpy]
AT_RISK := tests/floor tests/conformance tests/contract tests/unit/test_codec.py tests/unit/test_by_value.py \
	tests/kernel/test_ipython.py tests/kernel/test_mpi.py tests/futures/test_executor.py tests/launchers/test_places.py \
	tests/cli/test_operation_commands.py tests/cli/test_shown.py tests/cli/test_protos.py \
	$(addprefix tests/cli/test_cluster_commands.py::test_,the_first_word the_environment_names_a_cluster status_is_a_table) \
	--deselect tests/kernel/test_ipython.py::test_figures  # takes matplotlib
CHECKS := format lint types stubs imports protos

.DEFAULT_GOAL := help
.PHONY: help run test test-lowest chaos soak fuzz run-controller run-engine setup protos package bench clean verify fix \
	$(addprefix verify-,$(CHECKS)) $(addprefix fix-,$(CHECKS))

help:  ## List the targets.
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

run: $(STAMP)  ## Do real work: a census of the standard library on N engines (default: one for each core).
	$(BIN)/enginery run examples/stdlib_census.py -n $(or $(N),$(CORES))

test: $(STAMP)  ## Run the test suite; T= passes options to pytest.
	$(BIN)/python -m pytest -n 2 --dist loadfile $(T)

test-lowest: $(VENV)-lowest/.made  ## Run what is most at risk with the lowest version of each dependency; T=tests runs all.
	$(VENV)-lowest/bin/python -m pytest -n 2 --dist loadfile $(or $(T),$(AT_RISK))

chaos: $(STAMP)  ## Kill, freeze and cut off everything for MINUTES= (30); SEED= says how. Nothing may be lost or run twice.
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),30) --seed $(or $(SEED),1)

soak: $(STAMP)  ## Load everything steadily for MINUTES= (30). Memory must stay flat.
	$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),30) --seed $(or $(SEED),1)

fuzz: $(STAMP)  ## Try COUNT= (300000) spoilt inputs on everything that reads bytes of others; SEED= says which.
	$(BIN)/python -m tests.fuzz --count $(or $(COUNT),300000) --seed $(or $(SEED),1)

run-controller: $(STAMP)  ## Run a controller in the foreground; prints a ready grpcurl line.
	$(BIN)/enginery controller

run-engine: $(STAMP)  ## Run an engine in the foreground, N= for more; waits for a controller.
	$(BIN)/enginery engine -n $(or $(N),1)

bench: $(STAMP) $(if $(PEERS),$(VENV)-peers/.made)  ## Measure; PEERS=1 adds ipyparallel, Dask, Ray and process pools, WRITE=1 updates benchmarks/README.md.
	$(BIN)/python -m benchmarks $(if $(PEERS),--peers $(VENV)-peers/bin/python) $(if $(WRITE),--write)

setup: $(STAMP)  ## Make the environment in .venv, or renew it after a change of pyproject.toml.

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python from 3.11 on with venv found: install one, or say PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Making the environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --upgrade 'pip>=25.1' && $(BIN)/python -m pip install -q -e '$(ALL)' --group dev \
		&& $(BIN)/python -m pip install -q --no-deps --group stubs && touch $@

# Beside the lowest versions only what the tests AT_RISK need, in wheels: it is made within half a minute.
$(VENV)-lowest/.made: pyproject.toml
	@echo "Making the environment in $(@D)"
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python tools/lowest_versions.py >$(@D)/lowest.txt
	@$(@D)/bin/python -m pip install -q --upgrade 'pip>=25.1' && $(@D)/bin/python -m pip install -q --no-compile \
		--only-binary :all: -c $(@D)/lowest.txt -e '$(ALL)' --group test && touch $@

$(VENV)-peers/.made: pyproject.toml
	@echo "Making the environment in $(@D)"
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install -q --upgrade 'pip>=25.1' && $(@D)/bin/python -m pip install -q --group peers && touch $@

protos: fix-stubs fix-protos  ## Format the contract and generate its stubs.

package: $(STAMP)  ## Build the wheel, install it into a new environment, and use it there.
	$(BIN)/python tools/check_package.py

verify: $(addprefix verify-,$(CHECKS))  ## Check everything that is not a test; verify-X checks one of: format lint types stubs imports protos.

fix: fix-protos fix-stubs fix-imports fix-lint fix-format  ## Mend what a tool can mend; fix-X mends one.

verify-format: $(STAMP)
	$(BIN)/ruff format --check
fix-format: $(STAMP)
	$(BIN)/ruff format

verify-lint: $(STAMP)
	$(BIN)/ruff check
fix-lint: $(STAMP)
	$(BIN)/ruff check --fix

verify-types: $(STAMP)
	$(BIN)/mypy
fix-types: verify-types  # Types are mended by hand; this shows which.

verify-stubs: $(STAMP)
	$(BIN)/python tools/gen_protos.py --check
fix-stubs: $(STAMP)
	$(BIN)/python tools/gen_protos.py

verify-imports: $(STAMP)
	$(BIN)/lint-imports
fix-imports: $(STAMP)  # Sorts and prunes imports; one that points the wrong way is mended by hand.
	$(BIN)/ruff check --select I,F401,TC --fix

verify-protos: $(STAMP)
	$(BIN)/buf lint protos
	$(BIN)/buf format protos --diff --exit-code
	$(BIN)/buf breaking protos --against protos/released.binpb
fix-protos: $(STAMP)
	$(BIN)/buf format protos --write

clean:  ## Remove environments and caches.
	rm -rf $(VENV) $(VENV)-* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
