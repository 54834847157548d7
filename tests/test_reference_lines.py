"""What is no trial, scored as trials are: pictures and networks whose scores say what a trial's are worth."""

import json
import math

import pandas as pd
import pytest
import torch

from nas.analysis import learning, reference_lines
from nas.analysis.reference_lines import Line
from nas.runs.headway import Headway
from nas.runs.pictures import picture, read_grid
from nas.seeds import trial_seed
from nas.settings import study_file
from nas.space.search_space import SearchSpace
from nas.trial import line_scores, rung
from nas.trial.bench import fresh
from nas.trial.clock import timing

STUDY = """
name: tiny
space: mobilediffusion
dataset: {name: emoji, limit: 24}
proxy: {width_divisor: 32}
training: {images_seen: 16, batch: 8}
sampling: {steps: 2}
evaluation: {images: 6}
metrics: [clip_score]
search: {trials: 8, minimise: [denoising_loss], maximise: [clip_score]}
stopping: {rungs: [0.5, 1.0]}
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The lines of a tiny study, with the bench they were measured on and the run's folder."""
    root = tmp_path_factory.mktemp("lines")
    (root / "study.yaml").write_text(STUDY)
    study = study_file.load(root)
    rung.start_worker(study, root / ".cache")
    base = SearchSpace.load(study.space).base
    run = root / "tiny" / "now"
    run.mkdir(parents=True)
    found = line_scores.measure(run, {}, base.to_dict(), True)
    (run / reference_lines.FILE).write_text(json.dumps(found))
    return rung.bench(), base, run


def clip_score(bench, images, captions):
    judge = bench.metrics[0].judge
    return float(100 * (judge.images(images) * judge.captions(captions)).sum(1).double().mean())


def test_pictures_are_scored_with_their_captions_and_lose_what_the_autoencoder_loses(measured):
    bench, _, run = measured
    lines = reference_lines.read(run)
    assert list(lines) == ["real", "held_out", "autoencoded", "base", "untrained"]
    batches = list(bench.images("train"))
    pictures = torch.cat([batch.images for batch in batches])
    captions = [caption for batch in batches for caption in batch.captions]
    rows = bench.rows.tolist()
    assert [captions[row] for row in rows] == bench.drawn[0]
    assert lines["real"]["clip_score"] == pytest.approx(clip_score(bench, pictures[rows], bench.drawn[0]), rel=1e-5)
    copies = bench.autoencoder.decode(bench.autoencoder.encode(pictures[rows]))
    assert lines["autoencoded"]["clip_score"] == pytest.approx(clip_score(bench, copies, bench.drawn[0]), rel=1e-3)
    assert lines["real"]["denoising_loss"] is None and lines["real"]["macs"] is None
    for name, tiles in (("real", 6), ("autoencoded", 6), ("untrained", 6), ("base", 6)):
        grid = read_grid(picture(run, name))
        assert grid.columns * grid.rows >= tiles, name
    assert not picture(run, "held_out").exists()  # other captions than those of the grids


def test_networks_are_scored_as_trials_are(measured, tmp_path):
    bench, base, run = measured
    lines = reference_lines.read(run)
    seed = trial_seed(bench.study.seed, base.key, 0)
    job = rung.Job(0, base.to_dict(), seed, 1, 16, tmp_path)
    assert lines["base"].scores == rung.run_on(bench, job)["rung"]["metrics"]
    network = fresh(bench.scaled(base.to_dict()), seed).eval()
    schedule = bench.objective(network, seed).schedule_config
    losses = bench.denoising_losses(network, schedule)
    assert lines["untrained"]["denoising_loss"] == pytest.approx(sum(losses) / len(losses))
    assert lines["untrained"]["macs"] == base.cost(64, 77).macs


def test_a_rung_tells_how_far_it_is(measured, tmp_path, monkeypatch):
    bench, base, _ = measured
    shares = []
    monkeypatch.setattr(Headway, "_write", lambda self, done: shares.append((done, self._total)))
    rung.run_on(bench, rung.Job(0, base.to_dict(), 1, 1, 16, tmp_path))
    work = 3 * 16 + 6 * 4 + 8 * 24  # two updates of 8 pictures; 6 drawn in 2 steps of 2 branches; the loss of 24
    assert shares == [(24, work), (48, work), (72, work)]
    assert not (tmp_path / "headway").exists()


