"""Architecture evolution: the ranking against brute force, whole runs over networks with planted values, and their weights."""

import json
from io import StringIO
from itertools import permutations
from types import SimpleNamespace

import pytest
import synthetic_run
from at_once import AtOnce
from free_study import no_lines, no_pace
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nas.analysis import findings
from nas.errors import InputError
from nas.interruption import Interrupted
from nas.report import page
from nas.report.chapters.evolution import told as told_of
from nas.report.live.progress import Progress
from nas.runs import evolution as rounds
from nas.runs.directory import open_run
from nas.search import evolution
from nas.search.evolution import Removal
from nas.settings import study_file
from nas.space.search_space import SearchSpace
from nas.study.evolution import Evolution
from nas.study.run import Run
from nas.trial import moves

WHOLE = st.integers(-6, 12)  # few values, so that many are equal


@st.composite
def removals(draw):
    count = draw(st.integers(1, 6))
    return [Removal(f"axis {place}", draw(WHOLE) / 4, draw(st.integers(1, 4))) for place in range(count)]


def goes_before(one, other):
    """SnapFusion's order by cross-multiplication, without a quotient; of equals the greater saving."""
    left, right = max(one.loss, 0) * other.saved, max(other.loss, 0) * one.saved
    return left < right or (left == right and one.saved >= other.saved)


@given(removals())
def test_the_order_is_one_in_which_no_pair_stands_wrong(planted):
    found = evolution.ranked(planted)
    right = [
        order
        for order in permutations(planted)
        if all(goes_before(one, other) for place, one in enumerate(order) for other in order[place + 1 :])
    ]
    assert tuple(found) in right


@given(removals(), st.integers(1, 4), st.integers(0, 12))
def test_a_group_is_the_shortest_start_of_the_order_that_saves_enough(planted, most, wanted):
    order = evolution.ranked(planted)
    enough = [n for n in range(len(order) + 1) if sum(one.saved for one in order[:n]) >= wanted]
    assert evolution.group(planted, most, wanted) == order[: min([*enough[:1], most, len(order)])]


@given(removals(), st.lists(st.integers(1, 5), min_size=4, max_size=4), st.integers(0, 5))
def test_the_copy_is_of_the_most_valuable_block_that_fits(planted, costs, room):
    added = {f"axis {place}": cost for place, cost in enumerate(costs)}  # other axes have no copy
    chosen = evolution.copied(planted, added, room)
    fits = [one for one in planted if added.get(one.axis, room + 1) <= room and one.loss > 0]
    assert (chosen is None) == (not fits)
    if fits:
        best = next(one for one in fits if one.axis == chosen)
        assert all(one.value <= best.value for one in fits)
        assert all(added[one.axis] >= added[chosen] for one in fits if one.value == best.value)


# --- the proposer ----------------------------------------------------------------------------------------------------

STUDY = """
name: evolved
space: mobilediffusion_blocks
dataset: scenes
autoencoder: {name: kl, shipped: scenes}
conditioning: {encoder: scenes}
proxy: {width_divisor: 16}
base: {architecture: mobilediffusion, checkpoint: nas/assets/base_scenes.safetensors}
training: {init: inherited, block_drop: {probability: 0.1}}
metrics: [scene_accuracy]
search: {sampler: evolution, trials: 30, minimise: [macs], maximise: [prompt_accuracy], evolution: {target: 0.6, group: 2}}
stopping: {rungs: [1.0]}
tracking: {mode: "off"}
workers: 2
"""
PLANTED = {  # what a unit of each axis is worth; a conv block counts as two units
    "up_64_b": 0.3,
    "up_32_b": 0.02,
    "up_32_a": 0.01,
    "down_32": 0.0,
    "row_16_d": 0.005,
    "row_16_a": 0.003,
    "row_16_b": 0.004,
    "row_16_c": 0.02,
    "row_16_e": 0.012,
}
UNITS = {"none": -1, "plain": 0, "stays": 1, "attends": 1, "one": 1, "two": 2, "three": 3, "four": 4}
SPACE = SearchSpace.load("mobilediffusion_blocks")


def merit(choices):
    """A made-up accuracy, in which every axis counts by itself."""
    return 0.1 + sum(worth * UNITS.get(choices[axis], choices[axis]) for axis, worth in PLANTED.items())


