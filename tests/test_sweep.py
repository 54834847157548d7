"""Guidance sweeps over a made-up ablation: what is drawn, that it is drawn right, and once."""

import json
import sys

import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import nn

from nas import cli
from nas.diffusion import schedule
from nas.diffusion.plan import Plan
from nas.diffusion.solvers import _fresh_noise
from nas.errors import InputError
from nas.networks.backbones.unet import presets
from nas.report import stills
from nas.runs.directory import RunDirectory
from nas.settings import study_file
from nas.study import guidance_sweep
from nas.training.encoded import EncodedSet
from nas.trial.bench import Bench, fresh
from nas.weights import checkpoints

STUDY = """
name: small
architecture: mobilediffusion
dataset: emoji
proxy: {width_divisor: 32}
base: {checkpoint: CHECKPOINT, sampling: {steps: 2, guidance: 2.0}}
sampling: {solver: one_step}
evaluation: {images: 4}
ablation:
  design: one_factor
  factors:
    drawing:
      levels:
        one: {}
        many: {sampling: {steps: 2, guidance: 2.0}}
  minimise: [fid]
  repeats: 2
"""
CONDITIONS = {"fid": {"guidance": 1.0}, "clip_score": {"guidance": 1.0}, "denoising_loss": {}}


class Mean:
    """A metric that is the mean of all pixels, or of their squares."""

    def __init__(self, name, power):
        self.name, self.power = name, power

    def reset(self):
        self.seen, self.captions = [], []

    def update(self, images, captions):
        self.seen.append(images)
        self.captions += captions

    def compute(self):
        assert self.captions == ["0", "1", "2", "3"]
        return {self.name: torch.cat(self.seen).pow(self.power).mean()}


class Pictures:
    def decode(self, latents):
        return latents[:, :3]


