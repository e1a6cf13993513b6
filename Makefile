# Every target needs only python3 (3.11 or newer) with venv and pip; .venv is built once and reused.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_VENV := .venv-bench
BENCH_READY := $(BENCH_VENV)/.ready

.PHONY: demo serve test faults check bench pytorch lock format clean

demo: $(READY)
	$(BIN)/fallline demo

serve: $(READY)
	$(BIN)/fallline serve

test: $(READY)
	$(BIN)/pytest

# Every fault that is made for real, one by one; `make test` has a quick part of them. The first line alone takes the
# switch: the service refuses variables that it does not know.
faults: $(READY)
	FALLLINE_FAULTS=all $(BIN)/pytest --verbose --log-cli-level=INFO tests/faults tests/deploy
	$(BIN)/pytest --verbose tests/system/test_controller.py tests/system/test_supervisor.py \
		tests/system/test_checkpoints.py tests/system/test_cluster.py tests/system/test_nodes.py
	$(BIN)/pytest --hypothesis-profile=drawn tests/core tests/service tests/worker
	FALLLINE_SIMULATED_WORLDS=10000 $(BIN)/pytest --verbose tests/service/test_simulated_world.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/shellcheck .ci/run
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose*.yaml
	$(BIN)/kubernetes-validate --strict --no-warn --quiet deploy/kubernetes/*.yaml

# BENCH="engine --mnist FOLDER" chooses; the peers live in an environment of their own.
bench: $(BENCH_READY)
	$(BENCH_VENV)/bin/python -m benchmarks $(BENCH)

# Random networks beside PyTorch's, which `make test` must skip: only that environment has it.
pytorch: $(BENCH_READY)
	$(BENCH_VENV)/bin/pytest tests/core/test_pytorch.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A new lock, from requirements.in: universal over platforms and Python versions, with hashes, without index hosts. The
# image's is the part of it that runs: what the packages import, and what builds them.
COMPILE := pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet
lock: $(READY)
	$(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/pip install --quiet uv
	$(VENV)/lock/bin/uv $(COMPILE) requirements.in -o requirements.lock
	echo setuptools | $(VENV)/lock/bin/uv $(COMPILE) pyproject.toml - --constraint requirements.lock -o deploy/requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Fall Line needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# The locked environment, and each peer of the extra `bench` that the index has: a missing one costs its rows alone.
$(BENCH_READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BENCH_VENV)/bin/pip freeze --exclude-editable > $(BENCH_VENV)/constraints.txt
	@$(BENCH_VENV)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"], sep="\n")' \
		| while read peer; do \
			$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check -c $(BENCH_VENV)/constraints.txt $$peer \
				|| echo "not installed: $$peer"; \
		done
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) build *.egg-info