class MadeUp(AtOnce):
    """Looks and trials score the merit of the network; `fate` may raise what a look or a training ends with."""

    jobs: list = []
    merits: dict = {}
    fate = staticmethod(lambda name, count: None)

    def compute(self, tag, function, *arguments):
        name = function.__name__
        if name == "prepare":
            return {}, ["a"]
        if name == "prepare_base":
            return {"weights": "base", "images_seen": 1, "scores": []}
        if name in ("measure", "clock"):
            return {"measure": no_lines, "clock": no_pace}[name]()
        self.fate(name, len(self.jobs))
        self.jobs.append((name, arguments))
        if name == "look":
            (one,), images, parent = arguments
            assert images == 256 and parent.weights.name == "weights.safetensors"
            return [{"metrics": {"prompt_accuracy": self.known(one)}, "failed": "", "seconds": 1.0}]
        (job,) = arguments
        scores = {"prompt_accuracy": self.known(job.architecture)}
        rung = {"rung": job.rung, "images_seen": job.images_seen, "metrics": scores, "timings": {"train_s": 1.0}}
        return {"rung": rung, "proxy": job.architecture, "proxy_cost": {"params": 1, "macs": 2}}

    def known(self, architecture):
        return self.merits[json.dumps(architecture, sort_keys=True)]


class Merits(dict):
    """The merit of a network, from its blocks and not from its choices."""

    def __missing__(self, spelled):
        outer, middle, row = json.loads(spelled)["levels"]
        row = row["down"] + row["up"]
        ups = middle["up"]
        choices = {
            "up_64_b": "stays" if len(outer["up"]) == 2 else "none",
            "up_32_b": ("plain", "attends")[ups[1]] if len(ups) == 2 else "none",
            "up_32_a": ups[0],
            "down_32": middle["down"][0],
            "row_16_d": ("plain", "one", "two", "three", "four")[row[3]] if len(row) == 5 else "none",
            **dict(zip(("row_16_a", "row_16_b", "row_16_c"), row, strict=False)),
            "row_16_e": row[-1],
        }
        return merit(choices)


@pytest.fixture
def engine():
    return type("Engine", (MadeUp,), {"jobs": [], "merits": Merits()})


def fewer_conv_blocks(self, own, whole):
    """Stands for `Moves.descends`, which builds networks: conv blocks are never copied, transformer blocks may be."""
    return all(len(a.down + a.up) <= len(b.down + b.up) for a, b in zip(own.levels, whole.levels, strict=True))


@pytest.fixture
def execute(tmp_path, engine, monkeypatch):
    """Run the study, or go on with it; the run, and what it said."""
    monkeypatch.setattr(moves.Moves, "descends", fewer_conv_blocks)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)

    def go(*overrides, root="runs"):
        study = study_file.load(path, overrides)
        console = Console(file=StringIO(), width=1000)
        directory, _ = open_run(study, tmp_path / root)
        running = Run(study, Evolution(study, SPACE), directory, Progress(console), engine=engine)
        running.execute()
        told = rounds.read(directory.path)
        return SimpleNamespace(records=running.records, rounds=told, path=directory.path, said=console.file.getvalue())

    return go


def brute_force(share, group):
    """The networks of an evolution by the planted values alone: choices after every round, until the target."""
    order = {axis.name: list(axis.choices) for axis in SPACE.axes}
    cost = {}

    def macs(choices):
        return cost.setdefault(str(choices), SPACE.architecture(choices).cost(64, 77).macs)

    base = {axis: {"row_16_d": "three"}.get(axis, 3 if axis.startswith("row") else order[axis][0]) for axis in order}
    path, target = [base], share * macs(base)
    while macs(path[-1]) > target:
        now, weighed = path[-1], []
        for axis, choices in order.items():
            later = choices[choices.index(now[axis]) + 1 :]
            if later:
                saved = macs(now) - macs({**now, axis: later[0]})
                lost = merit(now) - merit({**now, axis: later[0]})
                weighed.append((round(lost / saved, 20), -saved, axis, later[0]))
        then, spared = dict(now), 0
        for _, less, axis, choice in sorted(weighed)[:group]:
            if spared >= macs(now) - target:
                break
            then[axis], spared = choice, spared - less
        path.append(then)
    return path


@pytest.mark.parametrize(("share", "group"), [(0.7, 3), (0.9, 1)])
def test_blocks_go_in_the_order_of_their_planted_values(execute, share, group):
    done = execute(f"search.evolution.target={share}", f"search.evolution.group={group}")
    expected = brute_force(share, group)
    found = [record["choices"] for record in done.records.values()]
    assert found[: len(expected)] == expected
    assert [record.get("parent") for record in done.records.values()] == [None, *range(len(found) - 1)]
    assert len({record["seed"] for record in done.records.values()}) == len(found)
    base = done.records[0]["cost"]["macs"]
    assert all(record["cost"]["macs"] <= share * base for record in list(done.records.values())[len(expected) - 1 :])
    assert "the target is reached" in done.said


