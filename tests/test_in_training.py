"""Every objective in the training loop: stopped half-way and continued it is the uninterrupted one, to the bit; and in bf16."""

import copy
from dataclasses import replace

import pytest
import torch
from test_objectives import inputs
from test_training import QUICK, assert_identical, encoded, module_of, on_the_cpu, weights  # noqa: F401 (fixtures)
from test_training import Denoiser as Small
from torch import nn

from nas import menu
from nas.networks import efficientnet, feature_maps, lora
from nas.networks.adversary import Head
from nas.networks.averages import Average
from nas.objectives.add import Heads
from nas.training.loop import train

CASES = [  # stopped after 5 of 11 updates: beside the turns of critics, and before and after the end of a first task
    ("denoising", {}),
    ("ufogen", {"reconstruction": "diffusion"}),
    ("ufogen", {"reconstruction": "distill", "critic_every": 1}),
    ("ufogen", {"reconstruction": "ema_distill", "gradient_penalty": 0.1, "gradient_penalty_every": 2}),
    ("dmd", {}),
    ("dmd", {"perceptual": {}}),
    ("dmd2", {"student_update_freq": 2, "student_sample_steps": 2}),
    ("dmd2", {"features": "teacher"}),
    ("swiftbrush", {"fake_lora": {"rank": 2}}),
    ("ladd", {"critic_every": 2, "last_time_share": 0.25}),
    ("ladd", {"distillation": "none", "student_sample_steps": 1}),
    ("ladd", {"distillation": "sds", "guidance_scale": 2.0, "feature_times": (20, 600), "gradient_penalty": 0.1}),
    ("add", {"critic_every": 2, "gradient_penalty": 0.1}),
    ("add", {"distillation": "none", "condition": "text", "feature_size": 24}),
    ("lcm", {}),
    ("lcm", {"target": "online"}),
    ("cfg_distillation", {"guidance_probability": 0.5}),
    ("reflow", {}),
    ("instaflow", {"reflow_updates": 7}),
    ("instaflow", {"reflow_updates": 2, "rectified_steps": 2}),
    ("instaflow", {"reflow_updates": 2, "rectified_steps": 1, "perceptual": {"after": 4}}),
    ("mean_flow", {}),
    ("mean_flow", {"derivative": "jvp"}),
    ("mean_flow", {"guidance_scale": 2.0}),
    ("deme", {"experts": 3}),
    ("deme", {"experts": 2, "boundaries": (100,), "merge": "none", "consistency": 0.0}),
]


CASES_THAT_LOOK = [case for case in CASES if "perceptual" in case[1]]


class Named(Small):
    """A small denoiser whose layers are named as backbones name them."""

    middle_width = 8

    @property
    def middle(self):
        return self.first

    @property
    def output(self):
        return self.last


class Stages(nn.Module):
    """A picture network of two stages, with norms that a training must leave in eval mode."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            layers = [
                nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.Tanh()) for i, o in ((3, 8), (8, 16))
            ]
            self.stages = nn.ModuleList(layers)

    def forward_intermediates(self, pictures, intermediates_only):
        first = self.stages[0](pictures)
        return [first, self.stages[1](first)]


@pytest.fixture
def small_features(monkeypatch):
    """A small picture network in the place of the shipped one."""
    feature_maps.load.cache_clear()
    monkeypatch.setattr(efficientnet, "load", lambda name: Stages().eval().requires_grad_(False))
    yield
    feature_maps.load.cache_clear()


def in_training(name, options, rank=None, settings=QUICK):
    """The objective in the training loop; its teacher is another network, so that there is something to learn from it."""
    network, teacher, module = Named(), Named(seed=3).requires_grad_(False), menu.pick("objectives", name)
    if rank:
        lora.adapt(network, lora.Lora(rank=rank), seed=1)
    taught = copy.deepcopy(teacher) if "teacher" in module.Objective.requires else None
    return module_of(
        settings, module.Objective(network, taught, module.Settings(**options), **inputs(module, channels=2))
    )


@pytest.fixture(scope="module")
def pairs():
    data = encoded()
    return replace(data, noise=data.latents.flip(0).contiguous())


def assert_resumes(folder, pairs, name, options, rank=None):
    whole, half, resumed = (in_training(name, options, rank) for _ in range(3))
    train(whole, pairs, 5, 88)
    train(half, pairs, 5, 40)
    half.save(folder / "half.safetensors", {})
    resumed.restore(folder / "half.safetensors")
    assert_identical(weights(resumed), weights(half))
    train(resumed, pairs, 5, 88)
    assert_identical(weights(resumed), weights(whole))


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, pairs, small_features, name, options, rank):
    assert_resumes(tmp_path, pairs, name, options, rank)


def test_so_it_is_with_the_shipped_picture_network(tmp_path, pairs):
    assert_resumes(tmp_path, pairs, *CASES_THAT_LOOK[-1])


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_in_bf16_every_weight_that_is_trained_moves(pairs, small_features, name, options):
    """Weights cast to bf16 without gradients, in one network's turn, must not serve another's (Lightning caches none)."""
    module = in_training(name, options, settings=QUICK.model_copy(update={"precision": "bf16"}))
    before = moving(module.objective)
    train(module, pairs, 5, 40)
    after = moving(module.objective)
    assert [key for key in before if torch.equal(before[key], after[key])] == []
    assert all(value.isfinite().all() for value in weights(module).values())


def moving(objective):
    """Copies of what is trained or averaged, but a head's last bias, which fakes and real ones may pull at alike."""
    networks = {"generator": objective.generator, **{name: one.network for name, one in objective.critics.items()}}
    found = {
        f"{role}.{name}": parameter.detach().clone()
        for role, network in networks.items()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and not (isinstance(network, Head | Heads) and name.endswith("last.bias"))
    }
    for role, child in objective.named_children():
        if isinstance(child, Average):
            found |= {f"{role}.{name}": value.clone() for name, value in child.weights.items()}
    return found


def test_every_objective_is_among_them():
    """But for two, whose networks are not the small one here: what they learn from depends on its stages, or its tokens."""
    others = {"feature_distillation", "masked_autoregression"}
    assert {name for name, _ in CASES} == set(menu.names("objectives")) - others
