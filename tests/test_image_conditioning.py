"""Denoisers that are told of pictures by an embedding: how it is made, joined, drawn with, exported and refused."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from exported import DEPLOY
from in_process import nas
from safetensors.torch import load_file, save_file
from torchvision.transforms.functional import to_pil_image

from nas import menu
from nas.analysis import results
from nas.deploy import drawer, imagination
from nas.errors import InputError
from nas.full_training import job, recipe
from nas.networks import conditioning
from nas.networks.backbones import Proxy
from nas.networks.conditioning import Conditioning, Text, closed_vocabulary, pictures
from nas.networks.conditioning.pictures import Projection
from nas.settings import study_file
from nas.training import batches
from nas.training.encoded import Embedded, EncodedSet
from nas.training.loop import Hardware
from nas.trial import imagined, rung
from nas.trial.bench import Bench
from nas.trial.checks import check

STUDY = {
    "architecture": {**DEPLOY.to_dict(), "pooled_tokens": 2},
    "dataset": {"name": "scenes", "pictures": 64, "held_out_pictures": 32},
    "autoencoder": {"name": "kl", "shipped": "scenes"},
    "conditioning": {"encoder": "scenes", "image": "with_text", "image_width": 8},
    "prior": "linear",
    "training": {"images_seen": 16, "batch": 8},
    "sampling": {"steps": 2, "guidance": 2.0},
    "evaluation": {"images": 6},
    "metrics": ["scene_accuracy"],
    "ablation": {
        "design": "one_factor",
        "factors": {"told": {"levels": {"both": {}, "picture": {"conditioning.image": "alone"}}}},
        "maximise": ["prompt_accuracy"],
        "repeats": 1,
        "confidence": None,
    },
    "workers": 1,
}


def written(folder, **given):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in {**STUDY, **given}.items() if value is not None}))
    return path


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return Bench(study_file.load(written(folder)), folder / ".cache")


# --- embeddings ------------------------------------------------------------------------------------------------------


def test_the_projection_is_that_of_a_singular_value_decomposition():
    generator = np.random.default_rng(0)
    found = generator.normal(size=(50, 12)) * np.arange(12, 0, -1) + 5
    onto = Projection.fitted(torch.from_numpy(found).float(), 4)
    left, _, _ = np.linalg.svd(found - found.mean(0), full_matrices=False)
    own = onto(torch.from_numpy(found).float()).numpy()
    np.testing.assert_allclose(np.abs(own), np.abs(left[:, :4]) * np.sqrt(49), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(own.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(own.std(0, ddof=1), 1, rtol=1e-4)


def test_a_direction_without_variance_is_not_blown_up():
    flat = torch.zeros(20, 5)
    flat[:, 0] = torch.arange(20.0)
    onto = Projection.fitted(flat, 3)
    assert onto(flat).isfinite().all() and onto(flat)[:, 1:].abs().max() < 1e-2


def data(how):
    tokens, pooled = torch.randn(3, 4, 5).half(), torch.randn(3, 6).half()
    told = Embedded(how, torch.randn(2, 7), torch.randn(1, 7))
    return EncodedSet(torch.randn(2, 1, 2, 2), torch.tensor([1, 0]), ("b", "a", ""), tokens, pooled, embedded=told)


def test_beside_the_text_the_embedding_ends_the_pooled_vector():
    one = data("with_text")
    rows, dropped = torch.tensor([0, 1]), torch.tensor([False, True])
    text = one.text(rows, dropped)
    assert torch.equal(text.pooled[0], torch.cat([one.pooled[1].float(), one.embedded.of_picture[0]]))
    assert torch.equal(text.pooled[1:], one.null.pooled) and torch.equal(text.tokens[1:], one.null.tokens)
    assert torch.equal(text.pooled[1], torch.cat([one.pooled[2].float(), one.embedded.null[0]]))
    assert torch.equal(text.tokens[0], one.tokens[1].float())


def test_alone_the_embedding_is_all_that_tells_two_rows_apart():
    one = data("alone")
    text = one.text(torch.tensor([0, 1]))
    assert torch.equal(text.pooled, one.embedded.of_picture)
    assert torch.equal(text.tokens, one.tokens[2:].float().expand(2, -1, -1))
    assert torch.equal(one.null.pooled, one.embedded.null)


@pytest.mark.parametrize("how", ["alone", "with_text"])
@pytest.mark.parametrize("family", menu.names("backbones"))
def test_every_family_with_a_pooled_vector_is_told_as_it_is(family, how):
    one = data(how)
    presets = menu.pick("backbones", family).presets().values()
    config = replace(min(presets, key=lambda config: config.cost(64, 77).params), pooled_width=64)
    network = config.scaled(Proxy(8, 4, 5, one.null.pooled.shape[1])).build()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    text, latents = one.text(torch.tensor([0, 1])), torch.randn(1, 4, 8, 8).expand(2, -1, -1, -1)
    same = Text(text.tokens[:1].expand(2, -1, -1), text.pooled)
    drawn = network(latents, torch.tensor([500, 500]), same)
    assert drawn.shape == latents.shape and not torch.allclose(drawn[0], drawn[1])


def test_training_sees_the_pictures_themselves_and_drawing_what_the_prior_makes(bench):
    train = bench.train_data
    rows = torch.arange(8)
    batch = batches.drawn(train, rows, 0.0, torch.Generator().manual_seed(0), 0)
    found = pictures.features(part.images for part in bench.images("train"))
    own = imagined.projection(bench)(found)
    torch.testing.assert_close(batch.text.pooled[:, -8:], own[:8])
    torch.testing.assert_close(own.std(0), torch.ones(8))
    grey = imagined.projection(bench)(pictures.features([torch.zeros(1, 3, 32, 32)]))
    torch.testing.assert_close(batch.null.pooled[:, -8:], grey)
    captions, text, _ = bench.drawn
    words = bench.encoder.encode(captions)
    made = imagined.prior(bench).sample(words, torch.zeros(len(captions), 8))
    torch.testing.assert_close(text.pooled, torch.cat([words.pooled, made], 1), rtol=1e-3, atol=1e-3)
    assert bench.proxy.pooled_width == text.pooled.shape[1] == words.pooled.shape[1] + 8


def test_held_out_pictures_are_projected_as_the_training_pictures_teach(bench):
    found = pictures.features(part.images for part in bench.images("held_out"))
    torch.testing.assert_close(bench.held_out_data.embedded.of_picture, imagined.projection(bench)(found))


def test_a_prior_is_trained_once_and_a_row_depends_on_its_own_place(bench, monkeypatch, tmp_path):
    own = {"name": "diffusion", "layers": 1, "heads": 1, "images_seen": 32, "batch": 16, "steps": 2}
    other = bench.variant({"prior": own})
    rows = torch.tensor([3, 1, 4])
    first = imagined.text(other, other.train_data, rows, seed=7)
    monkeypatch.setattr(menu.pick("priors", "diffusion").Prior, "fit", None)
    torch.testing.assert_close(imagined.text(other, other.train_data, rows[:2], seed=7).pooled, first.pooled[:2])
    assert not torch.allclose(imagined.text(other, other.train_data, rows, seed=8).pooled, first.pooled)
    assert other.train_data is bench.train_data  # only the drawing is made again
    with pytest.raises(TypeError):
        imagined.prior(other.variant({"seed": 1}))  # another seed is another prior, and `fit` is gone


# --- what was recorded before ------------------------------------------------------------------------------------------


def test_a_study_without_pictures_is_written_as_it_was(tmp_path):
    study = study_file.load(written(tmp_path, conditioning={"encoder": "scenes"}, prior=None))
    assert "prior" not in study.resolved() and "prior" not in study.model_dump()
    assert study.resolved()["conditioning"] == {
        "encoder": "scenes",
        "model": "shipped",
        "pretrained": None,
        "length": 20,
    }
    told = Conditioning(encoder="scenes", image="alone")
    assert conditioning.identity(conditioning.of_text(told)) == study.resolved()["conditioning"]
    assert told.model_dump()["image_width"] == 64


# --- end to end ------------------------------------------------------------------------------------------------------


def trained(bench, folder, *images):
    """The record and the weights of a trial, trained rung after rung to so many images."""
    for number, seen in enumerate(images):
        told = rung.run_on(bench, rung.Job(0, DEPLOY.to_dict(), 5, number, seen, folder))
    return told, load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def run(bench):
    """A finished run whose only trial is that of the reference cell."""
    path = bench.cache.parent / "one"
    folder = path / "trials" / "0000"
    folder.mkdir(parents=True)
    found, _ = trained(bench, folder, 16)
    record = {
        **{"trial": 0, "key": DEPLOY.key, "state": "complete", "reason": "", "init": "scratch", "choices": {}},
        **{"architecture": DEPLOY.to_dict(), "cost": dataclasses.asdict(DEPLOY.cost(64, 77)), "seed": 5, "repeat": 0},
        **{"proxy": found["proxy"], "proxy_cost": found["proxy_cost"], "rungs": [found["rung"]]},
        **{"cell": "reference", "levels": {"told": "both"}, "settings": {}},
    }
    (path / "resolved.yaml").write_text(yaml.safe_dump({**bench.study.resolved(), "provenance": {}}))
    (path / "conditions.json").write_text(json.dumps(bench.conditions()))
    (path / "captions.json").write_text(json.dumps(bench.drawn[0]))
    (folder / "record.json").write_text(json.dumps(record))
    return path


def test_the_priors_cost_is_a_column_of_its_own(run):
    table = results.load_finished([run])
    assert list(table["proxy_prior_macs"]) == [closed_vocabulary.WIDTH * 8] and "prior_macs" not in table  # linear


def test_a_resumed_training_is_the_uninterrupted_one(bench, run, tmp_path):
    _, again = trained(bench, tmp_path, 8, 16)
    for name, value in load_file(run / "trials" / "0000" / "weights.safetensors").items():
        assert torch.equal(value, again[name]), name


@pytest.fixture(scope="module")
def export(run):
    to = run / "export"
    ended = nas("export", str(run), "--pick", "trial:0", "--format", "safetensors", "--to", str(to))
    assert ended.returncode == 0, ended.stderr
    return to


def test_an_export_draws_with_its_prior(export, tmp_path):
    captions = ["a large red circle on white", "a small blue cross on grey"]
    picture = tmp_path / "drawn.png"
    ended = nas("sample", str(export), *captions, "--out", str(picture))
    assert ended.returncode == 0 and picture.exists(), ended.stderr
    drawing = drawer.load(export)
    text, words = drawing.encode(captions), drawing.encoder.encode(captions)
    held = load_file(export / "prior" / "weights.safetensors")
    made = words.pooled @ held["prior.map.weight"].T + held["prior.map.bias"]
    torch.testing.assert_close(text.pooled, torch.cat([words.pooled, made], 1))
    empty = drawing.encoder.encode([""])
    assert torch.equal(drawing.unconditional().pooled, torch.cat([empty.pooled, held["null"]], 1))
    both = drawing.draw(captions, seed=3)
    torch.testing.assert_close(drawing.draw(captions[1:], seed=3, first=1)[0], both[1], rtol=1e-3, atol=1e-3)
    assert "prior/weights.safetensors" in (export / "README.md").read_text()


@pytest.fixture(scope="module")
def photographs(bench):
    """Two training pictures as files."""
    found = next(iter(bench.images("train"))).images[:2]
    paths = [bench.cache.parent / f"{number}.png" for number in range(2)]
    for image, path in zip(found, paths, strict=True):
        to_pil_image(image / 2 + 0.5).save(path)
    return paths


def test_variations_and_fusions_are_sums_of_the_pictures_own_embeddings(bench, export, photographs):
    drawing = drawer.load(export)
    first, second = (drawing.imagination.fused([path]) for path in photographs)
    torch.testing.assert_close(
        first[0], bench.train_data.embedded.of_picture[0], rtol=0.05, atol=0.05
    )  # 8 bits a pixel
    assert torch.equal(drawing.imagination.fused(photographs, [1.0, 0.0]), first)
    assert torch.equal(drawing.imagination.fused(photographs, [0.25, 0.75]), 0.25 * first + 0.75 * second)
    torch.testing.assert_close(drawing.imagination.fused(photographs), (first + second) / 2)
    text = drawing.encode(["a large red circle on white"], image=first)
    assert torch.equal(text.pooled[:, -8:], first)
    drawn = [drawing.draw(["a large red circle on white"], seed=0, image=one) for one in (first, second)]
    assert not torch.equal(*drawn)


def test_sample_draws_variations_and_says_what_it_cannot(export, photographs, tmp_path):
    picture, wrong = tmp_path / "drawn.png", tmp_path / "wrong.png"
    shown = [part for path in photographs for part in ("--picture", str(path))]
    caption = "a large red circle on white"
    ended = nas("sample", str(export), caption, "--out", str(picture), *shown, "--weight", "0.3", "--weight", "0.7")
    assert ended.returncode == 0 and picture.exists(), ended.stderr
    wrong.write_bytes(b"no picture")
    for given, words in (
        ([*shown, "--weight", "1"], "--weight: 1 given for 2 of --picture"),
        (["--weight", "1"], "--weight: of no picture"),
        (["--picture", str(wrong)], "not a readable picture"),
        (["--picture", str(tmp_path / "none.png")], "none.png: No such file"),
    ):
        ended = nas("sample", str(export), caption, "--out", str(tmp_path / "new.png"), *given)
        assert ended.returncode == 2 and words in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
        assert not (tmp_path / "new.png").exists()
    alone = replace(drawer.load(export), imagination=None)
    with pytest.raises(InputError, match="is told of captions alone"):
        drawer._fused(alone, export, photographs, ())


def test_graphs_of_such_a_trial_are_refused_and_nothing_is_written(run, tmp_path):
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    ended = nas("export", str(run), "--pick", "trial:0", "--format", "onnx", "--to", str(tmp_path / "to"))
    assert ended.returncode == 2 and "onnx has no graph for the prior" in ended.stderr
    assert ended.stderr.count("\n") == 1 and not (tmp_path / "to").exists()


def damaged(export, folder, change):
    """A copy whose prior's tensors are changed."""
    for path in export.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(export)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(export)).write_bytes(path.read_bytes())
    path = folder / "prior" / "weights.safetensors"
    save_file(change(load_file(path)), path)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda held: {**held, "null": torch.zeros(1, 5)},
            r"is \(1, 5\), expected \(1, 8\) by conditioning.image_width",
        ),
        (
            lambda held: {**held, "prior.map.bias": torch.zeros(5)},
            r"weights of another prior or width: map.bias is \(5,\)",
        ),
        (lambda held: {name: held[name] for name in held if name != "null"}, "is none, expected"),
    ],
)
def test_embeddings_of_another_width_are_refused(export, tmp_path, change, words):
    with pytest.raises(InputError, match=words) as caught:
        drawer.load(damaged(export, tmp_path / "copy", change))
    assert "\n" not in str(caught.value)


