"""A pool against brute force, and as the proposer of a study whose scores are made up."""

import json
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
from at_once import AtOnce
from free_study import no_lines, no_pace
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.console import Console

from nas.analysis import findings
from nas.cost.budget import over_budget
from nas.errors import InputError
from nas.failures import Diverged, Lost
from nas.interruption import Interrupted
from nas.report import page
from nas.report.live.progress import Progress
from nas.runs import looks
from nas.runs.directory import open_run
from nas.search import pool
from nas.search.dominance import CORNER, hypervolume, nondominated
from nas.settings import study_file
from nas.space.search_space import SearchSpace
from nas.study.pool import Pool, looks_of
from nas.study.run import Run
from nas.trial import look
from nas.trial.checks.check import check_pool

GRID = st.integers(0, 12).map(lambda place: place / 10)  # some beyond the corner, many equal


def points(count, objectives):
    return arrays(float, (count, objectives), elements=GRID)


@st.composite
def problems(draw):
    objectives = draw(st.integers(1, 4))
    front = draw(st.integers(0, 6).flatmap(lambda count: points(count, objectives)))
    return draw(points(5, objectives)), front[nondominated(front)]


@given(problems())
def test_what_a_point_adds_is_the_difference_of_two_hypervolumes(problem):
    candidates, front = problem
    corner = np.full(candidates.shape[1], CORNER)
    before = hypervolume(front, corner)
    after = [hypervolume(np.concatenate([front, one[None]]), corner) for one in candidates]
    assert pool.added(candidates, front, corner) == pytest.approx(np.array(after) - before, abs=1e-12)


def test_many_points_are_added_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    candidates, corner = rng.random((100, 3)), np.full(3, CORNER)
    front = rng.random((60, 3))
    front = front[nondominated(front)]
    monkeypatch.setattr(pool, "AT_ONCE", 300)
    whole = pool.added(candidates, front, corner)
    assert whole == pytest.approx(np.concatenate([pool.added(one[None], front, corner) for one in candidates]))


def test_the_expected_share_is_the_mean_over_gains():
    candidates = np.array([[0.0, 10.0], [4.0, 4.0], [10.0, 0.0], [9.0, 9.0]])
    gains = np.array([[0.0, -2.0], [0.0, 2.0]])
    known = np.array([[2.0, 8.0], [8.0, 2.0]])
    likely = np.concatenate([known, candidates])  # the mean gain is 0
    low, span = likely.min(0), np.ptp(likely, axis=0)
    corner = np.full(2, CORNER)
    front = (known - low) / span

    def share(point):
        both = np.concatenate([front, ((point - low) / span)[None]])
        return hypervolume(both, corner) / hypervolume(front, corner) - 1

    expected = [np.mean([share(one + gain) for gain in gains]) for one in candidates]
    assert pool.expected(candidates, gains, known) == pytest.approx(expected)


def test_without_gains_or_a_front_a_look_counts_as_it_is():
    candidates = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [1.0, 1.0]])
    nothing = np.empty((0, 2))
    volumes = [hypervolume(one[None], np.full(2, CORNER)) for one in candidates]
    assert pool.expected(candidates, nothing, nothing) == pytest.approx(volumes)


# --- the proposer ----------------------------------------------------------------------------------------------------

STUDY = """
name: pooled
space: mobilediffusion
dataset: scenes
autoencoder: {name: kl, shipped: scenes}
conditioning: {encoder: scenes}
proxy: {width_divisor: 16}
training: {init: supernet}
metrics: [scene_accuracy]
budget: {params: 400M, macs: 200G}
search: {sampler: pool, trials: 5, minimise: [macs], maximise: [prompt_accuracy], pool: {looks: 40}}
stopping: {rungs: [1.0]}
tracking: {mode: "off"}
workers: 2
"""


def merit(architecture):
    """A made-up accuracy: what is deep at the bottom draws well, and cross-attention at 64 helps."""
    bottom, top = architecture["levels"][2], architecture["levels"][0]
    return 0.1 * sum(bottom["down"]) / len(bottom["down"]) + 0.2 * top["cross_attention"]


class MadeUp(AtOnce):
    """Looks see the merit, trainings end a tenth above it; `fate` may raise what a look ends with."""

    jobs: list = []
    fate = staticmethod(lambda architectures: None)

    def submit(self, tag, function, *arguments):
        self.jobs.append((function.__name__, tag))
        super().submit(tag, function, *arguments)

    def compute(self, tag, function, *arguments):
        if function.__name__ == "prepare":
            return {}, ["a"]
        if function.__name__ in ("measure", "clock"):
            return {"measure": no_lines, "clock": no_pace}[function.__name__]()
        if function.__name__ == "look":
            self.fate(arguments[0])
            return [{"metrics": {"prompt_accuracy": merit(one)}, "failed": "", "seconds": 1.0} for one in arguments[0]]
        (job,) = arguments
        scores = {"prompt_accuracy": merit(job.architecture) + 0.1}
        rung = {"rung": job.rung, "images_seen": job.images_seen, "metrics": scores, "timings": {"train_s": 1.0}}
        return {"rung": rung, "proxy": job.architecture, "proxy_cost": {"params": 1, "macs": 2}}