class Small(Bench):
    """A bench whose data are random numbers."""

    def prepare(self):
        generator = torch.Generator().manual_seed(0)
        tokens, pooled = torch.randn(7, 3, 6, generator=generator), torch.randn(7, 4, generator=generator)
        latents = torch.randn(12, 4, 8, 8, generator=generator)
        captions = (*map(str, range(6)), "")
        self.train_data = EncodedSet(latents, torch.arange(12) % 6, captions, tokens.half(), pooled.half())
        self.held_out_data, self.autoencoder = self.train_data, Pictures()
        self.metrics = [Mean("fid", 2), Mean("clip_score", 1)]
        self.drawn = list(captions[:4]), self.train_data.text(torch.arange(4)), latents[:4]

    def __init__(self, study, cache):
        super().__init__(study, cache)
        self.prepare()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """An ablation of two cells and two repeats, and a base, all with random weights."""
    monkeypatch.setattr(guidance_sweep, "Bench", Small)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("CHECKPOINT", str(tmp_path / "base.safetensors")))
    study = study_file.load(path)
    bench = Small(study, tmp_path)
    folder = tmp_path / "runs" / "small" / "2026-01-01"
    found = RunDirectory(folder)
    proxy = bench.scaled(presets()["mobilediffusion"].to_dict())
    _weights(proxy, 99, tmp_path / "base.safetensors")
    for number in range(4):
        _weights(proxy, number, found.trial(number) / "weights.safetensors")
        cell = ["reference", "drawing=many"][number % 2]
        changes = {"sampling": {"steps": 2, "guidance": 2.0}} if number % 2 else {}
        found.write_record(
            {"trial": number, "state": "complete", "key": "k", "cell": cell, "repeat": number // 2, "settings": changes}
            | {
                "reason": "",
                "init": "scratch",
                "seed": 1,
                "choices": {},
                "architecture": presets()["mobilediffusion"].to_dict(),
                "cost": {},
                "proxy": proxy.to_dict(),
                "rungs": [{"rung": 0, "images_seen": 64, "metrics": {}}],
            }
        )
    found.write_yaml("resolved.yaml", study.resolved())
    found.write_json("conditions.json", CONDITIONS)
    return found


def _weights(proxy, seed, path):
    network = fresh(proxy, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nn.init.normal_(network.conv_out.weight, std=0.3)
    save_file(network.state_dict(), path, {"images_seen": "128"})


def swept(run, *scales, picks=(), repeats=1, steps=()):
    told = []
    return guidance_sweep.sweep(run, picks, scales, repeats, told.append, steps), told


def test_every_network_is_drawn_in_its_ways(run):
    table, told = swept(run, 1.0, 2.0)
    drawn = table.groupby(["model", "solver", "steps"]).guidance.apply(list).to_dict()
    assert drawn == {
        ("base", "ddim", 2): [1.0, 2.0],
        ("base", "one_step", 1): [1.0, 2.0],
        ("reference", "one_step", 1): [1.0, 2.0],
        ("drawing=many", "ddim", 2): [1.0, 2.0],
        ("drawing=many", "one_step", 1): [1.0, 2.0],
    }
    own = table[table.as_trained]
    assert own[["model", "solver", "guidance"]].values.tolist() == [
        ["base", "ddim", 2.0],
        ["reference", "one_step", 1.0],
        ["drawing=many", "ddim", 2.0],
    ]
    assert len(told) == len(table) == 10
    assert (run.path / "guidance.png").read_bytes().startswith(b"\x89PNG")


def test_every_network_is_drawn_in_further_numbers_of_steps(run):
    """On top of what a sweep without them has, which is not drawn again."""
    without, _ = swept(run, 1.0, 2.0)
    table, told = swept(run, 1.0, 2.0, steps=[1, 2, 4])
    drawn = table.groupby(["model", "solver", "steps"]).guidance.apply(list).to_dict()
    assert drawn == {
        ("base", "ddim", 2): [1.0, 2.0],
        ("base", "ddim", 4): [1.0, 2.0],
        ("base", "one_step", 1): [1.0, 2.0],
        ("reference", "one_step", 1): [1.0, 2.0],
        ("reference", "renoise", 2): [1.0, 2.0],
        ("reference", "renoise", 4): [1.0, 2.0],
        ("drawing=many", "ddim", 2): [1.0, 2.0],
        ("drawing=many", "ddim", 4): [1.0, 2.0],
        ("drawing=many", "one_step", 1): [1.0, 2.0],
    }
    assert len(told) == 2 * 4 and "reference, renoise 2, scale 1: " in "\n".join(told)
    assert table.as_trained.sum() == without.as_trained.sum()
    assert swept(run, 1.0, 2.0, steps=[4])[1] == []
    assert (run.path / "guidance.png").read_bytes().startswith(b"\x89PNG")


def test_two_steps_are_scored_as_renoised_by_hand(run):
    """x0' at the last time, noised afresh to the half of it, and x0' again: the scores of `sample` by that plan."""
    table, _ = swept(run, 1.0, picks=["trial:0"], steps=[2])
    bench = Small(study_file.load(run.path.parents[2] / "study.yaml"), run.path)
    network = bench.scaled(presets()["mobilediffusion"].to_dict()).build().eval()
    checkpoints.load_weights(network, run.path / "trials/0000/weights.safetensors", "")
    made, (_, text, noise) = schedule.noise_schedule(schedule.Settings()), bench.drawn

    @torch.no_grad()
    def clean(noisy, time):
        times = torch.full((4,), time)
        return made.alphas_cumprod[time].sqrt() * noisy - (1 - made.alphas_cumprod[time]).sqrt() * network(
            noisy, times, text
        )

    again = made.add_noise(clean(noise, 999), next(_fresh_noise(noise, 1)), torch.full((4,), 499))
    latents = clean(again, 499)
    row = table[table.steps == 2].iloc[0]
    assert row.solver == "renoise" and not row.as_trained
    assert row.fid == pytest.approx(float(latents[:, :3].square().mean()), rel=1e-4)


def test_the_picture_of_many_ways_names_networks_and_steps_apart(tmp_path, monkeypatch):
    """Three networks in five ways: eight lines in the legend, not fifteen, and a mark for each number of steps."""
    ways = [("dpm++", 10), ("one_step", 1), ("dpm++", 2), ("dpm++", 4), ("renoise", 4)]
    rows = [
        {"model": name, "solver": solver, "steps": steps, "guidance": scale, "as_trained": scale == 3.0}
        | {"clip_score": 0.1 * scale + place, "fid": 10.0 / steps + scale}
        for place, name in enumerate(["base", "a=1", "a=2"])
        for solver, steps in ways
        for scale in (1.0, 2.0, 3.0)
    ]
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    table = pd.DataFrame(rows)
    stills.save_guidance(table, "clip_score", "fid", tmp_path / "p.png")
    (legend,), (axes,) = figures[0].legends, figures[0].axes
    said = [text.get_text() for text in legend.get_texts()]
    assert said == ["base", "a=1", "a=2", "dpm++ 10", "one step", "dpm++ 2", "dpm++ 4", "renoise 4"]
    marks = {line.get_marker() for line in axes.lines}
    assert len(marks) == len({1, 2, 4, 10}) and len(axes.texts) == 3 * 5 * 2
    two = table[table.steps.isin([1, 10])]
    stills.save_guidance(two, "clip_score", "fid", tmp_path / "p.png")
    (legend,), (axes,) = figures[1].legends, figures[1].axes
    assert [text.get_text() for text in legend.get_texts()][:2] == ["base, dpm++ 10", "base, one step"]
    assert {line.get_marker() for line in axes.lines} == {"o"} and len(axes.texts) == 3 * 2 * 3


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_one_step_scores_are_those_of_the_guided_clean_latents(run, scale):
    """x0 = a x - s v with v = null + w (cond - null), by hand."""
    table, _ = swept(run, scale, picks=["trial:0"])
    bench = Small(study_file.load(run.path.parents[2] / "study.yaml"), run.path)
    network = bench.scaled(presets()["mobilediffusion"].to_dict()).build().eval()
    checkpoints.load_weights(network, run.path / "trials/0000/weights.safetensors", "")
    _, text, noise = bench.drawn
    time = torch.full((4,), 999)
    alpha = schedule.noise_schedule(schedule.Settings()).alphas_cumprod[999]
    null = type(text)(*(part.expand(4, *part.shape[1:]) for part in bench.train_data.null))
    with torch.no_grad():
        without, given = network(noise, time, null), network(noise, time, text)
    clean = alpha.sqrt() * noise - (1 - alpha).sqrt() * (without + scale * (given - without))
    assert table.fid.item() == pytest.approx(float(clean[:, :3].square().mean()), rel=1e-4)
    assert table.clip_score.item() == pytest.approx(float(clean[:, :3].mean()), rel=1e-3, abs=1e-5)


def test_a_network_that_draws_no_numbers_is_named_and_the_rest_is_kept(run):
    path = run.path / "trials" / "0001" / "weights.safetensors"
    weights = load_file(path)
    save_file({name: value * float("nan") for name, value in weights.items()}, path, {"images_seen": "128"})
    with pytest.raises(InputError, match="drawing=many, ddim 2, scale 1: the drawn pictures are not finite numbers"):
        swept(run, 1.0)
    assert pd.read_csv(run.path / "guidance.csv").model.tolist() == ["base", "base", "reference"]


@pytest.mark.parametrize("text", ["", "x", "1,,2", "-1", "nan", "inf", "1e30", "1001"])
def test_scales_that_are_none(text):
    with pytest.raises(InputError, match="expected numbers from 0 to 1000"):
        guidance_sweep.scales_of(text)
    assert guidance_sweep.scales_of("3,1000,0,3") == [0, 3, 1000]


def test_nothing_is_drawn_twice(run):
    first, _ = swept(run, 1.0, 2.0)
    again, told = swept(run, 1.0, 2.0)
    assert told == []
    pd.testing.assert_frame_equal(first, again, check_dtype=False)
    _, told = swept(run, 1.0, 2.0, 3.0)
    assert len(told) == 5 and all("scale 3" in line for line in told)
    whole = pd.read_csv(run.path / "guidance.csv")
    whole.drop(index=4).to_csv(run.path / "guidance.csv", index=False)
    mended, told = swept(run, 1.0, 2.0)
    assert len(told) == 1
    keys = guidance_sweep.IDENTITY
    pd.testing.assert_frame_equal(
        mended.sort_values(keys).reset_index(drop=True),
        whole.sort_values(keys).reset_index(drop=True),
        check_dtype=False,
    )


def test_weights_that_were_trained_on_are_drawn_again(run):
    swept(run, 1.0, picks=["trial:0"])
    record = run.records()[0]
    record["rungs"][-1]["images_seen"] = 128
    run.write_record(record)
    table, told = swept(run, 1.0, picks=["trial:0"])
    assert len(told) == 1 and table.images_seen.tolist() == [64, 128]


def test_repeats_are_averaged_in_the_picture_only(run):
    table, _ = swept(run, 1.0, 2.0, repeats=2)
    seen = guidance_sweep.curves(table, "clip_score", "fid")
    assert len(table) == 4 + 2 * (2 + 4) and (seen[seen.model != "base"].n == 2).all()
    one = table[(table.model == "reference") & (table.guidance == 2.0)]
    (mean,) = seen[(seen.model == "reference") & (seen.guidance == 2.0)].fid
    assert mean == pytest.approx(one.fid.mean()) and one.fid.nunique() == 2


def test_a_run_without_a_trained_cell_is_refused(run):
    settings_ = yaml.safe_load((run.path / "resolved.yaml").read_text())
    run.write_yaml("resolved.yaml", settings_ | {"base": None})
    for record in run.records().values():
        run.write_record(record | {"state": "failed"})
    with pytest.raises(InputError, match="no cell was trained to the end"):
        swept(run, 1.0)


def test_an_exported_folder_is_its_trial(run, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "deploy.yaml").write_text(yaml.safe_dump({"from": {"run": str(run.path), "trial": 3}}))
    found, picks = guidance_sweep.opened(folder, [])
    assert found.path == run.path and picks == ["trial:3"]
    with pytest.raises(InputError, match="one exported trial"):
        guidance_sweep.opened(folder, ["knee"])


def test_what_nas_train_wrote_is_no_trial(tmp_path):
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump({"from": {"trained": "knee"}, "stages": 2}))
    with pytest.raises(InputError, match="holds no trial of a study.*nas train wrote it"):
        guidance_sweep.opened(tmp_path, [])


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "nan", "inf", "1;2"])
def test_scales_that_are_not_numbers(text):
    with pytest.raises(InputError, match="--scales"):
        guidance_sweep.scales_of(text)


