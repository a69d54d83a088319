# Everything needs only make, git and a Python of 3.11 or newer with venv. Nothing here needs root.
#   make demo     three regions on this machine          make check    ruff and mypy
#   make test     the tests                              make faults   the tests that break things on purpose
#   make simulate SEEDS=1000000: regions, faults and clocks from a million seeds; the replicated map must survive all
#   make bench    side-by-side measurements              make build    sdist and wheel in dist/
#   make clean    remove what the targets above made
# PYTHON=... chooses the interpreter, BASE_PORT=... moves the demo, ARGS=... goes to pytest, JOBS=... says how many test
# files run at once.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUNS = -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
PYTHON ?= $(firstword $(shell for p in python3 python3.13 python3.12 python3.11; do $$p $(RUNS) && echo $$p; done))
ARGS ?=
JOBS ?= 3
SEEDS ?= 10000

# Everything that breaks something on purpose, in full length and with every limit as it is written.
FAULTS = $(addprefix tests/, core/test_model.py control/test_yaml_file.py control/test_peer_probes.py \
    control/test_redis_feed.py \
    store/test_big_map.py \
    $(addprefix proxy/, test_disagree.py test_failures.py test_fuzz.py test_retries.py test_deadlines.py) \
    $(addprefix e2e/, test_big_bodies.py test_cardinality.py test_dns.py test_history.py test_isthmus.py test_kills.py test_log_lines.py test_map_file.py \
        test_replacement.py test_redis_outage.py test_redis_records.py test_redis_regions.py test_retry_storm.py \
        test_breakers.py test_partition.py \
        test_secrets.py test_shedding.py test_ssrf.py \
        test_stalled_log.py test_three_regions.py test_throttle.py test_tokens.py))

.PHONY: demo test check faults simulate bench build clean install
.SILENT:

demo: $(INSTALLED)
	$(BIN)/landbridge demo $(if $(BASE_PORT),--base-port $(BASE_PORT))

test: $(INSTALLED)
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: $(INSTALLED)
	LANDBRIDGE_ALLOWANCE=1 $(BIN)/pytest -s -m '' $(FAULTS) $(ARGS)

simulate: $(INSTALLED)
	$(BIN)/python -m tests.simulator --seeds $(SEEDS) $(ARGS)

bench: $(INSTALLED)
	found=; for script in bench/*.py; do \
	    [ -f "$$script" ] || continue; found=1; echo "$$script"; $(BIN)/python "$$script" $(ARGS); \
	done; [ "$$found" ] || { echo "bench/ holds no measurement yet" >&2; exit 1; }

build: $(INSTALLED)
	$(BIN)/python -m build --outdir dist . >/dev/null && ls dist

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	[ -n "$(PYTHON)" ] || { echo "needs Python 3.11 or newer with venv (Debian: python3-venv), or PYTHON=..." >&2; exit 1; }
	[ -x $(BIN)/python ] || { echo "creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	echo "installing landbridge and its tools into $(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