@pytest.fixture
def engine():
    return type("Engine", (MadeUp,), {"jobs": []})


@pytest.fixture
def execute(tmp_path, engine):
    """Run the study, or go on with it; the run, and what it said."""
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)

    def go(*overrides):
        study = study_file.load(path, overrides)
        console = Console(file=StringIO(), width=1000)
        directory, _ = open_run(study, tmp_path / "runs")
        running = Run(study, Pool(study, SearchSpace.load(study.space)), directory, Progress(console), engine=engine)
        running.execute()
        return SimpleNamespace(run=running, records=running.records, path=directory.path, said=console.file.getvalue())

    return go


def test_it_looks_at_many_and_trains_the_best(execute, engine):
    done = execute()
    seen = looks.read(done.path)
    assert 40 <= len(seen) <= 80 and "looking at 40 slices" in done.said
    assert "looked at 40 slices, 1.0 s each" in done.said
    assert [record["state"] for record in done.records.values()] == ["complete"] * 5
    assert {record["key"] for record in done.records.values()} <= set(seen)
    space, study = done.run.proposer._space, done.run.study
    costs = [study.deploy.costs(space.architecture(look["choices"])) for look in seen.values()]
    assert not any(over_budget(cost, study.budget) for cost in costs)
    # the first is the candidate with the largest hypervolume of its own: brute force over what was seen by then
    names = [name for name, _ in engine.jobs]
    before = list(seen.items())[: 5 * names[: names.index("run_rung")].count("look")]
    rows = np.array(
        [
            [study.deploy.costs(space.architecture(s["choices"]))["macs"], -s["metrics"]["prompt_accuracy"]]
            for _, s in before
        ]
    )
    scaled = (rows - rows.min(0)) / np.ptp(rows, axis=0)
    largest = np.argmax(np.prod(CORNER - scaled, axis=1))
    assert done.records[0]["key"] == before[largest][0]


def test_it_finds_more_than_random_drawing(execute):
    """Of the accuracies made up here 0.6 is the most there is, and 0.35 the mean."""
    best = max(record["rungs"][-1]["metrics"]["prompt_accuracy"] for record in execute().records.values())
    assert best >= 0.65


def test_a_run_that_goes_on_keeps_its_looks(execute, engine):
    first = execute("search.trials=2")
    engine.jobs.clear()
    seen = looks.read(first.path)
    second = execute()
    assert second.path == first.path and len(second.records) == 5
    assert list(looks.read(second.path))[: len(seen)] == list(seen)
    assert [name for name, _ in engine.jobs].count(
        "look"
    ) <= 7  # MORE of them, five a job: only those that follow from trainings


def test_damaged_looks_are_made_again(execute):
    first = execute("search.trials=2")
    (first.path / looks.NAME).write_text('{"a": {"choices": 7}}')
    second = execute()
    assert "looks.json" in second.said and "looked at again" in second.said
    assert len(looks.read(second.path)) >= 40


def test_looks_whose_worker_dies_are_tried_again_and_then_given_up(execute, engine):
    deaths = []

    def dies_in_the_first_batch(architectures):
        deaths.append(architectures)
        if architectures == deaths[0]:
            raise Lost("killed by signal 9")

    engine.fate = staticmethod(dies_in_the_first_batch)
    done = execute()
    assert sum(one == deaths[0] for one in deaths) == 3
    failed = [look for look in looks.read(done.path).values() if look["failed"]]
    assert len(failed) == 5 and all("killed by signal 9" in look["failed"] for look in failed)
    assert "5 failed, the last: killed by signal 9" in done.said
    assert [record["state"] for record in done.records.values()] == ["complete"] * 5


def test_more_are_looked_at_when_those_that_were_are_all_trained(execute):
    done = execute("search.pool.looks=3", "search.trials=8")
    assert len(done.records) == 8 and len(looks.read(done.path)) > 8 and "stopping here" not in done.said


def test_looks_that_all_fail_are_told_and_made_again_by_the_same_command(execute, engine):
    def fails(architectures):
        raise InputError("the judge is not there")

    engine.fate = staticmethod(fails)
    first = execute()
    assert not first.records and "no look succeeded; the last: the judge is not there" in first.said
    engine.fate = staticmethod(lambda architectures: None)
    assert len(execute().records) == 5


def test_interrupted_looks_are_asked_for_again(execute, engine):
    seen = []

    def interrupts_the_first(architectures):
        seen.append(architectures)
        if len(seen) == 1:
            raise Interrupted

    engine.fate = staticmethod(interrupts_the_first)
    done = execute()
    assert seen.count(seen[0]) == 2 and len(done.records) == 5 and "looked at 40 slices" in done.said