def test_scales_are_ordered_and_different():
    assert guidance_sweep.scales_of("3, 1,3,7.5") == [1.0, 3.0, 7.5]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "-1", "1.5", "nan", "1001", "1;2", "99999999999999999999"])
def test_steps_that_are_none(text):
    with pytest.raises(InputError, match="--steps .*: expected whole numbers from 1 to 1000"):
        guidance_sweep.steps_of(text)
    assert guidance_sweep.steps_of("4, 1,2,4,1000") == [1, 2, 4, 1000]


def test_what_a_plan_becomes_in_other_steps():
    one, two, four = Plan(solver="one_step"), Plan(solver="renoise", steps=2), Plan(solver="renoise", steps=4)
    assert guidance_sweep.plans(one, [1, 2, 4]) == [one, two, four]
    assert guidance_sweep.plans(four, [1, 2, 4]) == [four, one, two]
    many = Plan(solver="dpm++", steps=10, guidance=2.0)
    few = Plan(solver="dpm++", steps=4, guidance=2.0)
    assert guidance_sweep.plans(many, [1, 4, 10]) == [many, one, few]
    assert guidance_sweep.plans(many, []) == guidance_sweep.plans(many) == [many, one]


def test_what_a_plan_becomes():
    assert guidance_sweep.plans(Plan(solver="renoise", steps=4)) == [Plan(solver="renoise", steps=4)]
    assert guidance_sweep.plans(Plan(steps=4)) == [Plan(steps=4), Plan(solver="one_step")]


