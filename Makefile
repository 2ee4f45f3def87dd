# Codemill's tasks. Each sets up .venv by itself, and installs again only when pyproject.toml, constraints.txt
# or the C++ kernels change.
# Another Python: make run PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The constraints pin torch to a version that is known to work; without them pip may fetch gigabytes.
PIP_INSTALL := $(BIN)/python -m pip install --constraint constraints.txt
# Compiled when the package is installed; without a C++ compiler PyTorch does the work.
KERNELS := $(wildcard src/codemill/kernels/cpu/*.cpp src/codemill/kernels/cpu/*.h)
# What `make run` continues: a signature and a docstring.
FUNCTION := 'def solve(numbers: list[int]) -> int:\n    """Keep the even numbers, square each number, then return the sum."""\n'
# Where `make run` completes code: FILE:LINE.
COMPLETE_AT := examples/shopping.py:5

# The others need a model, or results of the others.
BENCHES := $(filter-out $(addprefix benchmarks/,big_models.py busy_machine.py copying_model.py draw_cpu_speed.py \
	server_client.py server_process.py server_protocols.py server_prefix_reuse.py server_soak.py),\
	$(wildcard benchmarks/*.py))

# Programs of other people that talk to the server, each Python one in an environment of its own.
CLIENTS := $(VENV)/clients

.PHONY: run test test-slow test-clients test-web test-fuzz test-soak neon sanitize bench toolchains docs clean help

help:
	@echo 'make run        set up, then generate and complete code with the embedded model'
	@echo 'make test       set up, then the whole check: format, lint, types, tests'
	@echo 'make test-slow  the tests that take minutes'
	@echo 'make test-clients  the server with the agents that people use, from npm and PyPI (about 3 GB)'
	@echo 'make test-web   the tests of the web page in Chromium (installs it by apt-get where it is missing, as root)'
	@echo 'make test-fuzz  thousands of odd requests to the server, of which none may make it fail'
	@echo 'make test-soak  the server under clients that leave and send nonsense, for minutes'
	@echo 'make neon       the kernel tests against kernels for aarch64, in an emulator'
	@echo 'make sanitize   the kernel tests with sanitizers for memory, arithmetic and threads'
	@echo 'make bench      every script in benchmarks/ that needs no argument'
	@echo 'make toolchains the compilers and interpreters of the sandbox, by apt-get (Debian 12, as root)'
	@echo 'make docs       check the commands, links and code in the documentation'
	@echo 'make clean      remove what the tools left behind, but not $(VENV)'

run: $(VENV)/run.stamp
	printf $(FUNCTION) | $(BIN)/codemill generate -
	$(BIN)/codemill complete $(COMPLETE_AT)

test: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow

test-clients: $(CLIENTS)/stamp
	CODEMILL_CLIENTS=$(abspath $(CLIENTS)) $(BIN)/python -m pytest -m 'slow or not slow' tests/clients

test-web: $(VENV)/dev.stamp
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { apt-get update && apt-get install --yes --no-install-recommends chromium; } || \
	  { echo 'error: no Chromium here; install it, or name one with CODEMILL_CHROMIUM=FILE' >&2; exit 1; }
	$(PIP_INSTALL) 'playwright>=1.50'
	$(BIN)/python -m pytest -m 'slow or not slow' tests/server/web

test-fuzz: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow or not slow' -s tests/server/test_fuzz.py

test-soak: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m 'slow or not slow' tests/server/test_soak.py

neon: $(VENV)/dev.stamp
	$(BIN)/python tests/kernels/builds/run.py neon

sanitize: $(VENV)/dev.stamp
	$(BIN)/python tests/kernels/builds/run.py threads
	$(BIN)/python tests/kernels/builds/run.py sanitize

bench: $(VENV)/dev.stamp
	@for script in $(BENCHES); do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

toolchains: $(VENV)/run.stamp
	apt-get update
	apt-get install --yes --no-install-recommends $$($(BIN)/python -c 'from codemill.eval.multipl_e import debian_packages as p; print(*p())')

docs: $(VENV)/dev.stamp
	$(BIN)/python -m pytest tests/test_docs.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/run.stamp: pyproject.toml constraints.txt $(KERNELS)
	$(make_venv)
	$(PIP_INSTALL) --editable '.[serve,agent]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt $(KERNELS)
	$(make_venv)
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/run.stamp $@

$(CLIENTS)/stamp: tests/clients/package.json tests/clients/python_clients.txt | $(VENV)/dev.stamp
	@command -v npm >/dev/null || { echo 'error: npm is not there: install Node.js' >&2; exit 1; }
	mkdir -p $(CLIENTS)
	cp tests/clients/package.json $(CLIENTS)
	npm install --prefix $(CLIENTS) --no-audit --no-fund
	while read -r client requirement; do \
	  $(PYTHON) -m venv $(CLIENTS)/$$client && $(CLIENTS)/$$client/bin/python -m pip install --quiet "$$requirement" </dev/null || exit 1; \
	done < tests/clients/python_clients.txt
	@touch $@

define make_venv
	@command -v $(PYTHON) >/dev/null || { echo 'error: $(PYTHON) is not there; try make $(MAKECMDGOALS) PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Codemill needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version); try make $(MAKECMDGOALS) PYTHON=python3.11" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
endef
