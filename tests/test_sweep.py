"""Sweeps over a made-up ablation: what is drawn, that it is drawn right, and once."""

import json
import sys

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_trial import NETWORK
from test_trial import Small as Unscored
from torch import nn

from nas import cli
from nas.diffusion import schedule
from nas.diffusion.plan import Plan
from nas.diffusion.solvers import fresh_noise, sample
from nas.errors import InputError
from nas.runs.directory import RunDirectory
from nas.settings import study_file
from nas.study import sweep as sweeping
from nas.study.sweep_plans import Ways
from nas.trial.bench import fresh
from nas.weights import checkpoints

STUDY = """
name: small
architecture: NETWORK
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


class Small(Unscored):
    """A bench whose data are random numbers, with two metrics of pictures that are not cut off."""

    def prepare(self):
        super().prepare()
        self.autoencoder, self.metrics = Pictures(), [Mean("fid", 2), Mean("clip_score", 1)]

    def __init__(self, study, cache):
        super().__init__(study, cache)
        self.prepare()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """An ablation of two cells and two repeats, and a base, all with random weights."""
    monkeypatch.setattr(sweeping, "Bench", Small)
    path = tmp_path / "study.yaml"
    text = STUDY.replace("NETWORK", json.dumps(NETWORK.to_dict()))
    path.write_text(text.replace("CHECKPOINT", str(tmp_path / "base.safetensors")))
    study = study_file.load(path)
    bench = Small(study, tmp_path)
    folder = tmp_path / "runs" / "small" / "2026-01-01"
    found = RunDirectory(folder)
    proxy = bench.scaled(NETWORK.to_dict())
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
                "architecture": NETWORK.to_dict(),
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


def swept(run, *scales, picks=(), repeats=1, steps=(), **values):
    told = []
    return sweeping.sweep(run, picks, Ways(scales or None, steps, values), repeats, told.append), told


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
    network = bench.scaled(NETWORK.to_dict()).build().eval()
    checkpoints.load_weights(network, run.path / "trials/0000/weights.safetensors", "")
    made, (_, text, noise) = schedule.noise_schedule(schedule.Settings()), bench.drawn

    @torch.no_grad()
    def clean(noisy, time):
        times = torch.full((4,), time)
        return made.alphas_cumprod[time].sqrt() * noisy - (1 - made.alphas_cumprod[time]).sqrt() * network(
            noisy, times, text
        )

    again = made.add_noise(clean(noise, 999), next(fresh_noise(noise, 1)), torch.full((4,), 499))
    latents = clean(again, 499)
    row = table[table.steps == 2].iloc[0]
    assert row.solver == "renoise" and not row.as_trained
    assert row.fid == pytest.approx(float(latents[:, :3].square().mean()), rel=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_one_step_scores_are_those_of_the_guided_clean_latents(run, scale):
    """x0 = a x - s v with v = null + w (cond - null), by hand."""
    table, _ = swept(run, scale, picks=["trial:0"])
    bench = Small(study_file.load(run.path.parents[2] / "study.yaml"), run.path)
    network = bench.scaled(NETWORK.to_dict()).build().eval()
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
    table, told = swept(run, 1.0)
    assert (
        table.model.tolist() == pd.read_csv(run.path / "guidance.csv").model.tolist() == ["base", "base", "reference"]
    )
    assert told[-2:] == [
        f"drawing=many, {way}, scale 1: left out: the drawn pictures are not finite numbers"
        for way in ("ddim 2", "one_step 1")
    ]
    (run.path / "guidance.csv").unlink()
    with pytest.raises(
        InputError, match="drawing=many, one_step 1, scale 1: the drawn pictures are not finite numbers"
    ):
        swept(run, 1.0, picks=["trial:1"])


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
    keys = sweeping.IDENTITY
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


def test_values_of_fields_are_crossed(run):
    """Each network by its own plan with every combination; scores of one of them are those of its plan."""
    values = {"solver": ["ddim", "heun"], "spacing": ["trailing", "leading"], "guidance_interval": [(0, 999), (0, 600)]}
    table, told = swept(run, picks=["base"], **values)
    assert len(table) == len(told) == 8 and (table.steps == 2).all() and (table.guidance == 2.0).all()
    assert set(zip(table.solver, table.spacing.fillna("-"), table.guidance_interval.fillna("-"), strict=True)) == {
        (solver, spacing, interval)
        for solver in ("ddim", "heun")
        for spacing in ("-", "leading")
        for interval in ("-", "[0, 600]")
    }
    assert table.as_trained.tolist() == [True] + 7 * [False]
    bench = Small(study_file.load(run.path.parents[2] / "study.yaml"), run.path)
    network = bench.scaled(NETWORK.to_dict()).build().eval()
    checkpoints.load_weights(network, run.path.parents[2] / "base.safetensors", "")
    plan = Plan(solver="heun", steps=2, guidance=2.0, spacing="leading", guidance_interval=(0, 600))
    _, text, noise = bench.drawn
    config = schedule.noise_schedule(schedule.Settings()).config
    latents = sample(network, plan, config, noise, text, bench.train_data.null)
    row = table[(table.solver == "heun") & (table.spacing == "leading") & table.guidance_interval.notna()]
    assert row.fid.item() == pytest.approx(float(latents[:, :3].square().mean()), rel=1e-4)
    assert swept(run, picks=["base"], **values)[1] == []
    again = pd.read_csv(run.path / "guidance.csv")
    assert len(again) == 8 and (run.path / "guidance.png").exists()


def test_tables_of_before_are_read_and_get_columns_where_a_point_needs_them(run):
    swept(run, 1.0, 2.0)
    old = (run.path / "guidance.csv").read_text()
    assert "spacing" not in old and "guidance_interval" not in old
    table, told = swept(run, 2.0, picks=["base"], spacing=["trailing", "linspace"])
    assert len(told) == 1 and told[0].startswith("base, ddim 2, scale 2, spacing linspace: ")
    assert table.spacing.notna().sum() == 1 and "guidance_interval" not in table
    seen = sweeping.curves(table, ["clip_score", "fid"])
    assert len(seen) == 11 and seen.spacing.value_counts().to_dict() == {"trailing": 10, "linspace": 1}
    assert len(swept(run, 1.0, 2.0)[0]) == 11


def test_what_a_network_cannot_be_drawn_by_is_said_and_left_out(run):
    table, told = swept(run, 2.0, steps=(), spacing=["leading"])
    assert sorted(set(table.model)) == ["base", "drawing=many"]
    assert told[0].startswith("reference: left out: spacing: solver one_step has times of its own")


def test_repeats_are_averaged_in_the_picture_only(run):
    table, _ = swept(run, 1.0, 2.0, repeats=2)
    seen = sweeping.curves(table, ["clip_score", "fid"])
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
    found, picks = sweeping.opened(folder, [])
    assert found.path == run.path and picks == ["trial:3"]
    with pytest.raises(InputError, match="^pick .* is one exported trial"):
        sweeping.opened(folder, ["knee"])


def test_what_nas_train_wrote_is_no_trial(tmp_path):
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump({"from": {"trained": "knee"}, "stages": 2}))
    with pytest.raises(InputError, match="holds no trial of a study.*nas train wrote it"):
        sweeping.opened(tmp_path, [])


def test_bad_runs_are_one_line(run, monkeypatch, capsys):
    def told(*arguments):
        monkeypatch.setattr(sys, "argv", ["nas", "sweep", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "--scales" in told(run.path, "--scales", "x")
    assert "--steps x: expected whole numbers" in told(run.path, "--steps", "x")
    assert "--steps 0" in told(run.path, "--steps", "0")
    assert told(run.path, "--pick", "trial:9").startswith("nas: --pick: trial:9: no such trial")
    assert "not a run directory" in told(run.path / "trials")
    assert "--set solver=unip: solver: expected 'ddim'" in told(run.path, "--set", "solver=unip")
    assert "--set solvr=ddim: a plan of sampling has no 'solvr'; did you mean 'solver'?" in told(
        run.path, "-s", "solvr=ddim"
    )
    assert "--set steps: expected FIELD=VALUE,VALUE" in told(run.path, "--set", "steps")
    assert "--steps 2: --set says steps too" in told(run.path, "--set", "steps=4", "--steps", "2")
    assert "--set: steps: solver one_step has 1 step, got 4" in told(run.path, "-s", "solver=one_step", "-s", "steps=4")
    assert not (run.path / "guidance.csv").exists()
    (run.path / "trials/0000/weights.safetensors").unlink()
    assert "has no weights" in told(run.path, "--pick", "trial:0")
    (run.path / "guidance.csv").write_text("a\n1\n")
    assert "guidance.csv" in told(run.path, "--pick", "trial:1")
    (run.path / "conditions.json").write_text(json.dumps({"denoising_loss": {}}))
    assert "clip_score" in told(run.path)
    assert not (run.path / "guidance.png").exists()


def test_the_axes_are_a_distance_and_a_score_of_captions_as_far_as_they_are_there(run):
    assert sweeping.axes(run) == ["clip_score", "fid"]
    drawn = {"guidance": 1.0}
    run.write_json(
        "conditions.json", {"prompt_accuracy": drawn, "mind_efficientnet_lite0": drawn, "denoising_loss": {}}
    )
    assert sweeping.axes(run) == ["prompt_accuracy", "mind_efficientnet_lite0"]
    run.write_json("conditions.json", {"prompt_accuracy": drawn})
    assert sweeping.axes(run) == ["prompt_accuracy"]
    run.write_json("conditions.json", {"colour_accuracy": drawn})
    with pytest.raises(InputError, match=r"needs a distance \(fid, kid, mind\) or .*; it measured colour_accuracy$"):
        sweeping.axes(run)
