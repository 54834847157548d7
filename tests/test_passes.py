"""What every objective says it costs, `Objective.passes`, beside the operations that its losses and their gradients take."""

import copy

import pytest
import torch
from test_objectives import inputs, variants

from nas import menu
from nas.cost.traced import flops
from nas.networks.adversary import MIDDLE, features
from nas.networks.backbones.unet import Config, Level
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch

# Wide and deep enough that the layers at its ends, which take no gradient to their input, and what reads the text are a per
# cent, and with about as much before the end of its middle as after it.
SMALL = Config(
    levels=(
        Level(32, down=(0, 0, 0), up=(0,)),
        Level(64, down=(1, 1), up=(1, 0), self_attention=True, cross_attention=True),
    ),
    latent_channels=4,
    text_width=32,
    pooled_width=8,
    time_width=64,
    groups=8,
    head_dim=32,
)
UPDATES = 2  # in which a generator has had all its kinds


def batch_of(update, size=2):
    generator = torch.Generator().manual_seed(update)
    latents, start = (torch.randn(size, 4, 8, 8, generator=generator) for _ in range(2))
    text = Text(torch.randn(size, 4, 32, generator=generator), torch.randn(size, 8, generator=generator))
    null = Text(text.tokens[:1] / 2, text.pooled[:1] / 2)
    return LatentBatch(latents, text, null, generator, update, start)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SMALL.build()


def to_the_middle(made):
    """The share of a pass that comes before the end of the middle."""
    batch = batch_of(0)
    whole = flops(lambda: made(batch.latents, torch.zeros(2), batch.text))
    return flops(lambda: features(made, batch.latents, torch.zeros(2), batch.text)) / whole


def measured(objective):
    """Passes of an update: the critics' turns by how often they come, and the generator's in the mean over `UPDATES`."""
    batch = batch_of(0)
    whole = flops(lambda: objective.generator(batch.latents, torch.zeros(len(batch.latents)), batch.text))
    turns = [
        flops(lambda critic=c: critic.loss(batch).backward()) * c.updates / c.every for c in objective.critics.values()
    ]
    own = [flops(lambda update=u: objective.generator_loss(batch_of(update)).backward()) for u in range(UPDATES)]
    return (sum(turns) + sum(own) / UPDATES) / whole


def made(name, options):
    module, given = menu.pick("objectives", name), network()
    teacher = copy.deepcopy(given).requires_grad_(False) if "teacher" in module.Objective.requires else None
    return module.Objective(given, teacher, module.Settings(**options), **inputs(module, channels=4, pooled=8))


def cases():
    """Every objective, and with each choice among its settings that changes its passes."""
    for name, options in variants():
        if {"tokens", "pictures"} & menu.pick("objectives", name).Objective.requires or "perceptual" in options:
            continue  # passes of what is before a head, asked several times, or of the denoiser alone: test_add, test_perceptual
        if not options or made(name, options).passes != made(name, {}).passes:
            yield name, options
    yield "instaflow", {"reflow_updates": 1}  # of two: an update of each task costs its own


@pytest.mark.parametrize(("name", "options"), list(cases()), ids=str)
def test_passes_are_those_that_are_made(name, options):
    """Measured: denoising 2.99 of 3; ufogen 8.49 of 8.5, distilled 9.49 of 9.5; ladd 6.99 of 7, without distillation 5.99."""
    objective = made(name, options)
    assert measured(objective) == pytest.approx(objective.passes_of(UPDATES), rel=0.15)


def test_the_network_has_half_of_itself_before_its_middle():
    assert to_the_middle(network()) == pytest.approx(MIDDLE, abs=0.03)
