"""Architecture evolution: the ranking against brute force, whole runs over networks with planted values, and their weights."""

import copy
import json
from io import StringIO
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from at_once import AtOnce
from free_study import no_lines, no_pace
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_block_drop import built, inputs, small

from nas.errors import InputError
from nas.interruption import Interrupted
from nas.report.progress import Progress
from nas.runs import evolution as rounds
from nas.runs.directory import open_run
from nas.search import evolution
from nas.search.evolution import Removal
from nas.settings import study_file
from nas.space.search_space import SearchSpace
from nas.study.evolution import Evolution
from nas.study.run import Run
from nas.trial import moves
from nas.weights import inheritance, supernet

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


# --- weights ---------------------------------------------------------------------------------------------------------


def row(*depths):
    """The proxy of MobileDiffusion whose row at 16x16 has stacks of these depths."""
    whole = small("mobilediffusion")
    levels = [vars(level) for level in whole.levels]
    half = len(depths) // 2
    levels[2] = {**levels[2], "down": depths[:half], "up": depths[half:]}
    return type(whole)(**{**vars_of(whole), "levels": tuple(type(whole.levels[0])(**level) for level in levels)})


def vars_of(config):
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@pytest.mark.parametrize("depths", [(3, 4, 3, 3, 3), (5, 3, 3, 3, 4), (3, 3, 1, 3, 3)])
@torch.no_grad()
def test_a_copied_block_changes_nothing_until_it_is_trained(depths):
    whole_config, own_config = row(3, 3, 0, 3, 3), row(*depths)
    whole = built(whole_config)
    own = built(own_config, noise=0.3)
    renamed = inheritance.sources(own_config, whole_config)
    with pytest.raises(InputError, match="not the base with blocks removed"):
        inheritance.inherit(copy.deepcopy(own), whole, renamed)
    inheritance.inherit(own, whole, renamed, grown=True)
    assert torch.allclose(own(*inputs()), whole(*inputs()), atol=1e-6)


@torch.no_grad()
def test_a_copy_in_a_row_has_the_weights_of_the_block_before_it():
    whole, own = built(row(3, 3, 3, 3, 3)), built(row(3, 5, 3, 3, 3))
    inheritance.inherit(own, whole, {}, grown=True)
    tensors, stack = own.state_dict(), "levels.2.down.1.stacks.0.blocks"
    for place in (3, 4):
        assert torch.equal(tensors[f"{stack}.{place}.ffn.expand.weight"], tensors[f"{stack}.2.ffn.expand.weight"])
        assert not tensors[f"{stack}.{place}.ffn.project.weight"].any()


def test_a_block_that_cannot_start_as_nothing_is_no_copy():
    for more, fewer in ((row(3, 3, 3, 3, 3, 3), row(3, 3, 3, 3, 3)), (row(3, 3, 3, 3, 3), row(3, 3, 3, 3))):
        pair = supernet.skeleton(more), supernet.skeleton(fewer)
        with pytest.raises(InputError):
            inheritance.check(*pair, inheritance.sources(more, fewer), grown=True)


def test_the_weights_that_a_change_of_the_shipped_space_leaves(tmp_path):
    """All removals and copies of two members, but those that add a conv block, have weights to start from."""
    found = moves.Moves(loaded(tmp_path), SPACE)
    some = {"up_64_b", "up_32_b", "row_16_d", "row_16_a"}  # one of each kind
    for member in (found.start, {**SPACE.smallest(), "row_16_a": 2}):
        now = found.network(member)
        for axis, other in SPACE.moves(member):
            config = found.network(other)
            assert axis not in some or found.descends(config, now) == fewer_conv_blocks(found, config, now)
    assert [move.axis for move in found.removals(member)] == ["row_16_a"]


# --- what cannot be --------------------------------------------------------------------------------------------------


def loaded(tmp_path, *overrides):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return study_file.load(path, overrides)