def test_what_is_left_to_the_target_is_spent_on_a_copy_of_the_most_valuable_block(execute):
    done = execute("search.evolution.target=0.65")
    reached = brute_force(0.65, 2)[-1]
    room = 0.65 * done.records[0]["cost"]["macs"] - SPACE.architecture(reached).cost(64, 77).macs
    stack = 14 * 256 * 1024**2  # multiply-adds of a transformer block at 16x16, about: 14 matrices of 1,024 x 1,024
    assert stack < room < 2 * stack and reached["row_16_c"] == 3
    assert list(done.records.values())[-1]["choices"] == {**reached, "row_16_c": 4}  # worth most of what fits
    (copied,) = [one for one in done.rounds[-1]["actions"] if one["done"]]
    (removed,) = [one for one in done.rounds[-1]["actions"] if one["axis"] == "row_16_c" and one["kind"] == "removal"]
    assert copied["kind"] == "copy" and copied["quality"] is None
    assert copied["value"] == removed["value"] == pytest.approx(0.02 / stack, rel=0.1)


def test_a_run_that_is_killed_anywhere_makes_the_same_choices_and_no_look_twice(execute, engine):
    overrides = ("search.trials=4", "search.evolution.group=2")
    whole = execute(*overrides)
    looks = [name for name, _ in engine.jobs].count("look")
    for place in range(3, len(engine.jobs), 9):
        engine.jobs.clear()
        death = [place]

        def dies(name, count, death=death):
            if death and count == death[0]:
                death.clear()
                raise KeyboardInterrupt

        engine.fate = staticmethod(dies)
        with pytest.raises(KeyboardInterrupt):
            execute(*overrides, root=f"runs {place}")
        again = execute(*overrides, root=f"runs {place}")
        assert again.rounds == whole.rounds
        assert [r["choices"] for r in again.records.values()] == [r["choices"] for r in whole.records.values()]
        assert [r["seed"] for r in again.records.values()] == [r["seed"] for r in whole.records.values()]
        assert looks <= [name for name, _ in engine.jobs].count("look") <= looks + 1  # the other worker's was under way


def test_more_rounds_go_on_where_the_first_ones_ended(execute):
    execute("search.trials=2")
    more = execute("search.trials=4")
    assert len(more.records) == 4 and more.rounds == execute("search.trials=4", root="others").rounds


def test_a_damaged_table_of_rounds_is_told_and_only_the_last_round_is_looked_at_again(execute, engine):
    first = execute("search.trials=3")
    (first.path / rounds.NAME).write_text('[{"trial": "none"}]')
    engine.jobs.clear()
    again = execute("search.trials=4")
    assert "evolution.json" in again.said and [one["trial"] for one in again.rounds] == [2]
    assert [name for name, _ in engine.jobs].count("look") == 1 + len(again.rounds[0]["actions"])


def test_an_interrupted_look_is_asked_for_again(execute, engine):
    def interrupts(name, count, seen=[]):  # noqa: B006 (remembers)
        if name == "look" and not seen:
            seen.append(count)
            raise Interrupted

    engine.fate = staticmethod(interrupts)
    assert len(execute("search.trials=2").records) == 2


def test_a_failed_trial_ends_the_session_and_is_tried_again_by_the_same_command(execute, engine):
    def fails(name, count):
        if name == "run_rung" and count:
            raise InputError("the loss is no number")

    engine.fate = staticmethod(fails)
    first = execute("search.trials=3")
    assert [record["state"] for record in first.records.values()] == ["complete", "failed"]
    assert "trial 1 failed" in first.said
    engine.fate = staticmethod(lambda name, count: None)
    again = execute("search.trials=3")
    assert [record["state"] for record in again.records.values()] == ["complete", "failed", "complete", "complete"]
    assert again.records[2]["choices"] == again.records[1]["choices"] and again.records[2]["parent"] == 0


def test_the_report_says_which_block_went_when_and_for_what(execute):
    done = execute("search.trials=3")
    run = findings.Run.read(done.path)
    told = told_of(run)
    assert [row[0] for row in told["rows"]] == ["trial 0", "trial 1", "trial 2"]
    for row, before, after in zip(
        told["rows"], *(brute_force(0.6, 2)[place : place + 2] for place in (0, 1)), strict=False
    ):
        changed = [axis for axis in before if before[axis] != after[axis]]
        assert row[3] == ", ".join(f"{axis} {before[axis]} → {after[axis]}" for axis in changed)
        costs = [SPACE.architecture({**before, axis: after[axis]}).cost(64, 77).macs for axis in changed]
        saved = [(SPACE.architecture(before).cost(64, 77).macs - cost) / 1e9 for cost in costs]
        lost = [merit(before) - merit({**before, axis: after[axis]}) for axis in changed]
        values = [float(value) for value in row[4].split(", ")]
        assert values == pytest.approx([one / each for one, each in zip(lost, saved, strict=True)], rel=1e-2, abs=1e-9)
    assert told["rows"][2][3:] == ("", "", "")  # the last trial was not weighed
    page_ = page.write(done.path).read_text()
    assert "Which block went when" in page_ and told["picture"] in page_


def test_a_report_of_another_search_says_nothing_of_evolution(tmp_path):
    run = synthetic_run.write(tmp_path / "run", trials=4)
    assert told_of(findings.Run.read(run)) is None
