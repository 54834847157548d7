"""The notebooks run, say again what is committed in them, and their prose speaks in numbers of their cells."""

import json
import re
from html import unescape
from pathlib import Path

import nbformat
import pytest
from at_once import AtOnce

import nas
from nas.trial.clock.pace import Pace

pytest.importorskip("nbclient", reason="install nas[dev]")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
READ = ["01_first_study", "02_ablation_analysis", "03_compare_studies", "04_search_space_atlas"]
TRAINED = ["05_from_python"]  # it runs studies itself: minutes, and scores of the processor it ran on
NAMES = [*READ, *TRAINED]
LARGEST = 400_000  # bytes
# sides of pictures, text tokens, per cent, Stable Diffusion's version
SAID = {"16", "32", "64", "512", "77", "95", "1.5"}


def texts(cell):
    """A code cell's outputs as text; of a table its HTML, which is not cut."""
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            yield output["text"]
        data = output.get("data", {})
        if "text/html" in data:
            yield unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", data["text/html"], flags=re.S))
        elif "text/plain" in data:
            yield data["text/plain"]


def pictures(notebook):
    return [("image/png" in output.get("data", {})) for cell in notebook.cells for output in cell.get("outputs", [])]


def numbers(text):
    """Numbers as a reader sees them, without commas and signs."""
    return {found.replace(",", "") for found in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.]*\w)", text)}


@pytest.fixture(scope="module")
def executed():
    """All that read results, one after the other in one kernel, emptied between them, which saves importing four times."""
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel(cwd=str(ROOT / "notebooks"))
    found = {}
    try:
        for path in NOTEBOOKS[: len(READ)]:
            notebook = nbformat.read(path, as_version=4)
            notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
            NotebookClient(notebook, km=kernel, timeout=120, coalesce_streams=True).execute(reset_kc=True)
            del notebook.cells[0]
            found[path.stem] = notebook
    finally:
        kernel.shutdown_kernel(now=True)
    return found


