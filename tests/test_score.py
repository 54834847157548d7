"""`nas score`: metrics of any folder of pictures, or of what an export draws."""

import csv
import json

import numpy as np
import pytest
import torch
from exported import run_directory
from PIL import Image
from typer.testing import CliRunner

from nas.cli import app
from nas.datasets import folder as folders
from nas.datasets import scenes
from nas.deploy import drawer, export
from nas.deploy import score as scoring
from nas.errors import InputError
from nas.metrics import Reference, clip_score, fid, precision_recall, scores

WORLD = "{name: scenes, pictures: 64, held_out_pictures: 16}"


def batch(count, seed):
    return next(iter(scenes.load(scenes.Settings(seed=seed, held_out_pictures=count), "held_out")))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders `mine` and `real` of pictures of the scenes, and the captions of the first."""
    path = tmp_path_factory.mktemp("score")
    for name, seed, count in (("mine", 1, 12), ("real", 2, 30)):
        (path / name / "deeper").mkdir(parents=True)
        made = batch(count, seed)
        for number, image in enumerate(made.images):
            pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(path / name / ("" if number < count - 1 else "deeper") / f"{number:02}.png")
        (path / f"{name}.txt").write_text("\n".join(made.captions))
    return path


def asked(metrics, **others):
    return scoring.Asked(metrics, **others)


def score(what, metrics, **others):
    return {row.column: row for row in scoring.score([what], asked(metrics, **others), lambda line: None)}


def tensors(path):
    return torch.cat([b.images for b in scoring.Folder(path)])


def test_scores_are_those_of_the_metrics_themselves(place):
    mine, real, said = tensors(place / "mine"), tensors(place / "real"), batch(12, 1).captions
    assert mine.shape == (12, 3, 32, 32) and np.allclose(mine, batch(12, 1).images, atol=1 / 127)
    reference = Reference(lambda: scoring.Folder(place / "real"), said)
    built = [m.build(m.Settings(), reference) for m in (fid, precision_recall, clip_score)]
    expected = scores(built, [(mine, said)])
    found = score(
        place / "mine", "fid, precision_recall,clip_score", captions=place / "mine.txt", reference=str(place / "real")
    )
    assert {column: row.value for column, row in found.items()} == pytest.approx(expected)
    assert len(real) == found["fid_efficientnet_lite0"].conditions["references"] == 30
    assert found["clip_score"].conditions == {**built[2].conditions, "images": 12, "image_size": 32}
    assert not found["fid_efficientnet_lite0"].higher_is_better and found["clip_score"].higher_is_better


def test_metadata_names_pictures_and_captions_of_a_folder(place, tmp_path):
    made = folders.Settings(path=tmp_path, held_out=0)
    lines = [
        {"file_name": name, "text": said} for name, said in zip(("05.png", "02.png"), ("a hat", "a cup"), strict=True)
    ]
    for line in lines:
        (tmp_path / line["file_name"]).write_bytes((place / "mine" / line["file_name"]).read_bytes())
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = score(tmp_path, "{name: clip_score},vendi", images=1)["clip_score"]
    metric = clip_score.build(clip_score.Settings(), Reference(list))
    assert found.value == pytest.approx(
        scores([metric], [(tensors(place / "mine")[5:6], ["a hat"])])["clip_score"], rel=1e-5
    )
    assert found.conditions["images"] == 1 and len(list(folders.Folder(made, "train"))) == 2


def test_features_of_a_data_set_are_kept_as_studies_keep_them(place, tmp_path):
    first = score(place / "mine", "fid", reference=WORLD, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    assert kept.name.endswith("-efficientnet_lite0.safetensors")
    assert score(place / "mine", "fid", reference=WORLD, cache=tmp_path) == first


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    run = run_directory(tmp_path_factory.mktemp("runs") / "small" / "2026")
    return export.export(run, "trial:0", None, ["yaml", "safetensors"], ["fp32"], False, lambda line: None)


def test_an_export_draws_what_it_is_asked_for(exported, tmp_path, monkeypatch):
    """In batches as at once: 6 pictures of 2 captions in turn."""
    monkeypatch.setattr(scoring, "BATCH", 4)
    (tmp_path / "said.txt").write_text("red heart, noto\npizza, fluent\n")
    found = score(exported, "vendi", captions=tmp_path / "said.txt", images=6, seed=3)["vendi_efficientnet_lite0"]
    said = ["red heart, noto", "pizza, fluent"] * 3
    drawn = drawer.load(exported).draw(said, 3)
    metric = scoring._built(scoring.Entry(name="vendi"), Reference(list))
    assert found.value == pytest.approx(scores([metric], [(drawn, said)])[found.column], rel=1e-4)
    assert found.conditions["seed"] == 3 and found.conditions["steps"] == 2 and found.conditions["images"] == 6


def test_the_verb_prints_a_table_json_and_csv(place):
    words = ["score", str(place / "mine"), str(place / "real"), "--metrics", "vendi", "--csv", str(place / "out.csv")]
    told = CliRunner().invoke(app, [*words, "--json"])
    rows = [json.loads(line) for line in told.output.splitlines()]
    assert [row["pictures"] for row in rows] == words[1:3] and [row["images"] for row in rows] == [12, 30]
    with (place / "out.csv").open() as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == [row["value"] for row in rows]
    table = CliRunner().invoke(app, words).output
    assert "vendi_efficientnet_lite0" in table and f"{rows[0]['value']:.5g}" in table


BAD = {
    "no folder": ("nowhere", {}, "nowhere: no such folder; expected pictures, or what nas export wrote"),
    "no picture": ("empty", {}, "empty: no picture in it; expected files that end in .png"),
    "unknown metric": ("mine", {"metrics": "fidd"}, "unknown name 'fidd'; did you mean 'fid'?"),
    "unknown setting": (
        "mine",
        {"metrics": "{name: fid, fetures: x}"},
        "fetures: unknown key; did you mean 'features'",
    ),
    "no metric": ("mine", {"metrics": ""}, "--metrics: expected some of: caption_accuracy, "),
    "one column twice": ("mine", {"metrics": "vendi,vendi"}, "two of them give the column 'vendi_efficientnet_lite0'"),
    "weights": (
        "mine",
        {"metrics": "{name: fid, features: test_resnet}"},
        "--metrics fid: weights: test_resnet needs them: set weights to a local model.safetensors",
    ),
    "no reference": ("mine", {"metrics": "fid"}, "--reference: needed to compare with real pictures"),
    "unknown reference": (
        "mine",
        {"metrics": "fid", "reference": "emojis"},
        "--reference emojis: no data set; expected",
    ),
    "no captions": ("mine", {"metrics": "clip_score"}, "--captions: clip_score compares pictures with captions, and"),
    "few captions": (
        "real",
        {"metrics": "clip_score", "captions": "mine.txt"},
        "12 captions for the 30 pictures of",
    ),
    "no captions file": ("mine", {"metrics": "clip_score", "captions": "no.txt"}, "no.txt: No such file"),
    "too few": ("mine", {"metrics": "precision_recall", "images": 3}, "too few pictures: precision_.* got 3 and 30"),
    "too few real ones": ("real", {"metrics": "kid", "reference": "mine"}, "too few pictures: .* got 30 and 12"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(place, monkeypatch, case):
    monkeypatch.chdir(place)
    (place / "empty").mkdir(exist_ok=True)
    what, given, words = BAD[case]
    given = {"metrics": "vendi", **given}
    if "too few" in case:
        given = {"reference": "real", **given}
    if "captions" in given:
        given["captions"] = scoring.Path(given["captions"])
    with pytest.raises(InputError, match=words) as caught:
        scoring.score([scoring.Path(what)], scoring.Asked(**given), print)
    assert "\n" not in str(caught.value)
    assert not (place / "runs").exists()
