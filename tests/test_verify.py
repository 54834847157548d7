"""Verifying an export: the same seeds give the same scores, and other recorded scores are told apart."""

import json
import math

import exported
import numpy as np
import pytest
import synthetic_run
import yaml
from scipy.stats import t

from nas import failures
from nas.analysis import results
from nas.cli import app
from nas.deploy import export, verify
from nas.errors import InputError
from nas.trial import rung

TRAINING = ["training.init=scratch", "training.images_seen=32", "training.batch=16", "metrics=[clip_score]"]


def test_the_interval_is_the_prediction_interval_of_one_more_training():
    measured = {"a": [[1.0], [3.0]], "b": [[5.0], [5.0], [8.0]], "c": [[2.0]]}
    found = verify._interval(3.0, {key: np.array(rows) for key, rows in measured.items()}, "a")
    pooled = math.sqrt((1 + 1 + 1 + 1 + 4) / 3)  # squared deviations from own means over (2 - 1) + (3 - 1)
    half = t.ppf(0.975, 3) * pooled * math.sqrt(1 + 1 / 2)
    assert (found["low"], found["high"]) == pytest.approx((3 - half, 3 + half))
    alone = verify._interval(-200.0, {"c": np.array([[2.0]])}, "c")
    assert (alone["low"], alone["high"]) == (-202.0, -198.0) and "nothing was repeated" in alone["how"]


def test_cells_of_one_architecture_are_no_repeats_of_each_other(tmp_path):
    run = synthetic_run.write_cells(tmp_path / "cells" / "2026", repeats=3)  # 100, 101.2, 102.4 and 90.1, 91.3, 92.5
    found = verify.intervals(run, results.records(run)[1])["fid_efficientnet_lite0"]
    half = t.ppf(0.975, 4) * 1.2 * math.sqrt(1 + 1 / 3)
    assert (found["low"], found["high"]) == pytest.approx((90.1 - half, 90.1 + half))


def test_training_again_from_the_same_seeds_agrees_and_other_scores_do_not(tmp_path):
    """Drawn by the export's plan, which keeps units."""
    cached = [*TRAINING, "sampling.cache={name: fora, every: 2}"]
    run = exported.run_directory(tmp_path / "small" / "2026", overrides=cached)
    folder = export.export(run, "trial:0", tmp_path / "model")
    cache = tmp_path / ".cache"
    untrue = verify.verify(folder, cache)  # the made-up run's scores
    assert not all(check.agrees for check in untrue)
    with pytest.raises(SystemExit) as left:
        app(["verify", str(folder), "--cache", str(cache)])
    assert left.value.code == 1
    deploy = yaml.safe_load((folder / "deploy.yaml").read_text())
    path = run.trial(0) / "record.json"
    record = json.loads(path.read_text())
    record["rungs"][-1]["metrics"] = {check.column: check.found for check in untrue}
    record["rungs"][-1]["images_seen"] = deploy["images_seen"]
    path.write_text(json.dumps(record))
    again = verify.verify(export.export(run, "trial:0", tmp_path / "true"), cache)
    assert all(check.agrees and check.found == check.recorded for check in again)
    (folder / "study.yaml").unlink()
    with pytest.raises(InputError, match=r"study\.yaml: not there; export the run again"):
        verify.verify(folder, cache)


def test_a_trial_that_began_from_anothers_weights_is_refused(tmp_path):
    """As those of an evolution do: from the base, or from scratch, it would be another training."""
    run = exported.run_directory(tmp_path / "small" / "2026", overrides=TRAINING)
    path = run.trial(0) / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "parent": 3}))
    folder = export.export(run, "trial:0", tmp_path / "model", ["yaml"])
    with pytest.raises(
        InputError, match="model: trial 0 began from the weights of trial 3 of its run, which no export"
    ):
        verify.verify(folder, tmp_path / ".cache")
    assert "started from the weights of trial 3 of its run" in (folder / "README.md").read_text()


def test_a_base_that_is_not_in_the_cache_is_trained_first(tmp_path, monkeypatch):
    base = {"architecture": exported.DEPLOY.to_dict(), "training": {"images_seen": 16, "batch": 16}}
    overrides = [*TRAINING[1:], "training.init=base", f"base={json.dumps(base)}"]
    run = exported.run_directory(tmp_path / "small" / "2026", overrides=overrides)
    folder = export.export(run, "trial:0", tmp_path / "model")
    cache = tmp_path / "another" / ".cache"
    (check, *_) = verify.verify(folder, cache)
    assert math.isfinite(check.found) and len(list((cache / "base").iterdir())) == 1

    def diverging(*given):
        raise failures.Diverged("the loss is nan after 32 images")

    monkeypatch.setattr(rung, "run_alone", diverging)
    with pytest.raises(InputError, match="model: trained again, it diverges: the loss is nan after 32 images"):
        verify.verify(folder, cache)