def table(tmp_path, latent_size=64, runtime="PyTorch eager"):
    """A table of the blocks of the whole space, a microsecond for each million multiply-adds of a made-up kind."""
    path = tmp_path / "latency.json"
    found = set()
    ends = (SPACE.largest(), SPACE.smallest())
    for member in [*ends, *(other for end in ends for _, other in SPACE.moves(end))]:
        found |= set(SPACE.architecture(member).blocks(latent_size, 77))
    milliseconds = {block.name: 1.0 + block.channels / 1000 for block in found}
    told = {"threads": 1, "clock": "cpu", "rounds": 1, "runtime": runtime, "device": "d", "fingerprint": "f"}
    content = {"version": 2, "milliseconds": milliseconds, "latent_size": latent_size, "text_tokens": 77, **told}
    path.write_text(json.dumps(content))
    return path


def test_a_target_in_milliseconds_is_the_sum_over_the_table(tmp_path):
    study = loaded(
        tmp_path,
        f"deploy.latency={table(tmp_path)}",
        "search.evolution={target: 40, cost: latency_ms}",
        "search.minimise=[latency_ms]",
    )
    moves.check(study, SPACE)
    found = moves.Moves(study, SPACE)
    blocks = found.network(found.start).blocks(64, 77)
    assert found.target == 40
    assert found.cost(found.network(found.start)) == pytest.approx(
        sum(times * (1.0 + block.channels / 1000) for block, times in blocks.items())
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["search.evolution.target=0.4"], "search.evolution.target: 0.4 (73.8 G macs) is below 79.7 G, the least that"),
        (["search.evolution.target=0"], "search.evolution.target"),
        (["search.evolution=null"], "evolution: required by sampler evolution"),
        (["search.sampler=tpe"], "evolution: sampler tpe does not read it"),
        (
            ["training.init=scratch"],
            "training.init: evolution goes on from the weights of a base model, but this is scratch",
        ),
        (["base=null"], "base: required, but not given"),
        (["base.checkpoint=nothing.safetensors"], "base.checkpoint: nothing.safetensors: no such file"),
        (
            ["base.architecture=mobilediffusion-lite", "base.checkpoint=null"],
            "space: the base model is not a member of",
        ),
        (["search.minimise=[macs, denoising_loss]"], "search.evolution.quality: 2 scores among the objectives"),
        (["search.evolution.quality=promt_accuracy"], "did you mean 'prompt_accuracy'"),
        (["search.evolution.cost=latency_ms"], "latency_ms needs a table of blocks, deploy.latency"),
        (["search.evolution.cost=mac"], "search.evolution.cost: unknown column 'mac'; did you mean 'macs'"),
        (["budget.macs=100G"], "budget: sampler evolution does not read it"),
        (["search.plan.steps=[4, 8]"], "search.plan: sampler evolution does not read it"),
        (["search.evolution.runtime=phone"], "has no table of blocks, deploy.latency"),
    ],
)
def test_what_an_evolution_cannot_be(tmp_path, overrides, said):
    with pytest.raises(InputError) as refused:
        study = loaded(tmp_path, *overrides)
        moves.check(study, SPACE)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("made", "wanted", "said"),
    [
        ({"latent_size": 32}, "PyTorch eager", "is of latents of side 32 and 77 text tokens, the study deploys at 64"),
        ({"runtime": "phone"}, "PyTorch eager", "was measured on phone, expected 'PyTorch eager'"),
    ],
)
def test_a_table_of_another_size_or_runtime_is_refused(tmp_path, made, wanted, said):
    given_ = f"search.evolution={{target: 40, cost: latency_ms, runtime: {wanted}}}"
    study = loaded(tmp_path, f"deploy.latency={table(tmp_path, **made)}", given_, "search.minimise=[latency_ms]")
    with pytest.raises(InputError) as refused:
        moves.check(study, SPACE)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_space_without_removals_is_refused(tmp_path):
    path = tmp_path / "wide.yaml"
    path.write_text(
        "backbone: unet\nbase: mobilediffusion\naxes:\n  width: {fields: levels.2.channels, choices: [1024, 1280]}\n"
    )
    study = loaded(tmp_path, f"space={path}")
    with pytest.raises(InputError, match="no axis of 'wide' has a choice that makes the base cheaper"):
        moves.check(study, SearchSpace.load(path))


def test_a_search_without_evolution_is_written_as_before(tmp_path):
    assert "evolution" not in loaded(tmp_path, "search={trials: 2, minimise: [macs]}").model_dump()["search"]
