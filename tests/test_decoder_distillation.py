"""Smaller image decoders: nothing is lost where nothing is pruned, costs, resuming, the verb and what carries its decoder."""

import json
import shutil
from pathlib import Path

import exported
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from nas import interruption
from nas.cli import app
from nas.cost.traced import traced
from nas.decoder_distillation import job, latents, measures
from nas.deploy import drawer
from nas.errors import InputError
from nas.networks.autoencoders import kl
from nas.networks.decoders.kl import presets, stored
from nas.report import page
from nas.report.chapters import decoders as drawing
from nas.runs import pictures
from nas.schedules import subjects
from nas.training import fitting
from nas.training.decoders import DecoderTraining, Recipe, decoded, psnr, to_teacher


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    """Of latents, so that few are several files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "BATCH", 8)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return exported.run_directory(tmp_path_factory.mktemp("runs") / "small" / "2026").path


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    """A job whose subject is the run's trial."""
    subject, _ = subjects.find(run, "trial:0")
    return job.Job(subject, job.Asked((0.5,), 64, Recipe(8, 4)), tmp_path_factory.mktemp("job"))


LATENTS = torch.randn(6, 8, 4, 4, generator=torch.Generator().manual_seed(0))


def loss_to(student, teacher):
    return lambda rows: to_teacher(student, teacher, LATENTS[rows])


# --- the loss --------------------------------------------------------------------------------------------------------


def test_where_nothing_is_pruned_the_loss_is_zero_and_training_changes_nothing(made):
    """Of the latent of a constant picture, and of noise."""
    grey = made.autoencoder.encode(torch.full((1, 3, 32, 32), 0.25))
    whole = made.pruned(1.0)
    for given in (grey, LATENTS):
        assert float(to_teacher(whole, made.teacher, given).detach()) == 0
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    trained = DecoderTraining(whole, len(LATENTS), Recipe(8, 4))
    assert [trained.update(loss_to(whole, made.teacher)) for _ in range(2)] == [0, 0]
    assert all(torch.equal(value, before[name]) for name, value in trained.averaged().state_dict().items())
    assert psnr(decoded(whole, LATENTS), decoded(made.teacher, LATENTS)) == float("inf")


def test_the_loss_is_the_squared_difference_from_what_diffusers_decodes(made):
    small, own = made.pruned(0.5), made.autoencoder
    with torch.no_grad():
        wanted = own.model.decode(LATENTS * own.std + own.mean).sample
        expected = np.square((small.unbounded(LATENTS) - wanted).numpy().astype(float)).mean()
    assert float(to_teacher(small, made.teacher, LATENTS).detach()) == pytest.approx(expected, rel=1e-4)
    assert float(wanted.abs().max()) > 1  # pixels are bounded after the loss


def test_the_teacher_is_not_trained_and_the_student_is(made):
    teacher = {name: value.clone() for name, value in made.teacher.state_dict().items()}
    student = made.pruned(0.25)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trained = DecoderTraining(student, len(LATENTS), Recipe(40, 4, 3e-3))
    losses = [trained.update(loss_to(student, made.teacher)) for _ in range(10)]
    assert losses[-1] < losses[0]
    after = trained.averaged().state_dict()
    assert not [name for name in before if torch.equal(after[name], before[name])]
    assert all(torch.equal(value, teacher[name]) for name, value in made.teacher.state_dict().items())


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.25])
def test_closed_form_costs_equal_tracing(made, ratio):
    decoder = made.pruned(ratio)
    assert measures.cost(decoder, 4) == traced(decoder, LATENTS[:1])


