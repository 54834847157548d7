# Two commands on a fresh machine: `make run` and `make test`. Needs Python 3.11+, pip and make.
PYTHON ?= python3
STUDY ?= studies/quickstart/study.yaml
export OMP_WAIT_POLICY = PASSIVE

.PHONY: run test check notebooks docs setup clean

run: .venv/ready
	.venv/bin/nas run $(STUDY) $(ARGS)

test: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist loadfile $(ARGS)

check: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The notebooks, executed into runs/notebooks; notebooks/ stays as it is.
notebooks: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/python notebooks/execute.py $(ARGS)

# The pages of docs/ and what is generated from the code, as a site that opens from the disk: site/index.html.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

setup: .venv/ready

# Set-up is done once, and again when what is installed changes.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch .venv/ready

.venv/docs: .venv/ready
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch .venv/docs

clean:
	rm -rf .venv site