def test_nas_train_says_that_it_embeds_no_pictures(export):
    given = recipe.load(None, ["stages=[{image_size: 32, images: 8, batch: 8}]"], "emoji")
    with pytest.raises(InputError, match="conditioning.image: with_text: nas train reads pictures as they come"):
        job.load(str(export), given, None, Hardware())


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"conditioning": {"encoder": "scenes"}},
            "prior: .*linear makes embeddings of pictures, but conditioning.image",
        ),
        ({"prior": None}, "prior: .*none, but with conditioning.image: alone nothing else tells"),
        ({"prior": "linaer"}, "unknown name 'linaer'; did you mean 'linear'"),
        ({"prior": {"name": "linear", "ridge": -1}}, "prior.ridge"),
        (
            {"architecture": {**DEPLOY.to_dict(), "pooled_width": None}},
            "conditioning.image: .*the network takes no pooled vector",
        ),
        (
            {"conditioning": {"encoder": "scenes", "image": "with_text", "image_width": 64}},
            "64 components of 64 training",
        ),
        ({"conditioning": {"encoder": "scenes", "image": "with_text", "image_width": 2000}}, "image_width"),
        ({"space": "mobilediffusion", "training": {"init": "supernet"}}, "the shipped weights know no embeddings"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(tmp_path, given, words):
    with pytest.raises(InputError, match=words) as caught:
        check.check(study_file.load(written(tmp_path, **given)), None)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "study.yaml"]


def test_formats_of_graphs_are_refused_only_where_there_is_a_prior():
    imagination.check_formats({"conditioning": {}}, ["onnx"])
    imagination.check_formats({"conditioning": {"image": "alone"}}, [])
    with pytest.raises(InputError, match="onnx has no graph"):
        imagination.check_formats({"conditioning": {"image": "alone"}}, ["onnx"])


def test_a_prior_that_makes_no_numbers_is_told(bench, monkeypatch):
    monkeypatch.setattr(imagined, "prior", lambda bench: Broken())
    with pytest.raises(InputError, match="prior: linear: its embeddings are not finite numbers"):
        imagined.text(bench, bench.train_data, torch.arange(2), 0)


class Broken:
    def sample(self, text, noise):
        return noise * float("nan")
