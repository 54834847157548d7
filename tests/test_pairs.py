"""Objectives that learn from what the base draws: the pairs, where they are kept, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_trial import NETWORK, STUDY, Small, rung

from nas.diffusion import solvers
from nas.diffusion.schedule import Settings, noise_schedule
from nas.errors import InputError
from nas.networks.conditioning import Text
from nas.settings import plausible, study_file
from nas.space.search_space import SearchSpace
from nas.trial import base_model, pairs
from nas.trial.checks import check
from nas.weights import parts

TAUGHT = STUDY.replace("{name: ufogen, reconstruction: ema_distill}", "{name: dmd, pairs: {count: 6}}").replace(
    "warmup_images: 0,", "warmup_images: 0, init: base, learning_rate: 0.003,"
)
BASE = "base: {{architecture: {}, training: {{images_seen: 8, batch: 4}}, sampling: {{steps: 2}}}}\n"


def bench_of(folder, *options):
    path = folder / "study.yaml"
    path.write_text(TAUGHT + BASE.format(json.dumps(NETWORK.to_dict())))
    made = Small(study_file.load(path, list(options)), folder)
    made.prepare()
    base_model.train(made)
    return made


def settings_of(bench):
    return bench.study.objective.settings("objectives").pairs


def test_pairs_are_what_the_base_draws_and_are_drawn_once(tmp_path, monkeypatch):
    bench = bench_of(tmp_path)
    found = bench.lessons
    assert len(found) == 6 and found.noise.shape == found.latents.shape and found.captions == bench.train_data.captions
    plan, schedule = settings_of(bench).sampling, noise_schedule(Settings()).config
    text: Text = found.text(torch.arange(6))
    network = base_model.network(bench)
    expected = solvers.sample(network, plan, schedule, found.noise, text, bench.train_data.null)
    torch.testing.assert_close(found.latents, expected)
    assert found.noise.std() == pytest.approx(1, abs=0.1) and found.caption_of.unique().numel() > 2
    monkeypatch.setattr(pairs, "_draw", None)  # cannot be called
    assert torch.equal(bench.lessons.latents, found.latents)


def test_a_base_and_its_pairs_are_of_the_autoencoder_that_encoded_for_them(tmp_path, monkeypatch):
    """A file that was removed and prepared again has its old name, and is another."""
    bench = bench_of(tmp_path)
    settings = settings_of(bench)

    encoded, base, drawn = (
        bench.encoded_path("train"),
        base_model.weights_path(bench),
        pairs.cache_path(bench, settings),
    )
    monkeypatch.setattr(parts, "fingerprints", lambda _: {"autoencoder": "another"})
    assert bench.encoded_path("train") != encoded and base_model.weights_path(bench) != base
    monkeypatch.setattr(base_model, "weights_path", lambda _: base)  # as if that were the same
    assert pairs.cache_path(bench, settings) != drawn


def test_another_base_plan_or_count_has_pairs_of_its_own(tmp_path):
    bench = bench_of(tmp_path)
    settings = settings_of(bench)
    paths = {pairs.cache_path(bench, settings), pairs.cache_path(bench, settings.model_copy(update={"count": 7}))}
    paths.add(pairs.cache_path(bench_of(tmp_path, "base.training.images_seen=12"), settings))
    paths.add(
        pairs.cache_path(bench_of(tmp_path, "objective.pairs.sampling.steps=3"), settings)
    )  # the plan is not given here
    assert len(paths) == 3
    other = settings_of(bench_of(tmp_path, "objective.pairs={count: 6, sampling: {steps: 3}}"))
    assert pairs.cache_path(bench, other) not in paths
    assert pairs.cache_path(bench_of(tmp_path), settings) in paths


def test_there_are_more_pairs_than_pictures(tmp_path):
    found = bench_of(tmp_path, "objective.pairs.count=30").lessons
    assert len(found) == 30 and torch.unique(found.noise.flatten(1), dim=0).shape[0] == 30


def test_a_trial_learns_from_pairs(tmp_path):
    bench = bench_of(tmp_path)
    made = rung(bench, tmp_path / "trial", 8)
    assert {"regression_loss", "vsd_loss", "fake_score_denoising_loss"} <= made["rung"]["training"].keys()
    before = load_file(base_model.weights_path(bench))
    after = load_file(tmp_path / "trial" / "weights.safetensors")
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)


CELLS = """
question: Which?
space: mobilediffusion
architecture: mobilediffusion
dataset: scenes
autoencoder: {name: kl, shipped: scenes}
conditioning: {encoder: scenes}
proxy: {width_divisor: 16}
base: {checkpoint: nas/assets/base_scenes.safetensors}
objective: {name: dmd}
training: {init: base, images_seen: 64, batch: 32}
sampling: {solver: one_step}
metrics: [scene_accuracy]
ablation:
  design: one_factor
  factors: {rate: {field: training.learning_rate, levels: [0.0001, 0.0002]}}
  maximise: [prompt_accuracy]