def test_these_are_the_notebooks():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_plain(path):
    raw, notebook = path.read_text(), nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(raw) < LARGEST
    assert set(notebook.metadata) == {"kernelspec", "language_info"} and notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # executed from top to bottom
    assert not any(cell.metadata for cell in notebook.cells)
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert not re.search(r"/(home|root|tmp|usr|work|Users)/", " ".join(text for cell in code for text in texts(cell)))
    assert "application/vnd.plotly" not in raw and any(pictures(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_import_nothing_private(path):
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    packages = set(re.findall(r"^(?:import|from) (\w+)", code, re.M))
    assert packages <= {"nas", "pandas", "numpy", "matplotlib", "scipy", "pathlib"}
    assert not re.search(r"\b(\w+)\._[a-z]", code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    prose = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", prose)
    assert links and all((path.parent / link).exists() for link in links)


@pytest.mark.parametrize("name", NAMES)
def test_prose_tells_numbers_of_the_cells(name):
    """Every number of three digits or with a decimal point that the prose tells is in an output, the code or a study file."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    known = numbers("\n".join(text for cell in code for text in texts(cell)) + "\n".join(cell.source for cell in code))
    studies = re.findall(r"studies/(\w+)", prose + " ".join(cell.source for cell in code))
    files = [ROOT / "studies" / study / "study.yaml" for study in studies]
    known |= {n.replace("_", "") for file in files if file.exists() for n in re.findall(r"[\d_]+", file.read_text())}
    prose = re.sub(r"^    .*$|\]\([^)]+\)|`[^`]*`", " ", prose, flags=re.M)  # commands, links, names
    told = {number for number in numbers(prose) if "." in number or len(number) > 1}
    assert told and told <= known | SAID, told - known - SAID


@pytest.mark.parametrize("name", READ)
def test_executing_again_gives_what_is_committed(name, executed):
    committed = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for before, after in zip(committed.cells, executed[name].cells, strict=True):
        assert list(texts(before)) == list(texts(after)), before.source
    assert pictures(committed) == pictures(executed[name])


class MadeUp(AtOnce):
    """Trials cost nothing; larger networks and more guidance draw better."""

    slots = 1

    def compute(self, tag, function, *arguments):
        if function.__name__ == "prepare":
            return {"prompt_accuracy": {"unit": "", "higher_is_better": True}}, ["a"]
        if function.__name__ in ("clock", "measure"):
            return {} if function.__name__ == "measure" else Pace(*[0.0] * 7)
        (job,) = arguments
        return scored(job)


def scored(job):
    guidance = job.settings.get("sampling.guidance", 3.0)
    score = job.seed % 100 / 1000 + len(json.dumps(job.architecture)) / 10_000 + 0.05 * guidance
    rung = {"rung": job.rung, "images_seen": job.images_seen, "metrics": {"prompt_accuracy": score}, "timings": {}}
    return {"rung": rung, "proxy": job.architecture, "proxy_cost": {"params": 1, "macs": 2}}


@pytest.mark.parametrize("name", TRAINED)
def test_the_cells_of_what_trains_work(name, tmp_path, monkeypatch):
    """With trials that cost nothing; what they are shown with is not looked at."""
    from nas.study import launch

    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr("nas.study.run.Workers", MadeUp)
    monkeypatch.setattr("nas.workers.preload.start", lambda: None)
    monkeypatch.setattr(launch, "check", lambda study, space: None)
    monkeypatch.setattr(launch.page, "write", lambda run: run)
    monkeypatch.setattr(nas, "export", lambda run, **_: run.path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    code = [cell.source for cell in nbformat.read(f"{name}.ipynb", as_version=4).cells if cell.cell_type == "code"]
    text = "\n".join(code).replace("%matplotlib inline\n", "").replace('"../runs"', repr(str(tmp_path)))
    assert str(tmp_path) in text
    names = {}
    exec(compile(text, name, "exec"), names)
    assert len(names["seen"]) == 3 and len(names["run"].results().query("state == 'complete'")) == 4
    (difference,) = names["cells"].effects()["differences"]["estimate"]
    assert difference == pytest.approx(0.05 * (3.0 - 1.0))


class Kernel:
    """Gives 2 for every cell of code, and notes down when."""

    def __init__(self, notebook, **how):
        self.notebook, self.place = notebook, how["resources"]["metadata"]["path"]

    def execute(self):
        self.notebook.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="2\n")]
        self.notebook.cells[1].metadata = {"execution": {"at": "noon"}}
        self.notebook.metadata = {"language_info": {}, "place": self.place}


@pytest.mark.parametrize(("given", "said"), [("2\n", "as committed"), ("3\n", "other output in cells 2")])
def test_notebooks_are_executed_beside_what_is_committed(tmp_path, capsys, monkeypatch, given, said):
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    import execute

    monkeypatch.setattr(execute, "NotebookClient", Kernel)
    stream = nbformat.v4.new_output("stream", name="stdout", text=given)
    cells = [nbformat.v4.new_markdown_cell("words"), nbformat.v4.new_code_cell("print(1 + 1)", outputs=[stream])]
    metadata = {"kernelspec": {"name": "mine", "display_name": "Mine"}}
    committed = tmp_path / "notebooks" / "one.ipynb"
    committed.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), committed)
    before = committed.read_bytes()
    execute.main(folder=committed.parent, to=tmp_path / "runs")
    assert committed.read_bytes() == before and f"one.ipynb: {said}; written to" in capsys.readouterr().out
    made = nbformat.read(tmp_path / "runs" / "one.ipynb", as_version=4)
    assert made.cells[1].outputs[0].text == "2\n" and made.metadata == metadata
    assert not made.cells[1].metadata
    execute.main(store=True, folder=committed.parent)
    assert nbformat.read(committed, as_version=4).cells[1].outputs[0].text == "2\n"