def test_the_pace_of_a_network_is_timed(measured):
    bench, base, _ = measured
    found = timing.clock({"sampling.steps": 1}, base.to_dict())
    assert all(value > 0 for value in vars(found).values()) and found.passes == 8 * 24
    assert found.rung_s(bench.study, 0) > found.update_s + 24 * found.call_s


def test_equal_conditions_are_measured_once(measured, tmp_path, monkeypatch):
    bench, base, run = measured
    monkeypatch.setattr(type(bench), "rate", None)
    again = line_scores.measure(tmp_path, {}, base.to_dict(), True)
    assert again == json.loads((run / reference_lines.FILE).read_text())
    assert picture(tmp_path, "real").is_file()
    with pytest.raises(TypeError):  # other conditions are measured afresh
        line_scores.measure(tmp_path, {"evaluation.images": 5}, base.to_dict(), False)


def test_too_few_held_out_pictures_are_no_line(measured):
    bench, _, _ = measured
    assert line_scores._held_out(bench.variant({"evaluation.images": 24})) != {}
    assert line_scores._held_out(bench.variant({"dataset.limit": 25, "evaluation.split": "held_out"})) == {}


def lines(**scores):
    return {name: Line(name, "", values) for name, values in scores.items()}


WORLD = lines(
    untrained={"fid": 4000.0, "clip_score": 0.0, "loss": 0.9}, autoencoded={"fid": 1000.0, "clip_score": 60.0}
)


@pytest.mark.parametrize(
    ("column", "sense", "value", "come"),
    [
        ("fid", "minimise", 4000.0, 0.0),
        ("fid", "minimise", 1750.0, 0.75),
        ("fid", "minimise", 4300.0, -0.1),
        ("clip_score", "maximise", 30.0, 0.5),
        ("loss", "minimise", 0.45, 0.5),  # copies have no loss: the way ends at zero
        ("other", "minimise", 1.0, None),
        ("clip_score", "minimise", 30.0, None),  # copies are no better than untrained
    ],
)
def test_the_way_from_untrained_to_the_copies(column, sense, value, come):
    found = reference_lines.way(column, sense, value, WORLD)
    assert found is None if come is None else math.isclose(found, come, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("fids", "clips", "learnt"),
    [
        ([3571.0, 3751.0], [2.0, 5.0], False),  # noise
        ([3571.0, 2900.0], [2.0, 5.0], True),
        ([3571.0, 3751.0], [2.0, 25.0], True),
        ([], [], None),
    ],
)
def test_nothing_was_learnt_where_no_trial_has_come_a_third_of_the_way(fids, clips, learnt):
    table = pd.DataFrame({"fid": fids, "clip_score": clips, "macs": [1.0] * len(fids), "state": "complete"})
    goals = {"fid": "minimise", "clip_score": "maximise", "macs": "minimise"}
    assert reference_lines.learnt(table, goals, WORLD) is learnt
    assert reference_lines.learnt(table, goals, {}) is None


@pytest.mark.parametrize(
    ("clips", "told"),
    [
        ([2.0, 6.0], " is 10 % of the way"),
        ([-3.0, -1.0], " is 0 % of the way"),
        ([2.0, 25.0], ""),
        ([math.nan, math.nan], ""),
    ],
)
def test_a_score_in_which_little_was_learnt_is_told_beside_one_in_which_much_was(clips, told):
    """The loss, which copies do not have, is left out, and so is what no line has."""
    table = pd.DataFrame({"fid": [2000.0, 1500.0], "clip_score": clips, "loss": [0.9, 0.9], "state": "complete"})
    senses = {"fid": False, "clip_score": True, "loss": False, "latency_ms": False}
    table.attrs["conditions"] = {column: {"higher_is_better": higher} for column, higher in senses.items()}
    found = learning.little_learnt(table, WORLD)
    assert (told in found and "fid" not in found and "oss" not in found) if told else found == ""
    assert learning.little_learnt(table, {}) == ""
