"""Exports: what is written is what PyTorch computes, and what is wrong is said in one line."""

import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import converted
import exported
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import nas
from nas import cli
from nas.deploy import drawer as drawing
from nas.deploy import export, exporters, graphs
from nas.deploy.contents import standalone
from nas.errors import ArgumentError, InputError
from nas.networks import conditioning
from nas.networks.backbones.unet import Config, Level
from nas.runs import pictures

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from nas.deploy.exporters import onnx as format_onnx  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return exported.run_directory(tmp_path_factory.mktemp("runs") / "small" / "2026")


@pytest.fixture(scope="module")
def told():
    """What the export below says while it works."""
    return []


@pytest.fixture(scope="module")
def model(run, told, tmp_path_factory):
    formats = ["yaml", "safetensors", "onnx"]
    with converted.shared(tmp_path_factory):
        return export.export(run, "trial:0", tmp_path_factory.mktemp("model"), formats, say=told.append)


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "copy")


def test_every_runtime_draws_the_same_pictures(model):
    captions = [*exported.CAPTIONS, "sun"]  # another batch than the one traced, and than the one compared on export
    expected = drawing.load(model, "pytorch").draw(captions, seed=3, steps=3, guidance=2.0)
    assert expected.shape == (3, 3, 64, 64) and expected.std() > 0.05
    found = drawing.load(model, "onnxruntime").draw(captions, seed=3, steps=3, guidance=2.0)
    assert torch.allclose(found, expected, atol=1e-4)
    alone = drawing.load(model, "onnxruntime").draw(captions[:1], seed=3, steps=3, guidance=2.0)
    assert torch.allclose(alone, found[:1], atol=1e-4)


