"""Executes the notebooks: python notebooks/execute.py writes what they give into runs/notebooks, and tells what is new.

What is committed stays as it is. With --store it is replaced, which is to be done when a committed result has changed:
tests/test_notebooks.py fails until then. Prose is not touched.
"""

import argparse
import copy
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
RUNS = FOLDER.parent / "runs" / "notebooks"


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with what its cells give here, without the times of execution."""
    notebook = nbformat.read(path, as_version=4)
    metadata = copy.deepcopy(notebook.metadata)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, coalesce_streams=True, resources=place).execute()
    notebook.metadata = metadata
    for cell in notebook.cells:
        cell.metadata = {}
    return notebook


def changed(before: nbformat.NotebookNode, after: nbformat.NotebookNode) -> list[int]:
    """Numbers, from 1, of the cells whose output is another one; pictures are compared by being there."""
    pairs = enumerate(zip(before.cells, after.cells, strict=True), 1)
    return [number for number, (one, other) in pairs if _shown(one) != _shown(other)]


def _shown(cell: nbformat.NotebookNode) -> list[dict[str, str]]:
    shown = [
        dict(output.get("data", {})) or {"text": output.get("text", "")}
        for output in cell.get("outputs", [])
    ]
    return [
        {kind: "" if kind.startswith("image/") else text for kind, text in one.items()}
        for one in shown
    ]


def main(store: bool = False, folder: Path = FOLDER, to: Path = RUNS) -> None:
    """Execute every notebook of a folder; `store`: in place, else copies in the folder `to`."""
    for path in sorted(folder.glob("*.ipynb")):
        print(f"{path.name}: executing", flush=True)
        before, after = nbformat.read(path, as_version=4), executed(path)
        cells = changed(before, after)
        said = (
            f"other output in cells {', '.join(map(str, cells))}" if cells else "as committed"
        )
        target = path if store else to / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(after, target)
        print(f"{path.name}: {said}; written to {target}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", action="store_true", help="replace what is committed")
    main(parser.parse_args().store)
