"""From a space to a trusted study: train a small supernet, start a study from it, measure the trust, race the front."""

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from at_once import AtOnce, InProcess
from in_process import nas
from safetensors import safe_open
from safetensors.torch import load_file
from test_run import SMALL

from nas import failures
from nas.analysis.statistics import agreement
from nas.errors import InputError
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch
from nas.settings import study_file
from nas.space.search_space import SearchSpace
from nas.trial import supernet_training
from nas.trust import anchors
from nas.trust.anchor_table import AnchorTable
from nas.weights import supernet

SPACE = {
    "backbone": "unet",
    "base": {
        "levels": [
            {"channels": 64, "down": [1], "up": [1], "cross_attention": True},
            {"channels": 256, "down": [1], "up": [1], "self_attention": True, "cross_attention": True},
        ]
    },
    "axes": {
        "width": {"fields": "levels.1.channels", "range": {"low": 128, "high": 640, "step": 128}},
        "ffn": {"fields": "levels.*.ffn_ratio", "choices": [2, 3]},
    },
}
STUDY = Path("studies/emoji/study.yaml")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Anchors are trained in this process."""
    monkeypatch.setattr(anchors, "Workers", InProcess)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("supernet")
    (folder / "small.yaml").write_text(yaml.safe_dump(SPACE))
    return folder


@pytest.fixture(scope="module")
def weights(folder):
    """Trained in two goes, as after an interrupt: the second continues the first."""
    to, small = folder / "small.safetensors", [option for option in SMALL if not option.startswith("search")]
    for images in (64, 128):
        recipe = supernet_training.Recipe(images, sandwich_from=0.5)
        supernet_training.run(str(folder / "small.yaml"), STUDY, small, recipe, to)
    return to


def overrides(folder, weights):
    return [*SMALL, "budget={params: 900M}", f"space={folder / 'small.yaml'}", f"training.init={weights}"]


def test_a_trained_supernet_says_what_it_is_and_what_it_reached(folder, weights):
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    quality = json.loads(metadata["quality"])
    assert metadata["space"] == "small" and metadata["made_for"] == "emoji" and quality["images_seen"] == 128
    assert {"train", "held_out"} == set(quality["largest_member"])
    assert quality["largest_member"]["train"]["clip_score"] != quality["largest_member"]["held_out"]["clip_score"]
    assert weights.with_suffix(".png").stat().st_size > 0


def test_weights_that_lack_a_choice_are_refused_by_the_axis_that_asks_for_it(folder, weights):
    wider = folder / "wider" / "small.yaml"
    wider.parent.mkdir()
    axes = {**SPACE["axes"], "ffn": {"fields": "levels.*.ffn_ratio", "choices": [2, 3, 4]}}
    wider.write_text(yaml.safe_dump({**SPACE, "axes": axes}))
    proxy = supernet.Proxy(**{name: value for name, value in _proxy(weights).items()})
    supernet.require_covers(weights, SearchSpace.load(folder / "small.yaml"), proxy)
    with pytest.raises(InputError, match="does not cover axis 'ffn' of space 'small' at 4"):
        supernet.require_covers(weights, SearchSpace.load(wider), proxy)
    result = nas(
        "run", str(STUDY), "--root", str(folder / "runs"), *_set([*SMALL, f"space={wider}", f"training.init={weights}"])
    )
    assert result.returncode == 2 and "does not cover axis 'ffn'" in result.stderr
    assert not list((folder / "runs" / "emoji").glob("*"))


def _proxy(weights):
    with safe_open(weights, "pt") as file:
        return json.loads(file.metadata()["proxy"])


def _set(options):
    return [part for option in options for part in ("--set", option)]


def test_rate_and_members_change_where_the_recipe_says(folder, monkeypatch):
    seen = []

    def train(module, data, seed, images):
        seen.append((module.images_seen, module.settings.learning_rate, module.objective.members))
        module.step = module.settings.updates(images)

    monkeypatch.setattr(supernet_training.loop, "train", train)
    monkeypatch.setattr(supernet_training, "SAVE_EVERY", 300)
    monkeypatch.setattr(supernet_training, "measured", lambda *_: {})
    study = study_file.load(STUDY, [*SMALL, f"space={folder / 'small.yaml'}", "training.init=scratch"])
    recipe = supernet_training.Recipe(1024, learning_rate=0.5, sandwich_from=0.25)
    space, out = SearchSpace.load(folder / "small.yaml"), folder / "planned.safetensors"
    supernet_training.train(study, space, recipe, out, Path("runs/.cache"), lambda line: None)
    # in updates of 64: a quarter is at 256, then whatever 300 images later ends in, 70 % at 717, 90 % at 922
    assert seen == [(0, 0.5, 1), (256, 0.5, 4), (576, 0.5, 4), (768, 0.15, 4), (960, 0.05, 4)]
    other = study_file.load(STUDY, [*SMALL, f"space={folder / 'small.yaml'}", "dataset={name: emoji, limit: 95}"])
    for changed, with_study, words in (
        (recipe, other, "with dataset .*limit.*96.*, not .*95.*; give another --out"),
        (supernet_training.Recipe(1024), study, "with learning_rate 0.5, not 0.001"),
    ):
        with pytest.raises(InputError, match=words):
            supernet_training.train(with_study, space, changed, out, Path("runs/.cache"), print)


def test_how_far_it_is_is_said_once_a_minute(monkeypatch):
    now, module, said = [100.0], SimpleNamespace(images_seen=1000), []
    monkeypatch.setattr(supernet_training.time, "time", lambda: now[0])
    told = supernet_training.Told(module, 3000, said.append)
    for images in (1300, 1600, 1900):
        now[0] += 30
        module.images_seen = images
        told(0)
    assert said == ["1,600/3,000 images  10 images/s  2 min 20 s left"]
    told.say("  loss 0.5000")
    assert said[1:] == ["1,900/3,000 images  10 images/s  1 min 50 s left  loss 0.5000"]


def test_told_to_end_it_saves_and_goes_on_from_there(folder, weights, monkeypatch):
    asked, said, out = iter([False, True]), [], folder / "stopped.safetensors"
    monkeypatch.setattr(supernet_training, "measured", lambda *_: {})
    study = study_file.load(STUDY, [*SMALL, f"space={folder / 'small.yaml'}", "training.init=scratch"])
    given = study, SearchSpace.load(folder / "small.yaml"), supernet_training.Recipe(192), out, Path("runs/.cache")
    with monkeypatch.context() as patch:
        patch.setattr(supernet_training.interruption, "asked", lambda: next(asked))
        with pytest.raises(supernet_training.interruption.Interrupted):
            supernet_training.train(*given, said.append)
    assert said[-1].startswith("told to end: saved at 128 images")
    supernet_training.train(*given, said.append)
    whole = folder / "whole.safetensors"
    supernet_training.train(*given[:3], whole, given[4], said.append)
    one, other = (load_file(path) for path in (out, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_recipe_that_cannot_be_trained_is_refused():
    for wrong in (
        {"images": 0},
        {"learning_rate": 0.0},
        {"sandwich_from": 1.5},
        {"largest_until": -1},
        {"members": 1},
        {"ends_every": 0},
    ):
        with pytest.raises(InputError, match="supernet: expected images and ends_every >= 1"):
            supernet_training.Recipe(**{"images": 1, **wrong})


def test_the_largest_member_is_trained_first_if_asked(folder):
    recipe = supernet_training.Recipe(1000, largest_until=0.4, sandwich_from=0.6, members=3)
    assert [recipe.members_at(seen) for seen in (0, 399, 400, 599, 600)] == ["largest", "largest", 1, 1, 3]
    small = SearchSpace.load(folder / "small.yaml")
    proxy = supernet.Proxy(width_divisor=16, latent_channels=4, text_width=8, pooled_width=8)
    pool = [small.architecture(choices) for choices in (small.largest(), small.smallest())]
    objective = supernet_training.Sandwich(
        supernet.Supernet.of(small, proxy), [config.scaled(proxy) for config in pool], "largest"
    )
    sizes = {sum(p.numel() for p in member.parameters()) for _ in range(20) for member in objective._drawn(None, 0)}
    assert sizes == {sum(p.numel() for p in pool[0].scaled(proxy).build().parameters())}


def test_between_updates_of_the_ends_the_largest_only_teaches(folder, monkeypatch):
    space, rng = SearchSpace.load(folder / "small.yaml"), random.Random(0)
    proxy = supernet.Proxy(width_divisor=16, latent_channels=4, text_width=8, pooled_width=8)
    pool = [
        space.architecture(choices).scaled(proxy) for choices in (space.largest(), space.smallest(), space.sample(rng))
    ]
    objective = supernet_training.Sandwich(supernet.Supernet.of(space, proxy), pool, members=3, ends_every=2)
    called = []

    def noted(member, noisy, *_):
        called.append((sum(p.numel() for p in member.parameters()), torch.is_grad_enabled()))
        return noisy * objective.generator.weights[next(iter(objective.generator.weights))].sum()

    monkeypatch.setattr(objective.generator, "call", noted)
    text = Text(torch.zeros(2, 3, 8), torch.zeros(2, 8))
    for update in range(2):
        batch = LatentBatch(torch.ones(2, 4, 8, 8), text, text, torch.Generator().manual_seed(update), update)
        objective.generator_loss(batch).backward()
    sizes = [sum(p.numel() for p in config.build().parameters()) for config in pool]
    ends, between = called[:3], called[3:]
    assert ends[:2] == [(sizes[0], True), (sizes[1], True)] and ends[2][1]
    assert between[0] == (sizes[0], False) and [trained for _, trained in between[1:]] == [True, True]


def test_it_goes_on_from_weights_of_the_same_space_alone(folder, weights, monkeypatch):
    monkeypatch.setattr(supernet_training, "measured", lambda *_: {})
    study = study_file.load(STUDY, [*SMALL, f"space={folder / 'small.yaml'}", "training.init=scratch"])
    space, out = SearchSpace.load(folder / "small.yaml"), folder / "further.safetensors"
    recipe, cache = supernet_training.Recipe(64, learning_rate=1e-6), Path("runs/.cache")
    supernet_training.train(study, space, recipe, out, cache, print, start=weights)
    before, after = (load_file(path) for path in (weights, out))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=2e-3, rtol=0)
    with safe_open(out, "pt") as file:
        assert "--start small.safetensors" in file.metadata()["made_by"]
    with pytest.raises(InputError, match="holds weights for space 'small', not 'mobilediffusion'"):
        supernet_training.train(study, SearchSpace.load("mobilediffusion"), recipe, out, cache, print, start=weights)
    with pytest.raises(InputError, match="nothing.safetensors: cannot be read"):
        supernet_training.train(study, space, recipe, out, cache, print, start=folder / "nothing.safetensors")


def test_trust_is_measured_stored_and_found_and_an_interrupted_measurement_goes_on(
    folder, weights, capsys, monkeypatch
):
    for module in (agreement, anchors):  # intervals of three say nothing, and are not looked at here
        monkeypatch.setattr(module, "LEAST_ANCHORS", 3)
    monkeypatch.setattr(agreement, "RESAMPLES", 50)
    monkeypatch.setattr(anchors, "CANDIDATES", 200)
    small = ["metrics=[clip_score]", "search.minimise=[macs]", "evaluation.images=8"]
    options, out = [*overrides(folder, weights), *small], folder / "trust"
    plan = anchors.Plan(anchors=3, seeds=1, long=2)
    anchors.run(STUDY, options, plan, out, folder / "store", workers=2)
    rows = pd.read_csv(out / "anchors.csv")
    assert rows.groupby("kind").size().to_dict() == dict.fromkeys(("long", "scratch", "slice", "warm", "zero_cost"), 3)
    assert set(rows[rows["kind"] == "long"]["images_seen"]) == {128}
    assert rows[rows["kind"] == "zero_cost"][list(agreement.ZERO_COST)].notna().all(axis=None)
    (out / "anchors.csv").write_text(
        rows[~((rows["kind"] == "slice") & (rows["key"] == rows["key"][0]))].to_csv(index=False)
    )
    found = anchors.run(STUDY, options, plan, out, folder / "store", workers=2)
    again = pd.read_csv(out / "anchors.csv")
    both = [frame.sort_values(["kind", "key"]).reset_index(drop=True)["clip_score"] for frame in (rows, again)]
    pd.testing.assert_series_equal(*both)  # a slice measured again is the same to the last digit
    assert "slice: 1/1 done" in capsys.readouterr().out
    for changed, words in (
        ("training.images_seen=80", "was measured with training.images_seen 64, not 80; give another --out"),
        ("sampling.guidance=7.5", r"was measured with sampling.guidance 3.0, not 7.5; give another --out"),
        ("metrics=[clip_score, caption_accuracy]", "was measured without caption_accuracy; give another --out"),
    ):
        with pytest.raises(InputError, match=words):
            anchors.run(STUDY, [*options, changed], plan, out, folder / "store", 2, train=False)
    stored = agreement.find(study_file.load(STUDY, options).resolved(), folder / "store")
    assert stored is not None and list(stored.agreements) == found and stored.long_images == 128
    assert (out / "trust.png").stat().st_size > 0 and (out / "trust.csv").stat().st_size > 0


def test_an_anchor_that_fails_is_said_and_left_out_and_a_lost_worker_is_replaced(
    folder, weights, monkeypatch, tmp_path
):
    class Engine(AtOnce):
        """Job 2 diverges; the worker of job 5 dies on its first try."""

        slots, tried = 1, Counter()

        def compute(self, tag, function, *arguments):
            number = tag[0]
            self.tried[number] += 1
            if number == 2:
                raise failures.Failed("the loss is nan after 64 images")
            if number == 5 and self.tried[number] == 1:
                raise failures.Lost("killed by signal 9")
            return {"warm": {"images_seen": 64, "clip_score": float(number)}}

    monkeypatch.setattr(anchors, "Workers", Engine)
    study = study_file.load(STUDY, overrides(folder, weights))
    chosen = anchors.choose(study, SearchSpace.load(study.space), 8)
    table, said = AnchorTable(tmp_path), []
    table.begin({}, chosen)
    jobs = [(config, 0) for config in chosen]
    anchors._measure_kind("warm", study, anchors.Plan(8, 2, 0), jobs, table, tmp_path, 1, said.append)
    rows = table.rows()
    assert sorted(rows["clip_score"]) == [0, 1, 3, 4, 5, 6, 7]
    assert f"warm: {chosen[2].key}, seed 0: left out: the loss is nan after 64 images" in said
    assert said[-1].startswith("warm: 8/8 done") and Engine.tried[5] == 2


def test_without_long_trainings_only_the_agreement_of_seeds_is_told(folder, weights, tmp_path):
    scores = {"fid_efficientnet_lite0": 1.0, "clip_score": 2.0, "denoising_loss": 3.0}
    same = {"images_seen": 64, "params": 9, "macs": 9}
    rows = [
        {"kind": "warm", "seed": seed, "key": f"k{n}", **same, **{k: v * n for k, v in scores.items()}}
        for n in range(8)
        for seed in range(2)
    ]
    options = overrides(folder, weights)
    table = AnchorTable(tmp_path)
    table.begin(agreement.proxy_settings(study_file.load(STUDY, options).resolved()), [])
    table.add(rows)
    plan = anchors.Plan(anchors=8, seeds=2, long=0)
    found = anchors.run(STUDY, options, plan, tmp_path, tmp_path / "store", workers=1, train=False)
    assert {each.signal for each in found} == {"warm: seed 0 with seed 1"} and all(each.tau == 1 for each in found)
    assert {each.target for each in found} == set(scores) and not (tmp_path / "store").exists()
    assert len(pd.read_csv(tmp_path / "trust.csv")) == len(found)
    with pytest.raises(InputError, match="too few architectures were trained long"):
        anchors.run(STUDY, options, anchors.Plan(8, 2, 10), tmp_path, tmp_path / "store", workers=1, train=False)


def test_the_front_is_raced_with_new_seeds_after_the_search(folder, weights):
    root = folder / "raced"
    racing = ["racing.trials=2", "stopping.rungs=[1.0]", "tracking={mode: 'off'}"]
    racing += ["metrics=[clip_score]", "search.minimise=[macs]"]
    result = nas("run", str(STUDY), "--root", str(root), *_set([*overrides(folder, weights), *racing]))
    assert result.returncode == 0, result.stderr
    (run,) = (root / "emoji").iterdir()
    records = [json.loads(path.read_text()) for path in sorted(run.glob("trials/*/record.json"))]
    raced = [record for record in records if record.get("race")]
    assert len(raced) == 2 and all(record["state"] == "complete" and len(record["rungs"]) == 1 for record in raced)
    for record in raced:
        first = next(other for other in records if other["key"] == record["key"])
        assert record["seed"] != first["seed"] and record["repeat"] >= 1 and record["rungs"][0]["images_seen"] == 64
    assert sum(record["state"] in ("complete", "stopped") for record in records) == 4  # the search itself stayed at 2
    assert "on the front for sure" in result.stdout
