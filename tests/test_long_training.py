"""Long trainings of anchors: longer ones go on from shorter ones, and nothing is trained or written twice."""

from pathlib import Path

import pandas as pd
import pytest
from at_once import InProcess
from test_run import SMALL

from nas.analysis.statistics import agreement
from nas.errors import InputError
from nas.trust import anchors, long_training

STUDY = Path("studies/emoji/study.yaml")
OPTIONS = [*SMALL, "metrics=[clip_score]", "search.minimise=[macs]", "evaluation.images=8", "budget={params: 900M}"]


@pytest.fixture
def measure(tmp_path, monkeypatch):
    monkeypatch.setattr(anchors, "Workers", InProcess)
    monkeypatch.setattr(anchors, "CANDIDATES", 50)
    monkeypatch.setattr(agreement, "RESAMPLES", 50)
    for module in (agreement, anchors):
        monkeypatch.setattr(module, "LEAST_ANCHORS", 2)

    def run(long, to):
        monkeypatch.setattr(anchors, "CACHE", tmp_path / to / "cache")
        found = anchors.run(STUDY, OPTIONS, anchors.Plan(2, 1, long), tmp_path / to, tmp_path / to / "store", workers=1)
        return found, pd.read_csv(tmp_path / to / "anchors.csv")

    return run


def scores(rows, kind):
    return rows[rows["kind"] == kind].sort_values(["key", "images_seen"])[["key", "images_seen", "clip_score"]]


def test_a_longer_one_goes_on_and_is_what_it_would_have_been_at_once(measure, tmp_path, monkeypatch):
    measure(2, "twice")
    trained, run_rung = [], long_training.run_rung
    monkeypatch.setattr(long_training, "run_rung", lambda job: trained.append(job.images_seen) or run_rung(job))
    found, twice = measure(4, "twice")
    assert trained == [256, 256]  # what a brief one had is known
    _, once = measure(4, "once")
    assert (
        scores(once, "long").to_numpy().tolist()
        == scores(twice, "long").query("images_seen == 256").to_numpy().tolist()
    )
    assert scores(once, "scratch").to_numpy().tolist() == scores(twice, "scratch").to_numpy().tolist()
    assert list(scores(twice, "long")["images_seen"]) == [128, 256] * 2
    assert "scratch of 128 images: clip_score" in [each.signal for each in found]
    trained.clear()
    again, rows = measure(2, "twice")  # shorter than what is there
    assert not trained and len(rows) == len(twice) and [each.tau for each in again] == [each.tau for each in found]


def test_an_interrupted_one_goes_on_where_it_was(measure, tmp_path, monkeypatch):
    _, whole = measure(3, "whole")
    run_rung, calls = long_training.run_rung, []

    def dies(job):
        calls.append(job.rung)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_rung(job)

    monkeypatch.setattr(long_training, "run_rung", dies)
    with pytest.raises(KeyboardInterrupt):
        measure(3, "cut")
    _, rows = measure(3, "cut")
    assert calls == [0, 1, 0, 0, 1] and scores(rows, "long").equals(scores(whole, "long"))


def test_settings_that_matter_have_a_place_of_their_own_and_the_length_does_not(tmp_path):
    from nas.settings import study_file

    def place(*more):
        return long_training.folder(tmp_path, study_file.load(STUDY, [*OPTIONS, *more]), "k", 0)

    assert place() == place("training.images_seen=640") == place("search.trials=9")
    assert place() != place("training.learning_rate=1e-4") and place() != place("sampling.steps=3")
    with pytest.raises(InputError, match="expected at least"):
        anchors.Plan(long=1)
