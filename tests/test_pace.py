"""How long a study takes, and how far it is: said before it starts and while it runs."""

from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from nas.report.live import progress
from nas.report.live.progress import Progress
from nas.runs import headway
from nas.settings import study_file
from nas.study.workload import Variant, Workload
from nas.trial.clock import pace
from nas.trial.clock.pace import Pace

PACE = Pace(load_s=0.5, update_s=2.0, call_s=0.01, decode_s=0.1, judge_s=0.2, compute_s=3.0, passes=100)
STUDY = """
name: small
space: mobilediffusion
dataset: emoji
training: {images_seen: 640, batch: 64}
sampling: {steps: 5, guidance: 3.0}
evaluation: {images: 10}
search: {trials: 6, minimise: [fid_efficientnet_lite0, macs], maximise: [clip_score]}
stopping: {rungs: [0.5, 1.0]}
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    return study_file.load(tmp_path)


def test_a_trial_is_its_updates_its_pictures_and_their_scores(study):
    drawn = 10 * (5 * 2 * 0.01 + 0.1 + 0.2) + 100 * 0.01 + 3.0 + 0.5
    assert [PACE.rung_s(study, rung) for rung in (0, 1)] == pytest.approx([5 * 2.0 + drawn] * 2)
    go_on = 1 - 0.2 * 2 / 6  # a fifth of the trials after the first four stops at the first rung
    assert PACE.trial_s(study) == pytest.approx((1 + go_on) * (10 + drawn))
    few = study.model_copy(update={"search": study.search.model_copy(update={"trials": 4})})
    assert PACE.trial_s(few) == pytest.approx(2 * (10 + drawn))
    never = study.model_copy(update={"stopping": study.stopping.model_copy(update={"rule": "none"})})
    assert PACE.trial_s(never) == pytest.approx(2 * (10 + drawn))
    rounds = study.model_copy(update={"search": study.search.model_copy(update={"sampler": "evolution"})})
    assert PACE.trial_s(rounds) == pytest.approx(2 * (10 + drawn))


def test_workers_take_the_trials_in_turn():
    trials = [5.0, 9.0, 4.0, 7.0, 3.0]
    found = pace.estimate([PACE], trials, 6.0, 2, stopped=0.0)
    assert found.seconds == pytest.approx(6 + 4 + 7)  # 6 4 7 on the one, 5 9 3 on the other
    assert found.each_s == pytest.approx(5.6)
    alone = pace.estimate([PACE], trials, 0.0, 1, stopped=0.2)
    assert alone.seconds == pytest.approx(sum(trials))
    assert alone.told().splitlines() == [
        "about 28 s to go: 5 trials of 6 s each on 1 worker",
        "(from updates and pictures of 1 network timed here just now; 20% of trials taken to be stopped)",
    ]


def test_trials_whose_own_pace_is_unknown_take_the_mean(study):
    slow = replace(PACE, update_s=4.0)
    one, two = PACE.trial_s(study), slow.trial_s(study)
    typical, paces = [Variant(None)] * 3, [PACE, slow, None]
    assert Workload(typical, [None] * 4).seconds(study, paces) == [(one + two) / 2] * 4
    left = Workload(typical, [0, 2, 1, 0, None]).seconds(study, paces)
    assert left == pytest.approx([one, (2 * one + two) / 3, two, one, (2 * one + two) / 3])


def test_a_variant_takes_as_long_as_its_settings_say(study):
    (twice,) = Workload([Variant(None, {"training.images_seen": 1280})], [0]).seconds(study, [PACE])
    assert twice - PACE.trial_s(study) == pytest.approx((2 - 0.2 * 2 / 6) * 5 * PACE.update_s)


def test_headway_is_the_share_of_forward_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(headway, "EVERY_S", 0.0)
    assert headway.read(tmp_path) == 0.0
    told = headway.Headway(tmp_path, images=100, pictures=10, calls=20, losses=500)  # 300 + 200 + 500
    told.trained(50)
    assert headway.read(tmp_path) == pytest.approx(0.15)
    told.drawn(5)
    assert headway.read(tmp_path) == pytest.approx(0.4)
    told.over()
    assert headway.read(tmp_path) == 0.0 and not list(tmp_path.iterdir())
    (tmp_path / headway.FILE).write_text("nan")
    assert headway.read(tmp_path) == 0.0


def record(number, state="running", rungs=(), reason=""):
    choices = {f"self_attention_{size}": True for size in (64, 32, 16)} | {
        f"conv_{size}": "separable" for size in (64, 32)
    }
    metrics = {"clip_score": 38.123456, "caption_accuracy": 0.28515625, "fid_efficientnet_lite0": 1758.36}
    metrics |= {f"scene_{name}_accuracy": 0.123456 for name in ("colour", "shape", "relation")}
    return {
        "trial": number,
        "state": state,
        "choices": choices,
        "cost": {"params": 211_200_000, "macs": 188_800_000_000},
        "rungs": [{"metrics": metrics} for _ in rungs],
        "reason": reason,
    }


@pytest.fixture
def shown(study, tmp_path):
    """A Progress over made-up records, which has written nothing yet."""
    told = Progress(Console(file=StringIO(), highlight=False, soft_wrap=True))
    records = {}
    folder = lambda number: tmp_path / str(number)  # noqa: E731
    with told.live(records, study, folder):
        yield SimpleNamespace(told=told, records=records, folder=folder, text=told.console.file.getvalue)


def test_lines_of_trials_fit_and_count(shown):
    shown.records[3] = record(3)
    shown.told.started(shown.records[3])
    shown.records[3] = record(3, "complete", (0, 1))
    shown.told.concluded(shown.records[3])
    start, end = shown.text().splitlines()
    assert start.startswith("trial   3 start       211.2 M params, 188.8 G MACs  self_attention_64 yes, ")
    assert end.startswith("trial   3 complete    1 of 6: fid_efficientnet_lite0 1,758, clip_score 38.12, caption_")
    assert len(start) <= 100 and len(end) <= 100 and start.endswith("…")


def test_a_reason_is_told_whole(shown):
    reason = "params 408.6 M > 400.0 M, macs 233.3 G > 200.0 G, and something else that is told to the very end of it"
    shown.told.concluded(record(4, "over_budget", reason=reason))
    assert shown.text().strip().endswith("to the very end of it")
    shown.told.concluded(record(5, "failed", (0,), reason="the loss is nan after 640 images"))
    assert "the loss is nan" in shown.text().splitlines()[-1]


def test_between_start_and_end_the_share_and_the_time_left_are_told(shown, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE_S", 0.0)
    monkeypatch.setattr(progress, "PAUSES", 0.0)
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown.told.expect(pace.Estimate(600.0, 6, 100.0, 1, 1, 0.0))
    shown.records[0] = record(0)
    shown.folder(0).mkdir()
    (shown.folder(0) / headway.FILE).write_text("0.5")
    clock[0] += 25.0
    shown.told.refresh(1)
    assert shown.text().splitlines()[-1] == "0 of 6 trials, 4% of the work, about 9 min 35 s left: trial 0 25%"
    clock[0] += 875.0  # three times as slow as was expected
    for number in (0, 1, 2):
        shown.records[number] = record(number, "complete", (0, 1))
    shown.told.refresh(1)
    assert shown.text().splitlines()[-1].startswith("0 of 6")  # nothing runs
    shown.records[3] = record(3)
    shown.told.refresh(1)
    assert shown.text().splitlines()[-1] == "3 of 6 trials, 50% of the work, about 15 min 0 s left: trial 3 0%"


def test_pauses_between_such_lines_grow_with_the_study(shown, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown.told.expect(pace.Estimate(36_000.0, 6, 100.0, 1, 1, 0.0))
    before = len(shown.text().splitlines())
    shown.records[0] = record(0)
    for clock[0] in range(0, 3600, 60):
        shown.told.refresh(1)
    assert len(shown.text().splitlines()) - before == 4  # one each 720 s
