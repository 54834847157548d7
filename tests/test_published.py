"""Costs by name beside what papers print."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from nas.cli import app
from nas.errors import InputError
from nas.networks.backbones import unet
from nas.space import published

NAMES = [
    "mobilediffusion",
    "mobilediffusion-lite",
    "sd15",
    "sdxl",
    "dit-xl-2",
    "pixart-alpha",
    "bk-sdm-base",
    "bk-sdm-small",
    "bk-sdm-tiny",
    "snapfusion",
    "kandinsky21",
    "kandinsky22",
    "kandinsky-prior",
    "uvit-h-2",
    "dit-xl",
    "pixart",
    "u-vit-h",
    "mar-b",
    "mar-l",
    "mar-h",
]


def test_the_networks_people_cite_are_there():
    assert set(NAMES) == set(published.names())


@pytest.mark.parametrize("name", [name for name, paper in published.PAPERS.items() if paper.giga])
def test_the_convention_that_explains_a_paper_and_those_that_do_not(name):
    row = published.cost_table([name])[0]
    errors = {c: abs(getattr(row.cost, c) / 1e9 / row.paper.giga - 1) for c in published.HEADINGS}
    if row.paper.convention is None:
        assert min(errors.values()) > 0.03
    else:
        assert errors[row.paper.convention] < 0.005


def test_json_is_one_object_a_network():
    result = CliRunner().invoke(app, ["cost", "sd15", "sdxl", "--json"])
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["name"] for row in rows] == ["sd15", "sdxl"]
    assert {"params", "macs", "macs_without_attention", "macs_padding_free"} < set(rows[0])
    assert rows[0]["params"] == 859_520_964


def test_table_marks_what_nothing_explains():
    result = CliRunner().invoke(app, ["cost", "sdxl", "dit-xl-2", "--paper"])
    lines = result.stdout.splitlines()
    assert lines[1].endswith("nothing")
    assert "MACs with attention" in lines[2]


@pytest.mark.parametrize("wrapped", [True, False])
def test_an_architecture_in_a_file(tmp_path, wrapped):
    config = unet.presets()["mobilediffusion"]
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({"architecture": config.to_dict(), "key": "x"} if wrapped else config.to_dict()))
    row = published.cost_table([str(path)])[0]
    assert row.cost == config.cost(64, 77)
    assert published.parts_table(str(path)) == published.parts_table("mobilediffusion")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sd-15"], "unknown network 'sd-15'; did you mean 'sd15'"),
        (["nothing.yaml"], "nothing.yaml: no such file"),
        (["sd15", "--image-size", "500"], "image size 500: expected a multiple of 8"),
        (["sd15", "--image-size", "8"], "sd15: latents of side 1 cannot be halved 3 times"),
        (["sd15", "--by", "layer"], "--by layer: expected component"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    result = CliRunner().invoke(app, ["cost", *arguments])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_file_that_is_no_architecture(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("levels: [{channels: 320, down: [1], up: [1], widht: 3}]")
    with pytest.raises(InputError, match=r"my.yaml:1: levels.0.widht: .*; expected an architecture"):
        published.cost_table([str(path)])
