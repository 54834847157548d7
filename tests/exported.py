"""A finished run with one small untrained network, written in a second: what exports are made of in tests."""

import dataclasses
import json
import runpy
import subprocess
import sys

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from nas.networks import conditioning
from nas.networks.backbones import Proxy
from nas.networks.backbones.unet import Config, Level
from nas.runs.directory import RunDirectory
from nas.settings import study as settings
from nas.settings import study_file

STUDY = ["sampling.steps=2", "evaluation.images=16", "dataset={name: emoji, limit: 96}", "metrics=[fid, clip_score]"]
DEPLOY = Config(
    levels=(Level(64, (0,), (0,)), Level(64, (1,), (1,), self_attention=True, cross_attention=True, conv="separable"))
)
ROOT = settings.Path(__file__).parents[1]
CAPTIONS = ["red heart, noto", "pizza, fluent"]


def randomised(network, seed=0):
    """The network with every weight random: layers that start at zero would hide what a runtime does wrong."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        scale = 0.3 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return network.eval()


@torch.library.custom_op("nas_tests::odd", mutates_args=())
def odd(x: torch.Tensor) -> torch.Tensor:
    """An operator that no format has."""
    return x.clone()


odd.register_fake(torch.empty_like)


class Odd(nn.Module):
    def forward(self, latents):
        return torch.ops.nas_tests.odd(latents)


class HasOdd(nn.Module):
    """Uses it in the block `blocks.1`."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), Odd()])

    def forward(self, latents):
        return self.blocks[1](latents) + 1


def run_directory(path, deploy=DEPLOY, overrides=()):
    """A run of studies/emoji whose only trial, 0, is `deploy`."""
    study = study_file.load(settings.Path("studies/emoji/study.yaml"), [*STUDY, *overrides])
    encoder = conditioning.load(study.conditioning)
    proxy = deploy.scaled(Proxy(16, 8, encoder.width, encoder.pooled_width))
    scores = {"fid_efficientnet_lite0": 2000.0, "clip_score": 30.0, "denoising_loss": 0.9}
    if not any(entry.name == "fid" for entry in study.metrics):
        del scores["fid_efficientnet_lite0"]
    rung = {"rung": 0, "images_seen": 64, "metrics": scores, "timings": {}}
    record = {
        "trial": 0,
        "key": deploy.key,
        "state": "complete",
        "reason": "",
        "init": "scratch",
        "choices": {},
        "architecture": deploy.to_dict(),
        "cost": dataclasses.asdict(deploy.cost(64, 77)),
        "proxy": proxy.to_dict(),
        "proxy_cost": dataclasses.asdict(proxy.cost(8, 20)),
        "seed": 5,
        "repeat": 0,
        "rungs": [rung],
    }
    folder = path / "trials" / "0000"
    folder.mkdir(parents=True)
    (path / "resolved.yaml").write_text(yaml.safe_dump({**study.resolved(), "provenance": {"commit": "abc"}}))
    conditions = {"clip_score": {"unit": "100 x cosine", "higher_is_better": True, "images": 16, "judge": "shipped"}}
    (path / "conditions.json").write_text(json.dumps(conditions))
    (path / "captions.json").write_text(json.dumps(CAPTIONS))
    (folder / "record.json").write_text(json.dumps(record))
    with torch.random.fork_rng():  # the same network, whoever asks
        torch.manual_seed(0)
        save_file(randomised(proxy.build()).state_dict(), folder / "weights.safetensors")
    return RunDirectory(path)


ALONE = """
import json, runpy, sys
sys.path[:0] = json.loads(sys.argv[5])

class Fence:
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package in without or only and package not in {*only, "runtime", "tokenizer", *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"{name} is not to be needed")

folder, captions, asked, (only, without) = sys.argv[1], *map(json.loads, sys.argv[2:5])
sys.path.insert(0, folder)  # as for a program that is run
sys.meta_path.insert(0, Fence())
draw = runpy.run_path(f"{folder}/draw.py")["draw"]
import numpy
numpy.savez(f"{folder}/found.npz", *(draw(captions, **how) for how in asked))
sys.argv = ["draw.py", *captions, "--seed", str(asked[0]["seed"]), "--out", f"{folder}/drawn.png"]
runpy.run_path(f"{folder}/draw.py", run_name="__main__")
"""


def draw_py(folder):
    """The names of an export's draw.py, run in this process beside others': what it imports from its folder is its own."""
    for name in ("runtime", "tokenizer"):
        sys.modules.pop(name, None)
    sys.path.insert(0, str(folder))
    try:
        return runpy.run_path(str(folder / "draw.py"))
    finally:
        sys.path.remove(str(folder))


def drawn_alone(folder, captions, asked, only=(), without=()):
    """What an export's draw.py draws in a process that can import `only` these packages and the standard library, or all but
    those `without` which it must do: an array for each of `asked` (what `draw` is told), and drawn.png in the folder for the
    first one's seed.
    """
    places = [path for path in sys.path if path and not path.startswith(str(ROOT))]
    given = [str(folder), *map(json.dumps, (captions, asked, [only, without], places))]
    ended = subprocess.run([sys.executable, "-I", "-c", ALONE, *given], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    with np.load(folder / "found.npz") as found:
        return [found[f"arr_{number}"] for number in range(len(asked))]