def test_the_first_training_waits_for_most_looks_however_many_workers_there_are(execute, engine):
    engine.slots = 16

    def one_at_a_time(self, timeout_s):
        first, self._done = self._done[:1], self._done[1:]
        return first

    engine.finished = one_at_a_time
    execute("workers=16")
    jobs = [name for name, _ in engine.jobs]
    assert jobs[: jobs.index("run_rung")].count("look") == 40  # one network each


@pytest.mark.parametrize("slots", [1, 2])
def test_a_space_of_one_member_is_trained_once_and_repeated(tmp_path, engine, slots):
    space = SearchSpace.load("mobilediffusion")
    single = replace(space, axes=(replace(space.axes[0], choices=(1024,), settings=space.axes[0].settings[2:3]),))
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    study = study_file.load(path, ["racing.trials=1"])
    directory, _ = open_run(study, tmp_path / "runs")
    engine.slots = slots
    running = Run(study, Pool(study, single), directory, Progress(Console(file=StringIO())), engine=engine)
    running.execute()
    ended = [(record["state"], record.get("race", False)) for record in running.records.values()]
    assert ended == [("complete", False), ("complete", True)]


def test_a_score_that_is_no_number_is_kept_out_of_looks_or_fails_the_look(monkeypatch):
    study = SimpleNamespace(
        search=SimpleNamespace(pool=SimpleNamespace(images=2)),
        evaluation=SimpleNamespace(images=2),
        objectives={"prompt_accuracy": "maximise"},
    )
    network = SimpleNamespace(eval=lambda: None)
    bench = SimpleNamespace(
        study=study,
        prepare=lambda: None,
        scaled=lambda given: given,
        network=lambda *given: network,
        objective=lambda *given: SimpleNamespace(schedule_config={}),
        draw=lambda *given: [],
        captioned=lambda drawn: drawn,
        metrics=[],
    )
    monkeypatch.setattr(look, "scores", lambda *given: {"prompt_accuracy": 0.5, "unseen_prompt_accuracy": float("nan")})
    assert look.scored(bench, {}) == {"prompt_accuracy": 0.5}
    monkeypatch.setattr(look, "scores", lambda *given: {"prompt_accuracy": float("nan")})
    with pytest.raises(Diverged, match="prompt_accuracy is not a finite number for 2 pictures"):
        look.scored(bench, {})


def test_what_takes_longer_to_train_is_looked_at_more(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace(", pool: {looks: 40}", ""))
    short, long = (study_file.load(path, [f"training.images_seen={images}"]) for images in (4_096, 8_192))
    calls = [3 * images + 256 * 50 for images in (4_096, 8_192)]  # 25 steps with guidance
    assert [looks_of(one) for one in (short, long)] == [round(5 * each / 4 / (32 * 50)) for each in calls]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.init=scratch"], "search.sampler: pool looks at slices of a supernet, but training.init is scratch"),
        (["search.sampler=tpe"], "pool: sampler tpe does not read it; expected sampler pool"),
        (["search.max_refusals=5"], "max_refusals: sampler pool does not read it; expected one of: tpe"),
        (["search.pool.looks=0"], "search.pool.looks"),
        (["space=[mobilediffusion, dit]"], "search.sampler: pool looks at slices of one space's supernet"),
    ],
)
def test_what_a_pool_cannot_be(tmp_path, overrides, said):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    with pytest.raises(InputError) as refused:
        study = study_file.load(path, overrides)
        check_pool(study)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_neighbour_differs_in_one_axis_and_what_hangs_on_it():
    import random

    space, rng = SearchSpace.load("mobilediffusion"), random.Random(0)
    for _ in range(200):
        member = space.sample(rng)
        other = space.neighbour(member, rng)
        space.architecture(other)
        differing = [name for name in member.keys() & other.keys() if member[name] != other[name]]
        assert len(differing) == 1
        assert all(axis.active(other) == (axis.name in other) for axis in space.axes)


def test_the_report_shows_where_training_would_have_brought_what_was_only_looked_at(execute):
    done = execute()
    run = findings.Run.read(done.path)
    frame = findings.forecasts(run.looks, run.table, run.goals)
    trained = {record["key"] for record in done.records.values()}
    others = [look for key, look in looks.read(done.path).items() if key not in trained]
    assert frame["prompt_accuracy"].tolist() == pytest.approx(
        [look["metrics"]["prompt_accuracy"] + 0.1 for look in others]
    )
    assert frame["macs"].tolist() == [look["cost"]["macs"] for look in others]
    told = page.write(done.path).read_text()
    assert f"{len(others) + 5} slices" in told and "looked at, not trained" in told


def test_json_of_looks_is_read_as_it_was_written(execute):
    done = execute("search.trials=1")
    assert json.loads((done.path / looks.NAME).read_text()) == looks.read(done.path)
