import re
import subprocess
import sys

import pytest
import synthetic_run
import yaml

import nas
from nas.analysis import results
from nas.errors import InputError
from nas.runs import description


def test_it_is_the_frame_of_the_run(run_dir):
    table = nas.load(run_dir)
    assert table.equals(results.load(run_dir))
    assert table.attrs["objectives"] == {
        "fid_efficientnet_lite0": "minimise",
        "macs": "minimise",
        "clip_score": "maximise",
    }
    assert nas.load(str(run_dir.parent)).equals(table)  # a study's folder: its latest run


def test_several_runs_get_a_column(tmp_path):
    runs = [synthetic_run.write(tmp_path / name, trials=8, pictures=False) for name in "ab"]
    assert nas.load(*runs)["run"].value_counts().to_dict() == {0: 8, 1: 8}


def test_every_column_is_documented(run_dir):
    told = nas.load.__doc__
    for column in nas.load(run_dir):
        kind = re.sub(r"^(proxy_|arch\.).*", r"\1", column)
        metric = column in description.conditions(run_dir)
        assert metric or re.search(rf"\b{re.escape(kind)}", told), column


def test_refusals_are_one_line(run_dir, tmp_path):
    settings = yaml.safe_load((run_dir / "resolved.yaml").read_text())
    unfinished = synthetic_run.write(tmp_path / "unfinished", states=["stopped"], trials=1, pictures=False)
    newer = synthetic_run.write(tmp_path / "newer", trials=8, pictures=False)
    (newer / "resolved.yaml").write_text(yaml.safe_dump(settings | {"provenance": {"format": description.FORMAT + 1}}))
    other = synthetic_run.write(tmp_path / "other", trials=8, pictures=False)
    path = other / "conditions.json"
    path.write_text(path.read_text().replace('"guidance": 3.0', '"guidance": 5.0'))
    for given, message in (
        ([], "expected at least one run"),
        ([tmp_path / "nothing"], "not a run directory"),
        ([unfinished], "no trial was trained to the end"),
        (
            [newer],
            rf"written by a newer nas \(format {description.FORMAT + 1}, this one reads up to {description.FORMAT}\)",
        ),
        ([run_dir, other], "guidance is 3.0 and 5.0"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            nas.load(*given)
        assert "\n" not in str(caught.value)


def test_importing_nas_imports_nothing_heavy():
    heavy = "[name for name in ('pandas', 'numpy', 'torch', 'optuna', 'plotly') if name in sys.modules]"
    told = subprocess.run(
        [sys.executable, "-c", f"import sys, nas; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "[]"
