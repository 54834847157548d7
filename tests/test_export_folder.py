"""An export that somebody changed: what it says is checked before anything is loaded, and nothing in it is run."""

import pytest
import yaml
from safetensors.torch import save_file

from nas.deploy import drawer, export, graphs, verify
from nas.deploy.speed import latency
from nas.errors import InputError
from nas.full_training import job
from nas.full_training.recipe import Recipe
from nas.networks.backbones.unet import Config, Level
from nas.settings import study, study_file
from nas.training.loop import Hardware
from nas.weights import checkpoints

SMALL = Config(levels=(Level(8, (0,), (0,)), Level(8, (1,), (1,))), groups=4)


@pytest.fixture(scope="module")
def pipeline():
    resolved = study_file.load(study.Path("studies/emoji/study.yaml"), []).resolved()
    return {name: resolved[name] for name in export.PIPELINE} | {"image_size": 64}


@pytest.fixture
def folder(tmp_path, pipeline):
    """An export of a network that was not trained."""
    proxy = tmp_path / checkpoints.PROXY
    proxy.mkdir()
    save_file(SMALL.build().state_dict(), proxy / "weights.safetensors")
    held = {"fp32": {"networks": {"denoiser": {"file": "proxy/weights.safetensors", "bytes": 1}}}}
    manifest = {"version": drawer.VERSION, "formats": {"safetensors": held}, "latents": [8, 8, 8]}
    deploy = {"architecture": SMALL.to_dict(), "from": {"trial": 0}, "seed": 0, "images_seen": 8, "like": None}
    deploy |= {"scores": {}, "intervals": {}}
    said = {"export.yaml": manifest, "pipeline.yaml": pipeline, "proxy/config.yaml": SMALL.to_dict()}
    for name, content in (said | {"deploy.yaml": deploy, "study.yaml": {}}).items():
        export.write_yaml(tmp_path / name, content)
    return tmp_path


OPENED = {
    "nas sample": drawer.load,
    "nas latency": lambda folder: latency.subject(str(folder), 512, None),
    "nas train": lambda folder: job.load(str(folder), Recipe(), None, Hardware()),
    "nas verify": lambda folder: verify.verify(folder, folder / "cache"),
}
READS = {
    "nas sample": ["export.yaml", "pipeline.yaml", "proxy/config.yaml"],
    "nas latency": ["export.yaml", "pipeline.yaml", "proxy/config.yaml"],
    "nas train": ["export.yaml", "pipeline.yaml", "deploy.yaml"],
    "nas verify": ["export.yaml", "deploy.yaml", "study.yaml"],
}
CONTENTS = {
    "a program": "!!python/object/apply:builtins.open [{proof}, w]\n",
    "a program inside": "version: !!python/object/apply:builtins.open [{proof}, w]\n",
    "a list": "[1, 2]\n",
    "nothing": "",
    "no YAML": "a: [\n",
    "other keys": "colour: red\n",
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, names in READS.items() for name in names])
def test_a_file_that_is_something_else_is_one_line(folder, verb, name, content):
    (folder / name).write_text(CONTENTS[content].format(proof=folder / "proof"))
    with pytest.raises(InputError, match=name) as caught:
        OPENED[verb](folder)
    assert "\n" not in str(caught.value) and not (folder / "proof").exists()


@pytest.mark.parametrize("elsewhere", ["/etc/passwd", "../weights.safetensors", "proxy/../../x"])
def test_files_of_an_export_lie_in_it(folder, elsewhere):
    manifest = yaml.safe_load((folder / "export.yaml").read_text())
    manifest["formats"]["safetensors"]["fp32"]["networks"]["denoiser"]["file"] = elsewhere
    export.write_yaml(folder / "export.yaml", manifest)
    with pytest.raises(InputError, match=r"denoiser\.file: expected a file of the folder itself, got") as caught:
        drawer.load(folder)
    assert elsewhere in str(caught.value)


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        ("conditioning", {"encoder": "open_clip", "trust_remote_code": True}, "trust_remote_code: unknown key"),
        ("conditioning", {"encoder": "pickle"}, "'open_clip', 'minilm' or 'scenes'"),
        ("sampling", {"solver": "dpm++", "steps": 0}, "steps: expected greater than or equal to 1, got 0"),
        ("image_size", "large", "image_size: expected a valid integer"),
        ("autoencoder", {"name": "kl", "trust": 1}, "autoencoder.trust: unknown key"),
        ("autoencoder", {"name": "../kl"}, "autoencoders: unknown name '../kl'"),
    ],
)
def test_settings_of_an_export_are_checked(folder, pipeline, section, value, said):
    export.write_yaml(folder / "pipeline.yaml", {**pipeline, section: value})
    with pytest.raises(InputError, match=section) as caught:
        drawer.load(folder)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["latents", "decoder"])
def test_a_format_without_a_part_is_named(folder, missing):
    manifest = yaml.safe_load((folder / "export.yaml").read_text())
    parts = {name: {"file": f"onnx/{name}.onnx", "bytes": 1} for name in graphs.NAMES if name != missing}
    manifest["formats"]["onnx"] = {"fp32": {"networks": parts}}
    export.write_yaml(folder / "export.yaml", {name: value for name, value in manifest.items() if name != missing})
    with pytest.raises(InputError, match=rf"export\.yaml:\d+: .*{missing}"):
        drawer.load(folder, "onnxruntime")
