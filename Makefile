# make install: everything a fresh machine needs   make demo: the whole pipeline on the built-in cohort
# make test: all tests                             make check: style, types, workflow lint, generated files
VENV := .venv
BIN := $(VENV)/bin
# The Python of .venv or, without one, the newest that is there, runs (pyenv leaves names that do not) and makes virtual
# environments (Debian's does with the package python3-venv). PYTHON=… takes another.
FIT := -c 'import sys, ensurepip, venv; sys.exit(sys.platform != "linux" or not (3, 11) <= sys.version_info[:2] <= (3, 13))'
VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
PYTHON ?= $(shell for one in $(BIN)/python python3.13 python3.12 python3.11 python3; do \
	"$$one" $(FIT) >/dev/null 2>&1 && { command -v "$$one"; break; }; done)
INSTALLED := $(VENV)/.installed
PYTHON_SOURCES := src workflow_scripts tests benchmarks

.PHONY: install demo test test-units test-workflow slurm check lock generated clean

ifneq (,$(strip $(foreach character,: { } " $$ ` \,$(findstring $(character),$(CURDIR)))))
$(error NeuroMF does not run from a folder with one of : { } " $$ ` \ in its path: move $(CURDIR))
endif

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@python="$(PYTHON)"; "$$python" $(FIT) 2>/dev/null || \
		{ echo "NeuroMF needs Python 3.11, 3.12 or 3.13 with venv on Linux, and $${python:-no python3 found here} is none: install it (Debian/Ubuntu: apt-get install python3-venv; Fedora: dnf install python3.13) or set PYTHON=/path/to/python3.12" >&2; exit 1; }
	@python="$(PYTHON)"; if [ -e $(BIN)/python ] || [ -L $(BIN)/python ]; then \
		there=$$($(BIN)/python $(VERSION) 2>/dev/null); wanted=$$("$$python" $(VERSION)); [ "$$there" = "$$wanted" ] || \
		{ echo "$(VENV) is of Python $${there:-that is gone}, $$python is $$wanted: \`make clean\` first, which removes $(VENV)" >&2; exit 1; }; fi
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: install
	$(BIN)/snakemake
	@echo "The report: results/releases/demo/report/index.html"

# Side by side, since neither keeps two cores busy: units on one thread and then Slurm, which mostly waits, and the workflow's
# other tests. What each said comes when it has ended. Threads that wait for each other must not spin meanwhile: a training on
# two threads takes five times as long beside another process if they do.
export OMP_WAIT_POLICY := PASSIVE
test: install slurm
	$(MAKE) --jobs=2 --output-sync=target test-units test-workflow

test-units: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit tests/workflow/test_slurm.py

test-workflow: install
	$(BIN)/python -m pytest tests/workflow --ignore tests/workflow/test_slurm.py

# tests/workflow/test_slurm.py starts a Slurm of its own: its packages, where this is root on Debian or Ubuntu
slurm:
	@{ command -v slurmctld && command -v munged; } >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && apt-get update -qq -o Acquire::http::Timeout=20 && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slurm-wlm munge >/dev/null; } || \
		echo "No Slurm here and none installed (Debian or Ubuntu, as root: apt-get install slurm-wlm munge): its test is skipped"

check: install
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile rules workflow
	$(BIN)/snakemake --lint
	$(BIN)/python -m neuromf.config_reference --check
	$(BIN)/python -m neuromf.environment --check

# What is generated from the sources: config/README.md, config/schema.json, envs/neuromf.yaml, the README's drawing of the workflow
generated: install
	$(BIN)/python -m neuromf.config_reference
	$(BIN)/python -m neuromf.environment
	$(BIN)/snakemake --rulegraph mermaid-js | $(BIN)/python -m neuromf.readme

lock: install
	$(BIN)/uv pip compile --quiet --universal --extra dev --generate-hashes --no-header --no-emit-index-url \
		--no-emit-find-links --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
