import io
import json
import threading
import time

import pytest
import synthetic_run
import yaml
from rich.console import Console

from nas.analysis import fronts, results
from nas.errors import InputError
from nas.report import page
from nas.report.live import watch
from nas.runs import description


def seen(run_dir):
    console = Console(file=io.StringIO(), width=160)
    watch.watch(run_dir, once=True, console=console)
    return console.file.getvalue()


def test_once_shows_progress_running_conclusions_and_the_front(run_dir):
    text, table = seen(run_dir), results.load(run_dir)
    counts = table["state"].value_counts()
    ended = counts["complete"] + counts["stopped"] + counts["failed"]
    assert f"{ended}/24 trials" in text and f"{counts['over_budget']} over budget" in text
    running = text[text.index("running\n") :] if "running\n" in text else text[text.index("\nrunning") :]
    assert str(table.query("state == 'running'")["trial"].iloc[0]) in running
    front = text[text.index("front so far") :]
    assert [int(line.split()[0]) for line in front.splitlines()[2:] if line.strip()] == table.query(
        "on_front"
    ).sort_values("fid_efficientnet_lite0")["trial"].tolist()
    knee = fronts.knee(table, results.objectives(description.resolved(run_dir)))
    assert [line.split()[0] for line in front.splitlines() if "knee" in line] == [str(knee)]


def test_what_runs_says_how_far_it_is_beside_lines_of_reference(run_dir):
    synthetic_run.write_lines(run_dir)
    number = int(results.load(run_dir).query("state == 'running'")["trial"].iloc[0])
    (run_dir / "trials" / f"{number:04d}" / "headway").write_text("0.62")
    text = seen(run_dir)
    assert f"{number}  1, 62%" in text
    untrained = next(line for line in text.splitlines() if "untrained" in line)
    assert untrained.split() == ["untrained", "437.0", "0.100", "no", "trial"]


def test_a_run_that_has_only_begun(tmp_path):
    run_dir = synthetic_run.write(tmp_path / "run", trials=0)
    assert "no trial yet" in seen(run_dir) and "there is no front" in seen(run_dir)


def test_an_ablation_shows_cells(tmp_path):
    run_dir = synthetic_run.write(tmp_path / "run", states=["complete", "running"], trials=2)
    path = run_dir / "resolved.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(settings | {"search": None, "ablation": settings["search"] | {"repeats": 3}}))
    for number, cell in enumerate(("reference", "[red]b[/red]")):
        synthetic_run.copy_with(run_dir, number, cell=cell)
    text = seen(run_dir)
    assert "1/6 trials" in text and "means so far" in text and "[red]b[/red]" in text


def test_it_ends_when_another_process_finishes_the_run(tmp_path):
    run_dir = synthetic_run.write(tmp_path / "run", states=["complete", "running"], trials=2, pictures=False)
    watcher = threading.Thread(
        target=watch.watch, args=(run_dir, 0.05, False, Console(file=io.StringIO())), daemon=True
    )
    watcher.start()
    time.sleep(0.3)
    assert watcher.is_alive()
    synthetic_run.copy_with(run_dir, 1, state="failed", reason="nan")
    time.sleep(0.3)
    assert watcher.is_alive()  # the report is still to be written
    page.write(run_dir)
    watcher.join(30)
    assert not watcher.is_alive()


def test_bad_input(tmp_path, run_dir):
    with pytest.raises(InputError, match="not a run directory"):
        watch.watch(tmp_path / "nothing", once=True)
    with pytest.raises(InputError, match="--every 0: expected seconds above 0"):
        watch.watch(run_dir, every=0)
    (run_dir / "trials" / "0000" / "record.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="record.json: expected a valid dictionary, got .1.; nas run puts it aside"):
        watch.watch(run_dir, once=True)
