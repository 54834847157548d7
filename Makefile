# Two commands on a fresh machine: `make run` and `make test`. Needs Python 3.11+, pip and make.
PYTHON ?= python3
STUDY ?= studies/quickstart/study.yaml
export OMP_WAIT_POLICY = PASSIVE
# Packages that uv installs are compiled when they are first imported: let that be kept, or every process takes twice as long to start.
export PYTHONDONTWRITEBYTECODE =

.PHONY: run test check notebooks docs setup clean

run: .venv/ready
	.venv/bin/nas run $(STUDY) $(ARGS)

test: .venv/tools
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Style, types, and the order of the packages.
check: .venv/tools
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# The notebooks, executed into runs/notebooks; notebooks/ stays as it is.
notebooks: .venv/tools
	OMP_NUM_THREADS=1 .venv/bin/python notebooks/execute.py $(ARGS)

# The pages of docs/ and what is generated from the code, as a site that opens from the disk: site/index.html. Then everything that
# the pages show is run, in a copy.
docs: .venv/docs .venv/tools
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict
	@echo "site/index.html"
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -m docs tests/test_docs.py

setup: .venv/ready

# Installed once, and again when pyproject.toml or constraints.txt change: what a study and an export need, what tests need, what
# the pages need. By uv, or by pip where uv is not to be had.
INSTALL = if [ -x .venv/bin/uv ]; then .venv/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable $(1); \
	else .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable $(1); fi

.venv/ready: pyproject.toml constraints.txt
	@echo "installing what a study needs into .venv: 6 GB, two to five minutes"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv || echo "no uv here: pip installs"
	@$(call INSTALL,".[onnx]")
	@touch .venv/ready

.venv/tools: .venv/ready
	@echo "installing what tests and checks need: 1 GB, about a minute"
	@$(call INSTALL,".[dev]")
	@touch .venv/tools

.venv/docs: .venv/ready
	@echo "installing what the pages need: 110 MB"
	@$(call INSTALL,".[docs]")
	@touch .venv/docs

clean:
	rm -rf .venv site
