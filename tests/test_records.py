"""What a record may hold, what is said of one that holds something else, and which files are records at all."""

import json
import shutil

import pytest

from nas.analysis import results
from nas.errors import InputError
from nas.failures import DiskTrouble
from nas.runs import records

GOOD = {
    "trial": 3,
    "key": "0123456789ab",
    "state": "complete",
    "reason": "",
    "init": "scratch",
    "seed": 7,
    "choices": {"depth": 2},
    "architecture": {"levels": []},
    "cost": {"params": 3, "latency_ms": 2.5},
    "rungs": [{"rung": 0, "images_seen": 64, "metrics": {"fid": 12.5}, "timings": {"train_s": 1.0}}],
    "started": "2026-01-31T12:00:00+00:00",
    "finished": None,
    "of a later version": [1],
}
RUNG = GOOD["rungs"][0]
DAMAGED = {
    "empty": (b"", "empty"),
    "cut off": (json.dumps(GOOD).encode()[:-20], "not JSON"),
    "no text": (b"\xff\xfe\x00", "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "a list": ([], "expected a valid dictionary, got []"),
    "a number": (5, "expected a valid dictionary, got 5"),
    "no trial": ({"trial": None}, "trial: expected a valid integer, got None"),
    "trial in words": ({"trial": "3"}, "trial: expected a valid integer, got '3'"),
    "another trial": ({"trial": 1_000_000}, "trial: expected 3, got 1000000"),
    "trial below 0": ({"trial": -3}, "trial: expected greater than or equal to 0, got -3"),
    "unknown state": ({"state": "won"}, "state: expected 'complete'"),
    "text as score": (
        {"rungs": [{**RUNG, "metrics": {"fid": "best"}}]},
        "rungs.0.metrics.fid: expected a valid number",
    ),
    "score is nan": ({"rungs": [{**RUNG, "metrics": {"fid": float("nan")}}]}, "rungs.0.metrics.fid: expected a finite"),
    "score is true": ({"rungs": [{**RUNG, "metrics": {"fid": True}}]}, "rungs.0.metrics.fid: expected a valid number"),
    "no metrics": ({"rungs": [{"rung": 0, "images_seen": 1}]}, "rungs.0.metrics: missing"),
    "no rungs": ({"rungs": []}, "rungs: empty, but the state is complete"),
    "no seed": ({"seed": None}, "seed: expected a valid integer, got None"),
    "cost in words": ({"cost": {"params": "3"}}, "cost.params"),
    "date of no calendar": ({"started": "2026-13-45T00:00:00+00:00"}, "started: expected a time with its zone"),
    "time of no zone": ({"finished": "2026-01-31T12:00:00"}, "finished: expected a time with its zone"),
    "date is a number": ({"started": 5}, "started: expected a valid string, got 5"),
    "choices is a list": ({"choices": [1]}, "choices: expected a valid dictionary, got [1]"),
}


def written(content):
    if isinstance(content, bytes):
        return content
    return json.dumps({**GOOD, **content} if isinstance(content, dict) else content).encode()


def place(run_dir, number, content):
    path = records.path_of(run_dir, number)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_what_is_written_comes_back_with_its_types(tmp_path):
    records.path_of(tmp_path, 3).parent.mkdir(parents=True)
    records.write(tmp_path, GOOD)
    (found,) = records.read_all(tmp_path).values()
    assert found == GOOD
    assert type(found["cost"]["params"]) is int and type(found["cost"]["latency_ms"]) is float


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_record_is_named_and_never_used(tmp_path, how):
    content, words = DAMAGED[how]
    place(tmp_path, 0, json.dumps({**GOOD, "trial": 0}).encode())
    path = place(tmp_path, 3, written(content))
    with pytest.raises(InputError) as error:
        results.records(tmp_path)
    assert str(error.value).startswith(f"{path}: {words}") and "nas run puts it aside" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    found, damaged = records.sorted_out(tmp_path)
    assert list(found) == [0] and list(damaged) == [3]


def test_a_number_that_no_study_reaches_is_damaged(tmp_path):
    for number in (0, 1, 900, 1_000_000):
        place(tmp_path, number, json.dumps({**GOOD, "trial": number}).encode())
    found, damaged = records.sorted_out(tmp_path)
    assert list(found) == [0, 1, 900] and str(damaged[1_000_000]).startswith(
        "trial: expected a number that follows 900"
    )


def test_copies_that_somebody_made_are_no_trials(tmp_path):
    path = place(tmp_path, 3, json.dumps(GOOD).encode())
    for name in ("0003 (copy)", "3", "old", "0003.damaged"):
        shutil.copytree(path.parent, path.parents[1] / name)
    assert list(records.read_all(tmp_path)) == [3]


def test_a_file_that_cannot_be_read_is_trouble_with_the_disk_and_not_damaged(tmp_path):
    records.path_of(tmp_path, 3).mkdir(parents=True)
    with pytest.raises(DiskTrouble, match="record.json: Is a directory"):
        records.sorted_out(tmp_path)


def test_every_folder_put_aside_gets_a_name_of_its_own(tmp_path):
    for name in ("0003.damaged", "0003.damaged-2"):
        path = place(tmp_path, 3, b"")
        (path.parent / "weights.safetensors").write_text(name)
        assert records.put_aside(tmp_path, 3).name == name
        assert (tmp_path / "trials" / name / "weights.safetensors").read_text() == name
    assert records.sorted_out(tmp_path) == ({}, {})