def test_bad_runs_are_one_line(run, monkeypatch, capsys):
    def told(*arguments):
        monkeypatch.setattr(sys, "argv", ["nas", "sweep-guidance", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "--scales" in told(run.path, "--scales", "x")
    assert "--steps x: expected whole numbers" in told(run.path, "--steps", "x")
    assert "--steps 0" in told(run.path, "--steps", "0")
    assert "trial:9" in told(run.path, "--pick", "trial:9") or "9" in told(run.path, "--pick", "trial:9")
    assert "not a run directory" in told(run.path / "trials")
    (run.path / "trials/0000/weights.safetensors").unlink()
    assert "has no weights" in told(run.path, "--pick", "trial:0")
    (run.path / "guidance.csv").write_text("a\n1\n")
    assert "guidance.csv" in told(run.path, "--pick", "trial:1")
    (run.path / "conditions.json").write_text(json.dumps({"fid": CONDITIONS["fid"]}))
    assert "clip_score" in told(run.path)
    assert not (run.path / "guidance.png").exists()


def test_the_axes_are_a_distance_and_a_score_of_captions(run):
    assert guidance_sweep.axes(run) == ("clip_score", "fid")
    drawn = {"guidance": 1.0}
    run.write_json(
        "conditions.json", {"prompt_accuracy": drawn, "mind_efficientnet_lite0": drawn, "denoising_loss": {}}
    )
    assert guidance_sweep.axes(run) == ("prompt_accuracy", "mind_efficientnet_lite0")
    run.write_json("conditions.json", {"prompt_accuracy": drawn})
    with pytest.raises(InputError, match=r"needs a distance \(fid, kid, mind\) .*; it measured prompt_accuracy$"):
        guidance_sweep.axes(run)