def test_a_folder_draws_alone(model, tmp_path):
    """With numpy, Pillow and onnxruntime: no nas, torch, open_clip, nor anything else outside the standard library."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.yaml", "proxy"))
    captions, asked = [*exported.CAPTIONS, "a sun it\u2019s"], [{"seed": 3}, {"seed": -1, "guidance": 1.0}]
    found = exported.drawn_alone(folder, captions, asked, only=("numpy", "PIL", "onnxruntime"))
    plain = drawing.load(model, "pytorch")
    for how, pictures_ in zip(asked, found, strict=True):
        expected = plain.draw(captions, **how).permute(0, 2, 3, 1).numpy()
        assert expected.std() > 0.05 and np.abs(pictures_ - expected).max() < 1e-4
    drawing.sample(model, captions, 3, tmp_path / "nas.png", runtime="pytorch")
    (ours, theirs) = (
        np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (tmp_path / "nas.png", folder / "drawn.png")
    )
    tiles = np.hstack([ours[2:66, 2 + 66 * number : 66 + 66 * number] for number in range(3)])
    assert theirs.shape == (64, 192, 3) and np.abs(tiles - theirs).max() <= 1


def test_the_table_of_tensors_is_that_of_the_files(model):
    tensors = standalone.read(model)["tensors"]
    types = {"tensor(int64)": "int64", "tensor(float)": "float32"}
    card = (model / "README.md").read_text()
    assert list(tensors) == list(graphs.NAMES)
    for name, sides in tensors.items():
        session = ort.InferenceSession(model / "onnx" / f"{name}.onnx")
        for side, held in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            expected = [(one["name"], one["shape"], one["dtype"]) for one in sides[side]]
            assert [(one.name, one.shape, types[one.type]) for one in held] == expected
            assert all(re.search(rf"\| {name} +\| {side[:-1]} +\| `{one.name}`", card) for one in held)
        about = session.get_modelmeta()
        assert about.graph_name == name and json.loads(about.custom_metadata_map["inputs"]) == sides["inputs"]
        assert json.loads(about.custom_metadata_map["outputs"]) == sides["outputs"]
    links = {one["name"]: one["from"] for one in tensors["denoiser"]["inputs"]}
    assert links["tokens"] == "text_encoder: states" and links["pooled"] == "text_encoder: pooled_text"
    constants = json.loads(
        ort.InferenceSession(model / "onnx" / "denoiser.onnx").get_modelmeta().custom_metadata_map["schedule"]
    )
    assert constants["beta_end"] == 0.012 and constants["num_train_timesteps"] == 1000


def test_an_export_says_what_it_does(model, told):
    parts = ["text encoder", "denoiser", "decoder"]
    assert told == [
        "loading trial 0, its text encoder and its autoencoder",
        *(f"onnx fp32: {part}, written and compared with PyTorch" for part in parts),
        "onnx fp32: 2 pictures, drawn here and with PyTorch",
    ]


def test_exports_of_the_version_before_are_read(copy):
    """They had no draw.json, which nas does not read itself."""
    manifest = yaml.safe_load((copy / "export.yaml").read_text())
    (copy / "export.yaml").write_text(yaml.safe_dump({**manifest, "version": 2}))
    for name in standalone.FILES:
        (copy / name).unlink()
    assert manifest["version"] == 3 and drawing.load(copy).draw(["sun"], seed=0).shape == (1, 3, 64, 64)


def test_pictures_have_the_size_the_proxy_was_trained_on(tmp_path):
    run = exported.run_directory(tmp_path / "small" / "2026", overrides=["dataset.image_size=32"])
    folder = export.export(run, "trial:0", tmp_path / "model")
    drawer = drawing.load(folder, "pytorch")
    assert drawer.latents == (8, 4, 4)
    assert drawer.draw(["sun"], seed=0).shape == (1, 3, 32, 32)


def test_the_manifest_says_what_is_on_disk(model):
    held = drawing.read(model)["formats"]
    assert set(held) == {"safetensors", "onnx"} and set(held["onnx"]) == {"fp32"}
    for precision, entry in held["onnx"].items():
        assert set(entry["networks"]) == set(graphs.NAMES)
        for network in entry["networks"].values():
            assert network["bytes"] == (model / network["file"]).stat().st_size
            assert 0 < network["max_relative_error"] <= export.TOLERANCE[precision]


def test_half_precision_is_half_the_size_and_close(tmp_path):
    encoder = conditioning.load(conditioning.Conditioning())
    encoder.model.transformer.resblocks = encoder.model.transformer.resblocks[:1]  # all layers take long to convert
    graph = graphs.text_encoder(encoder)
    path = format_onnx.write(graph, tmp_path / "text", "fp16")
    inputs = graph.random_inputs(3)
    assert 1e-6 < graphs.relative_error(format_onnx.load(path)(inputs), graph.run(inputs)) < export.TOLERANCE["fp16"]
    assert path.stat().st_size < 0.55 * graph.parameter_bytes


def test_a_file_of_graphs_holds_little_beside_its_weights(model):
    path = model / "onnx" / "decoder.onnx"
    weights = sum(onnx.numpy_helper.to_array(w).nbytes for w in onnx.load(path).graph.initializer)
    assert path.stat().st_size < weights + 150_000
    blocks = {e.value for node in onnx.load(path).graph.node for e in node.metadata_props if e.key == format_onnx.BLOCK}
    assert any(block.startswith("network.mid_block") for block in blocks)


def test_the_card_holds_scores_conditions_costs_and_the_licence(model, run):
    text = (model / "README.md").read_text()
    record = run.records()[0]
    assert "| clip_score" in text and "100 x cosine" in text and "judge shipped" in text
    assert f"{record['cost']['params']:,}" in text and f"{record['proxy_cost']['params']:,}" in text
    assert "CC-BY 4.0" in text and "onnx/denoiser.onnx" in text
    assert f"nas sample THIS_FOLDER '{exported.CAPTIONS[0]}'" in text  # a caption of the study's own data
    assert drawing.examples(model) == exported.CAPTIONS[:4]


def test_a_network_that_ignores_an_input_keeps_it(tmp_path):
    config = Config(levels=(Level(16, (0,), (0,)),), pooled_width=None, groups=2, time_width=16, text_width=8)
    graph = graphs.denoiser(exported.randomised(config.build()), (8, 4, 4), (5, 8), 7)
    network = format_onnx.load(format_onnx.write(graph, tmp_path / "d"))
    for batch in (1, 5):
        inputs = graph.random_inputs(batch)
        assert graphs.relative_error(network(inputs), graph.run(inputs)) < 1e-4


def test_the_error_of_outputs_is_that_of_the_worst():
    expected = (torch.tensor([10.0, -20.0]), torch.tensor([1.0, 1.0]))
    found = (torch.tensor([11.0, -20.0]), torch.tensor([1.0, 0.9]))
    assert graphs.relative_error(found, expected) == pytest.approx(0.1)
    for place in (0, 1):
        broken = tuple(x * float("nan") if place == number else x for number, x in enumerate(found))
        assert math.isnan(graphs.relative_error(broken, expected))


@pytest.mark.parametrize(("argument", "value"), [("pick", "knee"), ("to", "elsewhere")])
def test_what_nas_train_wrote_is_neither_picked_nor_moved(tmp_path, monkeypatch, capsys, argument, value):
    """The argument is named as it was given: with dashes in a command alone."""
    (tmp_path / "training.yaml").write_text("")
    line = f"{argument} {value}: {tmp_path} was written by nas train"
    with pytest.raises(InputError, match=f"^{line}"):
        nas.export(tmp_path, formats=["onnx"], **{argument: value})
    monkeypatch.setattr(sys, "argv", ["nas", "export", str(tmp_path), "--format", "onnx", f"--{argument}", value])
    with pytest.raises(SystemExit, match="^2$"):
        cli.main()
    assert capsys.readouterr().err.startswith(f"nas: --{line}")


def test_an_export_that_fails_half_way_leaves_none(run, copy, monkeypatch):
    monkeypatch.setattr(format_onnx, "write", lambda *given: (_ for _ in ()).throw(exporters.Unsupported("no such")))
    with pytest.raises(InputError, match="no such"):
        export.export(run, "trial:0", copy, ["onnx"])
    assert (copy / "deploy.yaml").exists() and not (copy / "README.md").exists()
    with pytest.raises(InputError, match="not an exported model"):
        drawing.load(copy)
    assert not (copy / standalone.PROGRAM).exists()
    export.export(run, "trial:0", copy)
    assert set(drawing.runtimes(copy)) == {"pytorch"}
    assert not (copy / standalone.PROGRAM).exists() and (copy / standalone.TOKENIZER).exists()


def test_nothing_of_an_earlier_export_is_taken_for_the_new_one(run, copy):
    """Its weights and graphs go, listed in a manifest that can be read or not; what somebody else put there stays."""
    mine = [copy / "onnx" / "notes.txt", copy / "onnx" / "my_denoiser.onnx"]
    for path in mine:
        path.write_text("mine")
    export.export(run, "trial:0", copy, ["yaml"])
    assert not (copy / "proxy").exists() and {*(copy / "onnx").iterdir()} == {*mine}
    assert all(path.read_text() == "mine" for path in mine)
    with pytest.raises(InputError, match="holds no weights for PyTorch; export again with --format safetensors"):
        drawing.load_network(copy)
    export.export(run, "trial:0", copy)
    (copy / "export.yaml").write_text("{")
    export.export(run, "trial:0", copy, ["yaml"])
    assert {path.name for path in copy.iterdir()} == {
        *("README.md", "deploy.yaml", "export.yaml", "onnx", "pipeline.yaml", "study.yaml")
    }


@pytest.mark.parametrize(
    "names", [["README.md", "deploy.yaml"], ["notes", "proxy"], ["study.yaml"], ["network", "export.yaml"]]
)
def test_a_folder_that_is_no_export_is_left_alone(run, tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(
        ArgumentError, match=f"^to .*: holds '{names[0]}' and is no trial's export; expected a new folder"
    ):
        export.export(run, "trial:0", tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(names, "mine")


@pytest.mark.parametrize(
    ("formats", "precisions", "words"),
    [
        (["onxx"], ["fp32"], ["format: unknown", "'onxx'", "did you mean 'onnx'", "safetensors"]),
        (["onnx"], ["fp61"], ["precision: unknown", "'fp61'", "fp16"]),
    ],
)
def test_unknown_formats_are_named(run, tmp_path, formats, precisions, words):
    with pytest.raises(ArgumentError) as caught:  # which a command writes with dashes, and Python without
        export.export(run, "trial:0", tmp_path / "m", formats, precisions)
    assert (
        str(caught.value).startswith(words[0])
        and all(word in str(caught.value) for word in words)
        and not (tmp_path / "m").exists()
    )


def test_a_format_without_its_package_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setattr(format_onnx, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(InputError, match=r"format onnx: needs no_such_package, .* pip install 'nas\[onnx\]'"):
        export.export(run, "trial:0", tmp_path / "m", ["onnx"])


@pytest.mark.parametrize(("factor", "error"), [(1.01, r"0\.01"), (float("nan"), "nan")])
def test_a_file_that_computes_something_else_is_refused(tmp_path, monkeypatch, factor, error):
    graph = graphs.decoder(nn.Conv2d(8, 3, 1), (8, 4, 4))
    monkeypatch.setattr(format_onnx, "write", lambda graph, path, precision: path)
    monkeypatch.setattr(format_onnx, "load", lambda path: lambda inputs: tuple(factor * v for v in graph.run(inputs)))
    model = SimpleNamespace(graphs=(graph,), step_graphs=lambda: ([], []))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "decoder").write_text("")
    with pytest.raises(
        InputError, match=rf"format onnx: decoder in fp32 differs from PyTorch by {error} .* at most 0\.001"
    ):
        export._graphs(model, format_onnx, tmp_path, "onnx", "fp32", [], print)


def test_an_operator_that_onnx_lacks_is_named_with_its_block(tmp_path):
    with pytest.raises(exporters.Unsupported, match=r"decoder uses the operator nas_tests\.odd.* in block blocks\.1$"):
        format_onnx.write(graphs.decoder(exported.HasOdd(), (4, 2, 2)), tmp_path / "decoder")
    assert not list(tmp_path.iterdir())


def test_an_operator_that_onnxruntime_lacks_is_named_with_its_block(tmp_path):
    path = tmp_path / "odd.onnx"
    for operator, domain, kind in (("Odd", "my", onnx.TensorProto.FLOAT), ("Conv", "", onnx.TensorProto.DOUBLE)):
        shape = ["batch", 4, 2, 2]
        values = [onnx.helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
        weights = onnx.helper.make_tensor("w", kind, [4, 4, 1, 1], [0.5] * 16)
        node = onnx.helper.make_node(operator, ["x", "w"], ["y"], name="node_odd", domain=domain)
        node.metadata_props.add(key=format_onnx.BLOCK, value="levels.1.down.0")
        graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weights])
        opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("my", 1)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        with pytest.raises(
            exporters.Unsupported, match=rf"lacks the operator .*{operator}, used in block levels\.1\.down\.0"
        ):
            format_onnx.load(path)
    path.write_bytes(b"no model")
    with pytest.raises(InputError, match="cannot read it"):
        format_onnx.load(path)


def test_captions_that_are_empty_or_too_long(model, tmp_path):
    with pytest.raises(InputError, match="caption 2: ' ' is empty"):
        drawing.sample(model, ["sun", " "], 0, tmp_path / "x.png")
    long = "a small red house beside a very wide blue sea under a large white cloud, painted in oil, twemoji"
    notes = drawing.sample(model, ["sun", long], 0, tmp_path / "x.png", runtime="onnxruntime")
    assert len(notes) == 1 and "the first 20 are read" in notes[0] and long in notes[0]
    encoder = conditioning.load(conditioning.Conditioning())
    (ids,) = conditioning.load(conditioning.Conditioning(length=32)).tokenise([long]).values()
    assert encoder.token_count("sun") == int((encoder.tokenise(["sun"])["input_ids"] != 0).sum())
    assert encoder.token_count(long) > 20 and int((ids != 0).sum()) > 20
    assert (tmp_path / "x.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["picture", "picture.txt", "picture.pdb"])
def test_a_name_that_is_no_pictures_is_refused_before_anything_is_drawn(tmp_path, name):
    with pytest.raises(InputError, match=rf"--out {name}: expected a picture's name, such as picture\.png"):
        drawing.sample(tmp_path / "nothing", ["sun"], 0, Path(name))
    for known in ("a.png", "a.JPG", "a.webp"):
        pictures.check_name(Path(known))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 99}, ["version 99", "versions 2, 3", "export the run again"]),
        ({"formats": {}}, ["architecture without weights", "safetensors"]),
    ],
)
def test_exports_that_cannot_be_drawn_from(copy, change, words):
    manifest = yaml.safe_load((copy / "export.yaml").read_text())
    (copy / "export.yaml").write_text(yaml.safe_dump({**manifest, **change}))
    with pytest.raises(InputError) as caught:
        drawing.load(copy)
    assert all(word in str(caught.value) for word in words)


def test_weights_of_another_network_and_wrong_runtimes(copy, tmp_path):
    config = Config.from_dict(yaml.safe_load((copy / "proxy" / "config.yaml").read_text()))
    (copy / "proxy" / "config.yaml").write_text(yaml.safe_dump({**config.to_dict(), "latent_channels": 16}))
    with pytest.raises(InputError, match="holds another architecture: conv_in.weight is 4x8x3x3, expected 4x16x3x3"):
        drawing.load(copy)
    with pytest.raises(InputError, match="nothing in it runs on 'onnxruntme'; did you mean 'onnxruntime'"):
        drawing.load(copy, "onnxruntme")
    with pytest.raises(InputError, match="onnx has no 'int8'"):
        drawing.load(copy, "onnxruntime", "int8")
    with pytest.raises(InputError, match="not an exported model"):
        drawing.load(tmp_path / "nothing")
