"""Long trainings of anchors: longer ones go on from shorter ones, and nothing is trained or written twice."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from at_once import InProcess

from nas.analysis.statistics import agreement
from nas.errors import InputError
from nas.trust import anchors, long_training

STUDY = Path("studies/quickstart/study.yaml")
OPTIONS = [
    "training={init: scratch, images_seen: 64, batch: 16}",
    "dataset={name: scenes, pictures: 64}",
    "proxy={width_divisor: 32}",
    "evaluation.images=8",
    "sampling.steps=1",
    "search={sampler: random, trials: 2, minimise: [macs], maximise: [prompt_accuracy]}",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Latents and embeddings, made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def measure(tmp_path, monkeypatch, cache):
    shutil.rmtree(cache / "long", ignore_errors=True)
    monkeypatch.setattr(anchors, "CACHE", cache)
    monkeypatch.setattr(anchors, "Workers", InProcess)
    monkeypatch.setattr(anchors, "CANDIDATES", 50)
    monkeypatch.setattr(agreement, "RESAMPLES", 50)
    for module in (agreement, anchors):
        monkeypatch.setattr(module, "LEAST_ANCHORS", 2)

    def run(long, to):
        found = anchors.run(STUDY, OPTIONS, anchors.Plan(2, 1, long), tmp_path / to, tmp_path / "store", workers=1)
        return found, pd.read_csv(tmp_path / to / "anchors.csv")

    return run


def scores(rows, kind):
    return rows[rows["kind"] == kind].sort_values(["key", "images_seen"])[["key", "images_seen", "denoising_loss"]]


def test_after_an_interruption_and_to_a_greater_length_it_goes_on_as_if_trained_at_once(measure, cache, monkeypatch):
    calls, run_rung = [], long_training.run_rung

    def dies_in_the_third(job):
        calls.append(job.images_seen)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_rung(job)

    monkeypatch.setattr(long_training, "run_rung", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        measure(2, "parts")
    measure(2, "parts")
    found, parts = measure(4, "parts")
    assert calls == [64, 128, 64, 64, 128, 256, 256]  # what a brief one had is not measured again
    kept = shutil.move(cache / "long", cache / "kept")
    _, once = measure(4, "once")
    assert (
        scores(once, "long").to_numpy().tolist()
        == scores(parts, "long").query("images_seen == 256").to_numpy().tolist()
    )
    assert scores(once, "scratch").to_numpy().tolist() == scores(parts, "scratch").to_numpy().tolist()
    assert list(scores(parts, "long")["images_seen"]) == [128, 256] * 2
    assert "scratch of 128 images: denoising_loss" in [each.signal for each in found]
    shutil.rmtree(cache / "long")
    shutil.move(kept, cache / "long")
    calls.clear()
    again, rows = measure(2, "parts")  # shorter than what is there
    assert not calls and len(rows) == len(parts) and [each.tau for each in again] == [each.tau for each in found]


def test_settings_that_matter_have_a_place_of_their_own_and_the_length_does_not(tmp_path):
    from nas.settings import study_file

    def place(*more):
        return long_training.folder(tmp_path, study_file.load(STUDY, [*OPTIONS, *more]), "k", 0)

    assert place() == place("training.images_seen=640") == place("search.trials=9")
    assert place() != place("training.learning_rate=1e-4") and place() != place("sampling.steps=3")
    with pytest.raises(InputError, match="expected at least"):
        anchors.Plan(long=1)
