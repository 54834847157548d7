"""Whatever a path names is read as data: a pickle is planted at every place that takes weights, and never runs."""

import pickle
import shutil
from pathlib import Path
from typing import get_args

import adapters
import open_clip
import pytest
import tiny_clip
import tiny_preference
import torch
import yaml
from pydantic import BaseModel
from safetensors.torch import save_file
from torch import nn

from nas import menu
from nas.deploy import drawer
from nas.deploy.contents.export_folder import MANIFEST
from nas.disk import weight_files
from nas.errors import InputError
from nas.metrics import Reference, caption_accuracy, clip_score, fid
from nas.networks import conditioning, efficientnet, feature_maps, lora, preference
from nas.networks.autoencoders import kl, vq
from nas.networks.backbones import Proxy
from nas.networks.backbones.unet import Config, Level
from nas.networks.conditioning import clip
from nas.networks.perceptual import Features, Perceptual
from nas.settings import training
from nas.space.search_space import SearchSpace
from nas.training import encoded, loop
from nas.trial import imagined, supernet_training
from nas.weights import checkpoints, supernet

SMALL = Config(levels=(Level(8, (0,), (0,)), Level(8, (1,), (1,))), groups=4)


class Program:
    """What makes a file when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return open, (str(self.proof), "w")


def bare(path, proof):
    path.write_bytes(pickle.dumps({"state_dict": Program(proof)}))


def zipped(path, proof):
    torch.save({"conv.weight": torch.zeros(2), "extra": Program(proof)}, path)


def legacy(path, proof):
    torch.save({"conv.weight": torch.zeros(2), "extra": Program(proof)}, path, _use_new_zipfile_serialization=False)


KINDS = {"bare": bare, "zipped": zipped, "legacy": legacy}


@pytest.mark.parametrize("kind", KINDS)
def test_the_plant_runs_where_nothing_stops_it(tmp_path, kind):
    """Else the tests below would say nothing."""
    KINDS[kind](tmp_path / "weights.pt", tmp_path / "proof")
    if kind == "bare":
        pickle.loads((tmp_path / "weights.pt").read_bytes())
    else:
        torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "proof").exists()


# --- every place where a path can be given ---------------------------------------------------------------------------


def clip_folder(folder, plant, name=clip.WEIGHTS):
    tiny_clip.save(folder / "tiny")
    (folder / "tiny" / clip.WEIGHTS).unlink()
    plant(folder / "tiny" / name)
    return str(folder / "tiny")


def pickscore_folder(folder, plant):
    made = tiny_preference.pickscore(folder / "tiny")
    (made / "model.safetensors").unlink()
    plant(made / "model.safetensors")
    return made


def kl_folder(folder, plant, name):
    made = kl.AutoencoderKL(block_out_channels=(32,))
    made.save_pretrained(folder / "vae")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    plant(folder / "vae" / name)
    return kl.Settings(path=folder / "vae")


def one_file(folder, plant, name="weights.safetensors"):
    plant(folder / name)
    return folder / name


def export_folder(folder, plant, name=checkpoints.PROXY):
    (folder / name).mkdir()
    plant(folder / name / "weights.safetensors")
    (folder / name / "config.yaml").write_text(yaml.safe_dump(SMALL.to_dict()))
    held = {"fp32": {"networks": {"denoiser": {"file": f"{name}/weights.safetensors", "bytes": 1}}}}
    manifest = {"version": drawer.VERSION, "formats": {"safetensors": held}, "latents": [4, 8, 8]}
    (folder / MANIFEST).write_text(yaml.safe_dump(manifest))
    return folder


def adapted():
    network = SMALL.build()
    lora.adapt(network, lora.Lora(), seed=0)
    return network


def minilm_folder(folder, plant, name):
    shutil.copytree(conditioning._minilm_folder(), folder / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    plant(folder / "model" / name)
    return folder / "model"


def patched(monkeypatch, module, name, found):
    monkeypatch.setattr(module, name, lambda: found)


def inception(path):
    return fid.build(fid.Settings(features="inception", weights=path), Reference(list))


def judged(metric, **settings):
    return metric.build(clip_score.Settings(**settings), Reference(list, ["a"]))


def encoder(**settings):
    return conditioning.load(conditioning.Conditioning(**settings))


def objective():
    entry = menu.pick("objectives", "denoising")
    return entry.Objective(SMALL.build(), None, entry.Settings())


def restored(path):
    settings = training.Training(images_seen=8, batch=8, warmup_images=8)
    loop.DenoiserTraining(objective(), settings).restore(path)


OF_FEATURES = ("fid", "kid", "mind", "precision_recall", "density_coverage", "vendi", "memorisation")
PLACES = {
    "metrics.fid.weights": lambda to, plant, _: inception(one_file(to, plant, "inception.pth")),
    "metrics.fid.weights, of timm": lambda to, plant, _: fid.build(
        fid.Settings(features="resnet10t", weights=one_file(to, plant)), Reference(list)
    ),
    "metrics.fid.features": lambda to, plant, _: fid.build(
        fid.Settings(features=str(one_file(to, plant, "own.pt"))), Reference(list)
    ),
    "objective.weights": lambda to, plant, _: feature_maps.load("resnet10t", one_file(to, plant), None),
    "objective.perceptual.weights": lambda to, plant, _: Perceptual(
        nn.Identity(), Features(features="resnet10t", weights=one_file(to, plant))
    ),
    "metrics.clip_score.pretrained": lambda to, plant, _: judged(
        clip_score, judge="ViT-B-32", pretrained=str(one_file(to, plant, "model.pt"))
    ),
    "metrics.caption_accuracy.pretrained": lambda to, plant, _: judged(
        caption_accuracy, judge="ViT-B-32", pretrained=str(one_file(to, plant, "model.bin"))
    ),
    "pretrained named safetensors": lambda to, plant, _: judged(
        clip_score, judge="ViT-B-32", pretrained=str(one_file(to, plant))
    ),
    "pretrained named npz": lambda to, plant, _: judged(
        clip_score, judge="ViT-B-32", pretrained=str(one_file(to, plant, "model.npz"))
    ),
    "metrics.pickscore.weights": lambda to, plant, _: preference.pickscore(pickscore_folder(to, plant)),
    "metrics.hps.weights": lambda to, plant, _: preference.hps(Path(clip_folder(to, plant))),
    "metrics.clip_score.judge": lambda to, plant, _: judged(clip_score, judge=clip_folder(to, plant)),
    "metrics.caption_accuracy.judge": lambda to, plant, _: judged(caption_accuracy, judge=clip_folder(to, plant)),
    "judge with a .bin": lambda to, plant, _: judged(
        clip_score, judge=clip_folder(to, plant, "open_clip_pytorch_model.bin")
    ),
    "conditioning.model": lambda to, plant, _: encoder(model=clip_folder(to, plant)),
    "conditioning.pretrained": lambda to, plant, _: encoder(
        model="ViT-B-32", pretrained=str(one_file(to, plant, "model.pt"))
    ),
    "conditioning minilm": lambda to, plant, patch: (
        patched(patch, conditioning, "_minilm_folder", minilm_folder(to, plant, "model.safetensors")),
        encoder(encoder="minilm"),
    ),
    "conditioning minilm with a .bin": lambda to, plant, patch: (
        patched(patch, conditioning, "_minilm_folder", minilm_folder(to, plant, "pytorch_model.bin")),
        encoder(encoder="minilm"),
    ),
    "metrics.fid efficientnet": lambda to, plant, patch: (
        patched(patch, efficientnet, "_weights", one_file(to, plant, "lite0.pth")),
        efficientnet.load(),
    ),
    "autoencoder.path": lambda to, plant, _: kl.load(kl.Settings(path=one_file(to, plant))),
    "autoencoder.path, a folder": lambda to, plant, _: kl.load(
        kl_folder(to, plant, "diffusion_pytorch_model.safetensors")
    ),
    "autoencoder.path with a .bin": lambda to, plant, _: kl.load(kl_folder(to, plant, "diffusion_pytorch_model.bin")),
    "autoencoder.path of vq": lambda to, plant, _: vq.load(vq.Settings(path=one_file(to, plant))),
    "autoencoder.decoder": lambda to, plant, _: kl.load(kl.Settings(shipped="scenes", decoder=one_file(to, plant))),
    "a prior": lambda to, plant, _: imagined._kept(one_file(to, plant, "prior.safetensors"), dict),
    "training.init": lambda to, plant, _: supernet.require_covers(
        supernet.weights_path(str(one_file(to, plant)), "mobilediffusion", "emoji"),
        SearchSpace.load("mobilediffusion"),
        Proxy(16, 8, 96, 128),
    ),
    "base.checkpoint": lambda to, plant, _: checkpoints.load_weights(
        SMALL.build(), checkpoints.checkpoint_file(one_file(to, plant)), "base.checkpoint"
    ),
    "base.checkpoint, an export": lambda to, plant, _: checkpoints.load_weights(
        SMALL.build(), checkpoints.checkpoint_file(export_folder(to, plant)), "base.checkpoint"
    ),
    "base.checkpoint, its images": lambda to, plant, _: checkpoints.images_seen(one_file(to, plant)),
    "an export of a trial": lambda to, plant, _: drawer.load_network(export_folder(to, plant)),
    "an export of nas train": lambda to, plant, _: drawer.load_network(export_folder(to, plant, checkpoints.TRAINED)),
    "a graph for onnxruntime": lambda to, plant, _: menu.pick("exporters", "onnx").load(
        one_file(to, plant, "denoiser.onnx")
    ),
    "an adapter": lambda to, plant, _: adapters.load(adapters.Adapter(SMALL.build(), 8), one_file(to, plant)),
    "low-rank adapters": lambda to, plant, _: lora.load(adapted(), one_file(to, plant)),
    "a checkpoint of a trial": lambda to, plant, _: restored(one_file(to, plant)),
    "a checkpoint of a supernet": lambda to, plant, _: supernet_training.Partial(one_file(to, plant), {}).check(),
    "a cache of a data set": lambda to, plant, _: encoded.load_or_encode(one_file(to, plant), None, None, None),
    "a cache of features": lambda to, plant, _: Reference(list, cache=to / "set.x").cached(
        "fid", lambda: one_file(to, plant, "set-fid.safetensors")
    ),
}


@pytest.fixture
def small_clip(monkeypatch):
    """ViT-B-32 of a few thousand parameters, which is built before its checkpoint is read."""
    towers = {
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", {"embed_dim": 16, **towers})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_planted_pickle_is_refused_and_does_not_run(tmp_path, monkeypatch, small_clip, place, kind):
    if "onnx" in place:
        pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    if "cache of features" in place:
        KINDS[kind](tmp_path / "set-fid.safetensors", tmp_path / "proof")
    with pytest.raises(InputError) as caught:
        PLACES[place](tmp_path, lambda path: KINDS[kind](path, tmp_path / "proof"), monkeypatch)
    assert not (tmp_path / "proof").exists()
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600 and "weights_only" not in said


def fields_of(settings, before=""):
    """Of a section and of the sections inside it."""
    for key, field in settings.model_fields.items():
        yield before + key, field
        for inside in get_args(field.annotation) or [field.annotation]:
            if isinstance(inside, type) and issubclass(inside, BaseModel):
                yield from fields_of(inside, f"{before}{key}.")


def test_every_setting_that_takes_a_path_to_weights_is_planted():
    """A new one in the menus must be added to PLACES."""
    found = set()
    for folder in ("metrics", "autoencoders", "objectives"):
        for name in menu.names(folder):
            for key, field in fields_of(menu.pick(folder, name).Settings):
                if "Path" in str(field.annotation) or key in ("judge", "pretrained", "weights", "checkpoint"):
                    found.add((folder, name, key))
    assert found == {
        *(("metrics", name, "weights") for name in OF_FEATURES),  # one reader: fid's
        ("metrics", "pickscore", "weights"),
        ("metrics", "hps", "weights"),
        ("metrics", "clip_score", "judge"),
        ("metrics", "clip_score", "pretrained"),
        ("metrics", "caption_accuracy", "judge"),
        ("metrics", "caption_accuracy", "pretrained"),
        ("objectives", "add", "weights"),
        ("objectives", "dmd", "perceptual.weights"),
        ("objectives", "instaflow", "perceptual.weights"),
        ("autoencoders", "kl", "path"),
        ("autoencoders", "kl", "decoder"),
        ("autoencoders", "vq", "path"),
    }


def test_what_is_refused_says_what_it_asked_for(tmp_path):
    zipped(tmp_path / "weights.pt", tmp_path / "proof")
    with pytest.raises(InputError, match=r"key: .*weights\.pt: .* asks for (_io|io|builtins)\.open, which is not run"):
        weight_files.checkpoint(tmp_path / "weights.pt", "key")
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "program.pt")
    with pytest.raises(InputError, match="is a TorchScript program, which is not run"):
        weight_files.checkpoint(tmp_path / "program.pt", "key")


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_tensors_of_either_kind_of_file_are_read(tmp_path, save):
    tensors = {"a.weight": torch.arange(3.0), "b": torch.eye(2)}
    save(tensors, tmp_path / "weights")
    found = weight_files.checkpoint(tmp_path / "weights", "key")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.fixture(scope="module")
def made_inception():
    """torch-fidelity's network with random weights."""
    from torch_fidelity import feature_extractor_inceptionv3
    from torchmetrics.image.fid import NoTrainInceptionV3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_: None)
        return NoTrainInceptionV3("inception-v3-compat", ["2048"])


@pytest.mark.parametrize("how", ["file", "download"])
def test_inception_is_torch_fidelitys_with_the_weights_given(tmp_path, monkeypatch, made_inception, how):
    weights, asked = made_inception.state_dict(), {}
    if how == "file":
        save_file(weights, tmp_path / "inception.safetensors")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **how: asked.update(how) or weights)
    found = fid._inception(tmp_path / "inception.safetensors" if how == "file" else None).network
    assert found.features_list == ["2048"] and not found.training
    assert all(torch.equal(value, weights[name]) for name, value in found.state_dict().items())
    if how == "download":
        assert asked["weights_only"] and asked["check_hash"]