"""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["base=null", "training.init=supernet"], ["objective", "dmd learns from what a base draws", "no base section"]),
        (["base=null", "training.init=scratch"], ["objective", "dmd starts from a trained network"]),
        (["objective.prediction=epsilon"], ["objective.prediction", "'epsilon'", "'v'"]),
        (["sampling={solver: renoise, steps: 4, guidance: 3}"],
         ["sampling.guidance: ", "3, but dmd", "without guidance", "expected 1"]),
        (["sampling={steps: 4, guidance: 3}"], ["sampling.solver: ", "ddim in 4 steps, but dmd", "expected one_step or renoise"]),
        (["objective=ufogen", "sampling={solver: dpm++, guidance: 1}"], ["sampling.solver: ", "dpm++ in 25 steps, but ufogen"]),
        (["objective={name: swiftbrush, fake_lora: {targets: attention}}"],
         ["objective.fake_lora.targets: ", "'attention' matches none"]),
        (["objective={name: swiftbrush, fake_lora: {targets: attention}}", "base=null", "training.init=supernet"],
         ["objective.fake_lora.targets: ", "'attention' matches none"]),
        (["ablation.minimise=[denoising_loss]"], ["ablation.minimise: denoising_loss, but dmd trains no denoiser"]),
        (["ablation.maximise=[denoising_loss]"], ["ablation.maximise: denoising_loss, but dmd trains no denoiser"]),
        (["objective=reflow", "sampling={steps: 4, guidance: 1}", "ablation.minimise=[denoising_loss]"],
         ["ablation.minimise: denoising_loss, but reflow trains no denoiser"]),
        (["training.init=scratch"], ["training.init: ", "dmd goes on from its teacher", "expected base"]),
        (["base.objective=mean_flow"], ["base.objective", "mean_flow", "cannot teach"]),
        (["objective=instaflow"], ["objective.reflow_updates: ", "1,000", "2 updates", "none is left"]),
        (["objective.pairs.sampling={solver: renoise, steps: 2}"], ["objective.pairs.sampling", "ddim", "renoise"]),
        (["objective={name: mean_flow, prediction: epsilon}"], ["objective.prediction", "'epsilon'", "'v'"]),
        (["objective.pairs.count=0"], ["objective.pairs.count", "0"]),
        (["objective.pairs.sampling.solver=euler"], ["objective.pairs.sampling.solver", "euler"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_is_trained(tmp_path, options, words):
    path = tmp_path / "study.yaml"
    path.write_text(CELLS)
    with pytest.raises(InputError) as caught:
        check.check(study_file.load(path, options), None)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "options",
    [
        ["objective=dmd", "sampling={steps: 1, guidance: 1}"],  # all solvers are one where there is one step
        ["objective=reflow", "sampling={steps: 4, guidance: 1}"],
        ["objective=denoising", "sampling={solver: one_step}", "ablation.minimise=[denoising_loss]"],
        ["objective={name: swiftbrush, fake_lora: {targets: '.*to_q'}}"],
        ["objective={name: swiftbrush, fake_lora: null}"],
    ],
)
def test_other_ways_to_draw_and_to_judge_are_accepted_without_a_warning(tmp_path, options):
    path = tmp_path / "study.yaml"
    path.write_text(CELLS)
    study = study_file.load(path, options)
    check.check(study, None)
    assert not any(line.startswith("sampling") for line in plausible.unlikely(study))


def test_fresh_noise_between_the_steps_of_a_denoiser_is_hardly_meant(tmp_path):
    """A baseline in an ablation: it is accepted, once told and not for the generators beside it."""
    levels = "{few: {objective: denoising}, more: {objective: denoising, training.batch: 16}, one: {objective: lcm}}"
    path = tmp_path / "study.yaml"
    path.write_text(CELLS)
    options = ["sampling={solver: renoise, steps: 4}", f"ablation.factors={{rate: {{levels: {levels}}}}}"]
    study = study_file.load(path, options)
    check.check(study, None)
    (line,) = (line for line in plausible.unlikely(study) if line.startswith("sampling"))
    assert (
        line.startswith("sampling.solver: renoise ")
        and "denoising" in line
        and "ddim, dpm++, unipc, heun, one_step" in line
    )


def test_the_study_of_those_lines_is_accepted(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(CELLS)
    check.check(study_file.load(path), None)
    assert Path("nas/assets/base_scenes.safetensors").exists() and json.dumps(
        study_file.load(path).resolved(), default=str
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["training.init=base"], "training.init: base: the base model is another architecture"),
        (["training.init=scratch", "base.training.init=base"], "base.training.init: the base cannot start from itself"),
        (["training.init=scratch", "base.checkpoint=nowhere"], "base.checkpoint"),
    ],
)
def test_a_search_whose_base_cannot_be_trained_or_started_from_is_refused(given, words):
    study = study_file.load(
        Path("studies/quickstart"), ["search.sampler=tpe", "base={architecture: mobilediffusion}", *given]
    )
    with pytest.raises(InputError, match=words):
        check.check(study, SearchSpace.load(study.space))
