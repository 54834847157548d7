"""Parts that were made for other pictures are named, with what to use."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from nas import assets
from nas.deploy.contents import model_card
from nas.report import page
from nas.settings import study_file
from nas.weights import worlds

SHIPPED = [
    *assets.FOLDER.glob("*.safetensors"),
    *(path.parent for path in assets.FOLDER.glob("*/open_clip_config.json")),
]


def told(*overrides):
    return worlds.told(study_file.load(Path("studies/emoji"), overrides).resolved())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_whatever_ships_says_which_pictures_it_was_made_for(path):
    assert worlds.made_for(path) == ("scenes" if "scenes" in path.name else "emoji")


def test_a_study_of_the_pictures_its_parts_were_made_for_says_nothing():
    assert told() == ""


def test_every_part_made_for_other_pictures_is_named_with_what_to_use():
    found = told("dataset={name: webdataset, path: mine.tar}")
    assert found == (
        "made for the pictures of emoji, not for those of webdataset: autoencoder (use autoencoder.path: one that nas prepare "
        "trains, or a pretrained one in diffusers' format), judge (use judge: one that nas prepare trains, or a model of "
        "open_clip), text encoder (use conditioning: {encoder: minilm}, or a model of open_clip), supernet (use training.init: "
        "scratch, or one from nas supernet train)"
    )


def test_only_what_is_used_is_named(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "own.safetensors", {"made_for": "webdataset"})
    save_file({"a": torch.zeros(1)}, tmp_path / "silent.safetensors")
    others = [
        "conditioning={encoder: minilm}",
        "metrics=[fid]",
        f"autoencoder={{name: kl, path: {tmp_path}/silent.safetensors}}",
    ]
    data = "dataset={name: webdataset, path: mine.tar}"
    assert told(data, *others, "training.init=scratch") == ""
    assert told(data, *others, f"training.init={tmp_path}/own.safetensors") == ""
    assert told(*others, f"training.init={tmp_path}/own.safetensors") == (
        "made for the pictures of webdataset, not for those of emoji: supernet (use training.init: scratch, or one from nas "
        "supernet train)"
    )
    assert "autoencoder" not in told("dataset=scenes", "autoencoder={name: kl, shipped: scenes}")
    assert "supernet" in told(data, *others, "training.init=scratch", "base={training: {init: supernet}}")


def test_report_and_card_say_it(run_dir, made_page):
    line = told("dataset={name: webdataset, path: mine.tar}")
    path = run_dir / "resolved.yaml"
    before = made_page.read_text()
    assert "other pictures" not in before and "made for" not in before
    resolved = yaml.safe_load(path.read_text())
    resolved["provenance"][worlds.RECORDED] = line
    path.write_text(yaml.safe_dump(resolved))
    assert "made for the pictures of emoji, not for those of webdataset: autoencoder" in page.write(run_dir).read_text()
    assert line in model_card._limits({**resolved, "dataset": {"name": "webdataset"}})
