"""A study over another family of networks, from its start to an export, with nothing changed but `space`."""

import json
import shutil

import pytest
import yaml
from in_process import nas
from test_report import data_of
from test_run import study

from nas.disk import files
from nas.networks import backbones

SPACE = {
    "backbone": "dit",
    "base": {"depth": 2, "width": 384, "heads": 6, "text": "cross", "modulation": "shared"},
    "axes": {
        "text": {"fields": "text", "choices": ["cross", "sequence"]},
        "modulation": {"fields": "modulation", "choices": ["block", "shared", "token"]},
        "mlp_ratio": {"fields": "mlp_ratio", "choices": [2, 4]},
    },
}
CHEAP = ["stopping.rungs=[1.0]", "metrics=[clip_score]", "search.minimise=[macs]", "tracking={mode: 'off'}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    (root / "small.yaml").write_text(yaml.safe_dump(SPACE))
    settings = [f"space={root / 'small.yaml'}", "training.init=scratch", "budget={params: 900M}", *CHEAP]
    result = study(root / "runs", *settings, command=nas)
    assert result.returncode == 0, result.stderr
    (folder,) = (root / "runs" / "emoji").iterdir()
    return folder, result.stdout


def test_it_ends_with_a_front_and_a_report(run):
    folder, output = run
    records = [files.read_object(path) for path in sorted(folder.glob("trials/*/record.json"))]
    complete = [record for record in records if record["state"] == "complete"]
    assert len(complete) == 2
    for record in complete:
        config = backbones.from_dict(record["architecture"])
        assert record["architecture"]["backbone"] == "dit" and config.key == record["key"]
        assert record["cost"]["params"] == config.cost(64, 77).params
    data = data_of((folder / "report.html").read_text())
    assert "Pareto front" in output and "mlp_ratio" in json.dumps(data)


def test_its_winner_is_exported_and_draws(run, tmp_path):
    folder, _ = run
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, symlinks=True)
    exported = nas("export", str(copy), "--pick", "best:clip_score", "--to", str(tmp_path / "winner"))
    assert exported.returncode == 0, exported.stderr
    drawn = nas("sample", str(tmp_path / "winner"), "red heart, noto", "--out", str(tmp_path / "drawn.png"))
    assert drawn.returncode == 0 and (tmp_path / "drawn.png").stat().st_size > 0, drawn.stderr


def test_a_stored_network_of_an_unknown_family_is_one_line(run, tmp_path):
    folder, _ = run
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, symlinks=True)
    path = copy / "trials" / "0000" / "record.json"
    path.write_text(path.read_text().replace('"backbone": "dit"', '"backbone": "dti"'))
    told = nas("report", str(copy))
    assert told.returncode == 2 and told.stderr.count("\n") == 1, told.stderr
    assert "backbone: backbones: unknown name 'dti'; did you mean 'dit'?" in told.stderr