def test_half_of_sds_decoder_is_as_small_as_snapfusion_says():
    """13 M parameters, 3.8 times fewer (arXiv 2306.00980, section 3.2)."""
    whole = presets()["sd15-decoder"]
    levels = tuple(type(level)(level.channels // 2, level.blocks) for level in whole.levels)
    half = type(whole)(levels, whole.latent_channels, whole.mid_blocks, whole.attention, whole.groups // 2)
    full, small = whole.cost(64).params, half.cost(64).params
    assert full == pytest.approx(49.5e6, rel=0.01) and full / small == pytest.approx(3.9, abs=0.15)


# --- resuming --------------------------------------------------------------------------------------------------------


def test_a_training_that_is_told_to_end_goes_on_to_the_same_bits(made, tmp_path, monkeypatch):
    def trained(stops):
        path = tmp_path / f"{len(stops)}.checkpoint"
        for stop in (*stops, None):
            one = DecoderTraining(made.pruned(0.25), len(LATENTS), Recipe(12, 2, 1e-3, seed=3))
            monkeypatch.setattr(interruption, "asked", lambda one=one, stop=stop: one.step == stop)
            try:
                fitting.train(one, loss_to(one.decoder, made.teacher), path, "ratio 0.25", lambda line: None)
            except interruption.Interrupted:
                assert stop is not None and path.exists()
        return one.averaged().state_dict()

    straight, broken = trained([]), trained([2, 5])
    assert all(torch.equal(value, broken[name]) for name, value in straight.items())


# --- the verb --------------------------------------------------------------------------------------------------------

ASKED = ["--pick", "trial:0", "--latents", "12", "--images-seen", "16", "--batch", "4", "--ratio", "0.5"]


def nas(*words):
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoders")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "REPEATS", 3)
        patch.setattr(measures, "RUNTIMES", ("eager",))  # a graph is made and run in test_graphs_of_it_draw_without_nas
        done = nas("decoder", run, *ASKED, "--ratio", "0.25", "--out", folder)
    assert done.exit_code == 0, (done.output, done.exception)
    return folder, done.output


def test_it_leaves_decoders_a_table_and_pictures(found, made):
    folder, said = found
    table = pd.read_csv(folder / job.TABLE)
    assert table["ratio"].tolist() == [1, 0.5, 0.25] and "exact" in said and "lessons latents  12/12" in said
    whole, half, quarter = (row for _, row in table.iterrows())
    assert whole["psnr_db"] == np.inf and whole["fid_efficientnet_lite0_to_teacher"] == pytest.approx(0, abs=1e-2)
    assert half["fid_efficientnet_lite0_to_teacher"] > 1 and half["images_seen"] == 16 and whole["images_seen"] == 0
    assert whole["params"] > half["params"] > quarter["params"]
    assert {"eager_median_ms", "eager_cpu_ms", "clip_score"} <= set(table.columns)
    bench = made.subject.bench
    drawn = bench.captioned(bench.draw(made.subject.network, made.subject.schedule))
    scores = bench.rate(drawn)  # decoded by the autoencoder itself
    assert whole["clip_score"] == pytest.approx(scores["clip_score"], rel=1e-3)
    with Image.open(folder / "pictures.png") as grid:
        assert grid.size == (8 * 66 + 2, 3 * 66 + 2)
    assert (folder / "decoders.png").exists() and not list(folder.glob("*.checkpoint"))


def test_the_page_of_a_run_has_a_row_for_each_decoder_and_the_pictures(found, run, tmp_path):
    again = shutil.copytree(run, tmp_path / "run")
    assert "Smaller decoders" not in page.write(again).read_text()
    shutil.copytree(found[0], again / "decoders" / "trial-0", ignore=shutil.ignore_patterns("latents", "*.safetensors"))
    written = page.write(again).read_text()
    table = pd.read_csv(found[0] / drawing.TABLE).set_index("ratio")
    assert written.count('id="decoders"') == 1 and "<h3>trial 0</h3>" in written
    assert '<td class="n">exact</td>' in written and '<td class="n">0.25</td>' in written
    assert all(f'<td class="n">{table.loc[ratio, "psnr_db"]:.2f}</td>' in written for ratio in (0.5, 0.25))
    for name in ("decoders.png", "pictures.png"):
        assert pictures.whole(found[0] / name) in written


def test_a_kill_changes_no_bit_and_a_lost_batch_of_latents_is_drawn_again(found, run, tmp_path, monkeypatch):
    """Killed after the first batch of latents, and in a training; then with one batch gone."""
    monkeypatch.setattr(measures, "REPEATS", 1)
    monkeypatch.setattr(measures, "RUNTIMES", ("eager",))
    draws, updates = job.Latents._draw, DecoderTraining.update

    def killed_while_drawing(self, task, path):
        draws(self, task, path)
        if path.name.startswith("lessons"):
            raise interruption.Interrupted

    monkeypatch.setattr(job.Latents, "_draw", killed_while_drawing)
    done = nas("decoder", run, *ASKED, "--out", tmp_path)
    assert done.exit_code == 1 and "the same command goes on" in done.output
    monkeypatch.setattr(job.Latents, "_draw", draws)

    def killed_while_training(self, lessons):
        if self.step == 2:
            raise KeyboardInterrupt
        return updates(self, lessons)

    monkeypatch.setattr(DecoderTraining, "update", killed_while_training)
    monkeypatch.setattr(fitting, "SAVE_SECONDS", 0.0)
    assert nas("decoder", run, *ASKED, "--out", tmp_path).exit_code != 0
    assert (tmp_path / "ratio-0.5.checkpoint").exists()
    monkeypatch.setattr(DecoderTraining, "update", updates)
    lost = tmp_path / "latents" / "lessons-00001.safetensors"
    before = load_file(lost)
    lost.unlink()
    assert nas("decoder", run, *ASKED, "--out", tmp_path).exit_code == 0
    assert torch.equal(load_file(lost)["latents"], before["latents"])
    again, straight = (folder / "ratio-0.5.safetensors" for folder in (tmp_path, found[0]))
    tensors, others = load_file(again), load_file(straight)
    assert tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert stored.about(again, "decoder") == stored.about(straight, "decoder")


def test_the_whole_decoder_alone_is_measured_and_nothing_is_drawn_to_learn_from(run, tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "REPEATS", 1)
    monkeypatch.setattr(measures, "RUNTIMES", ("eager",))
    done = nas("decoder", run, "--pick", "trial:0", "--ratio", "1", "--out", tmp_path)
    assert done.exit_code == 0 and "take one with" not in done.output
    assert pd.read_csv(tmp_path / job.TABLE)["ratio"].tolist() == [1]
    assert {path.name[:8] for path in (tmp_path / "latents").iterdir()} == {"held-out"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ratio", "1.5"], "--ratio 1.5: expected more than 0 and at most 1"),
        (["--ratio", "0"], "--ratio 0: expected more than 0 and at most 1"),
        (["--ratio", "nan"], "--ratio nan: expected more than 0"),
        (
            ["--ratio", "0.3"],
            "--ratio 0.3: keeps 2.4 of the 8 groups of the decoder's norms; expected a multiple of 1/8",
        ),
        (["--ratio", "0.01"], "such as 0.125"),
        (["--seed", "3"], "holds decoders with seed 0, asked for 3"),
        (["--images-seen", "32"], "holds decoders with images_seen 16, asked for 32"),
        (["--pick", "trial:7"], "trial:7"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(run, found, words, message):
    before = sorted(path.stat().st_mtime_ns for path in Path(found[0]).rglob("*"))
    done = nas("decoder", run, *ASKED, *words, "--out", found[0])
    assert message in str(done.exception) and "\n" not in str(done.exception)
    assert sorted(path.stat().st_mtime_ns for path in Path(found[0]).rglob("*")) == before


def test_an_exports_latents_are_drawn_by_its_own_plan(model):
    path = model / "pipeline.yaml"
    before = path.read_text()
    assert job.find(model, None)[0].bench.study.sampling.steps == 2
    path.write_text(before.replace("steps: 2", "steps: 3"))
    assert job.find(model, None)[0].bench.study.sampling.steps == 3
    path.write_text(before)


def test_an_autoencoder_that_cannot_be_pruned_is_refused(made, tmp_path, monkeypatch):
    other = job.Job(made.subject, made.asked, tmp_path / "out")
    monkeypatch.setitem(vars(made.subject.bench), "autoencoder", object())
    with pytest.raises(InputError, match="autoencoder: kl has no decoder that can be pruned"):
        job.run(other, print)
    assert not other.folder.exists()


# --- what carries it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(run, found, tmp_path_factory):
    """An export that carries the decoder, moved to another place, without the file it came from."""
    folder = tmp_path_factory.mktemp("carried")
    copy = folder / "half.safetensors"
    shutil.copy(found[0] / "ratio-0.5.safetensors", copy)
    done = nas("export", run, "--pick", "trial:0", "--decoder", copy, "--to", folder / "model")
    assert done.exit_code == 0, done.exception
    copy.unlink()
    return (folder / "model").rename(folder / "elsewhere")


def test_an_export_carries_the_decoder_its_scores_and_a_line_in_its_card(model, found):
    deploy, pipeline, study = (
        yaml.safe_load((model / f"{name}.yaml").read_text()) for name in ("deploy", "pipeline", "study")
    )
    assert pipeline["autoencoder"]["decoder"] == study["autoencoder"]["decoder"] == "decoder.safetensors"
    half = pd.read_csv(found[0] / job.TABLE).set_index("ratio").loc[0.5]
    assert deploy["scores"]["clip_score"] == pytest.approx(half["clip_score"], rel=1e-4)
    card = (model / "README.md").read_text()
    assert "`decoder.safetensors`: 0.5 of the channels" in card and f"{half['psnr_db']:.2f} dB" in card


def test_what_is_drawn_is_decoded_by_it(model, found, made, tmp_path):
    loaded = drawer.load(model)
    held = stored.read(found[0] / "ratio-0.5.safetensors", "decoder")
    noise = torch.randn(2, *loaded.latents)
    own = made.autoencoder
    with torch.no_grad():
        expected = held.network(held.convolution(noise * own.std + own.mean)).clamp(-1, 1)
    assert torch.equal(loaded.decode(noise), expected)
    assert not torch.allclose(loaded.decode(noise), own.decode(noise), atol=0.01)
    drawn = nas("sample", model, "pizza", "--out", tmp_path / "drawn.png")
    assert drawn.exit_code == 0 and (tmp_path / "drawn.png").exists()
    timed = nas("latency", model, "--repeats", "1", "--csv", tmp_path / "latency.csv")
    assert timed.exit_code == 0, timed.exception
    assert pd.read_csv(tmp_path / "latency.csv")["decoder"].tolist() == ["kl ratio 0.5"]


def test_verify_trains_and_scores_with_the_decoder_of_the_export(model, tmp_path, monkeypatch):
    from nas.deploy import verify
    from nas.trial import rung

    seen = []

    def asked(study, given, *rest):
        seen.append(study)
        raise KeyboardInterrupt

    monkeypatch.setattr(rung, "run_alone", asked)
    with pytest.raises(KeyboardInterrupt):
        verify.verify(model, tmp_path)
    assert seen[0].autoencoder.settings("autoencoders").decoder == model / "decoder.safetensors"


@pytest.mark.slow
def test_decoders_are_timed_in_turns_on_what_runs_here(made, monkeypatch):
    monkeypatch.setattr(measures, "REPEATS", 3)
    spent = measures.times({1.0: made.teacher, 0.25: made.pruned(0.25)}, (8, 8, 8))
    assert measures.runtimes() == ["eager", "onnxruntime"] and spent.keys() == {1.0, 0.25}
    for runtime in measures.runtimes():
        assert spent[1.0][f"{runtime}_cpu_ms"] > spent[0.25][f"{runtime}_cpu_ms"] > 0
        assert all(each[f"{runtime}_low_ms"] <= each[f"{runtime}_median_ms"] for each in spent.values())


@pytest.mark.slow
def test_graphs_of_it_draw_without_nas(run, found, tmp_path):
    words = [
        "--decoder",
        found[0] / "ratio-0.5.safetensors",
        "--format",
        "safetensors,onnx",
        "--to",
        tmp_path / "model",
    ]
    done = nas("export", run, "--pick", "trial:0", *words)
    assert done.exit_code == 0, done.exception
    (pixels,) = exported.drawn_alone(tmp_path / "model", ["pizza"], [{"seed": 1}])
    expected = drawer.load(tmp_path / "model").draw(["pizza"], 1)
    assert np.abs(pixels - expected.permute(0, 2, 3, 1).numpy()).max() <= 1 / 255


def test_an_export_made_anew_keeps_its_own_decoder_and_without_it_is_what_it_was(run, model, tmp_path):
    own = shutil.copytree(model, tmp_path / "model") / "decoder.safetensors"
    again = ["export", run, "--pick", "trial:0", "--to", own.parent]
    for given, named in ((["--decoder", own], own.name), ([], None)):
        done = nas(*again, *given)
        assert done.exit_code == 0, done.exception
        assert yaml.safe_load((own.parent / "pipeline.yaml").read_text())["autoencoder"].get("decoder") == named
        assert own.exists() is bool(named) and (not named or own.read_bytes() == (model / named).read_bytes())


def test_a_decoder_of_other_latents_and_what_is_none_are_refused(run, found, tmp_path):
    path, target = found[0] / "ratio-0.5.safetensors", tmp_path / "model"
    with pytest.raises(InputError, match="ratio-0.5.safetensors: reads the latents of autoencoder [0-9a-f]{12}, and"):
        kl.load(kl.Settings(shipped="scenes", decoder=path))
    for wrong in (kl.SHIPPED["emoji"], tmp_path / "none.safetensors"):
        done = nas("export", run, "--pick", "trial:0", "--decoder", wrong, "--to", target)
        assert isinstance(done.exception, InputError) and str(wrong) in str(done.exception), done.exception
    held = stored.read(path, "decoder")
    lacking = tmp_path / "lacking.safetensors"
    with safe_open(path, "pt") as file:
        save_file(
            {name: value for name, value in load_file(path).items() if "conv_in" not in name}, lacking, file.metadata()
        )
    with pytest.raises(InputError, match=r"decoder: .*lacking.safetensors: cannot be read as a decoder: "):
        stored.read(lacking, "decoder")
    stored.write(tmp_path / "other.safetensors", held._replace(autoencoder="0123456789ab"))
    done = nas("export", run, "--pick", "trial:0", "--decoder", tmp_path / "other.safetensors", "--to", target)
    assert "autoencoder 0123456789ab" in str(done.exception) and not target.exists()


def test_a_study_may_decode_by_it_and_shares_what_was_encoded(made, found):
    study = made.subject.bench.study
    before = study.resolved()["autoencoder"]
    assert "decoder" not in before  # which is written only where it is set: old identities stay
    path = found[0] / "ratio-0.5.safetensors"
    other = made.subject.bench.variant({"autoencoder": {**before, "decoder": str(path)}})
    assert json.loads(json.dumps(other.study.resolved()["autoencoder"]))["decoder"] == str(path)
    assert torch.equal(other.train_data.latents, made.subject.bench.train_data.latents)
    assert len(list(made.subject.bench.cache.glob("*.safetensors"))) == len(list(other.cache.glob("*.safetensors")))
    assert sum(p.numel() for p in other.autoencoder.decoder().parameters()) < sum(
        p.numel() for p in made.autoencoder.decoder().parameters()
    )
