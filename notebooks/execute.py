"""Executes the notebooks again and stores what their cells give: python notebooks/execute.py

To be run when a committed result has changed; tests/test_notebooks.py fails until then. Prose is not touched.
"""

import copy
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def main() -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        metadata = copy.deepcopy(notebook.metadata)
        place = {"metadata": {"path": str(FOLDER)}}
        NotebookClient(notebook, timeout=120, coalesce_streams=True, resources=place).execute()
        notebook.metadata = metadata
        for cell in notebook.cells:
            cell.metadata = {}  # times of execution
        nbformat.write(notebook, path)
        print(f"executed {path.name}")


if __name__ == "__main__":
    main()
