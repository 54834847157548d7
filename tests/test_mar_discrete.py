"""Masked autoregression over indices of a codebook; and trials of either kind of token that go on where they were interrupted."""

import math
import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from nas.cost import traced
from nas.diffusion import solvers
from nas.diffusion.plan import Plan
from nas.diffusion.tokens import autoregression
from nas.errors import InputError
from nas.networks.backbones import Autoregressor, Discrete, Proxy, from_dict
from nas.networks.backbones.mar import Config, build_block
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch, masked_autoregression
from nas.settings import design, study_file
from nas.settings.training import Training
from nas.training.encoded import EncodedSet
from nas.training.loop import DenoiserTraining, train
from nas.trial.checks import check

CODES = 9
SMALL = Config(1, 2, 16, 2, 2, 16, grid=4, latent_channels=1, text_width=6, codes=CODES)
SCHEDULE = masked_autoregression.noise_schedule(masked_autoregression.Settings())


def plan(**given):
    return Plan(**{"solver": "autoregressive", "steps": 1, "guidance": 1.0, "iterations": 4, **given})


def network_of(config=SMALL, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = config.build()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network.eval()


def inputs(batch=3, side=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    text = Text(torch.randn(batch, 5, 6, generator=generator), torch.randn(batch, 1, generator=generator))
    null = Text(torch.randn(1, 5, 6, generator=generator), torch.zeros(1, 1))
    return torch.randn(batch, 1, side, side, generator=generator), text, null


def some_indices(batch=3, side=4, seed=5):
    return torch.randint(0, CODES, (batch, 1, side, side), generator=torch.Generator().manual_seed(seed)).float()


def draw(network, how, noise, text, null):
    return solvers.sample(network, how, SCHEDULE.config, noise, text, null)


def member(rng):
    return Config(
        *(rng.randint(1, 2), rng.randint(1, 2), 12, 2, 1, 8),
        text=rng.choice(["prefix", "cross", "late_cross"]),
        aligner=rng.choice([0, 2]),
        buffer=3,
        grid=4,
        latent_channels=1,
        text_width=6,
        pooled_width=rng.choice([None, 1]),
        codes=rng.choice([5, 700]),
    )


# --- costs -----------------------------------------------------------------------------------------------------------


def test_the_closed_form_is_what_tracing_counts_of_a_call_and_of_a_drawing():
    rng = random.Random(0)
    for how in (plan(), plan(guidance=3.0), plan(order="raster", iterations=None), plan(guidance=2.0, iterations=1)):
        config = member(rng)
        noise, text, null = inputs(batch=1)
        with torch.device("meta"):
            network = config.build()
            given = (
                torch.empty(1, 1, 4, 4),
                torch.zeros(1, dtype=torch.long),
                Text(*(torch.empty(one.shape) for one in text)),
            )
        assert config.cost(4, 5) == traced.traced(network, *given), config
        assert config.cost(4, 5).macs == traced.second_opinion(network, *given), config
        assert config.cost(4, 5).params == sum(p.numel() for p in config.build().parameters())
        assert (
            how.macs(config.units(4, 5)) == traced.flops(partial(draw, network_of(config), how, noise, text, null)) // 2
        )
        counted = [n * sum(p.numel() for p in build_block(b)[0].parameters()) for b, n in config.blocks(4, 5).items()]
        assert sum(counted) == config.cost(4, 5).params
        assert all(hasattr(config.build().get_submodule(unit.name), unit.method) for unit in config.units(4, 5).members)


# --- what it computes ------------------------------------------------------------------------------------------------


def test_it_is_the_network_of_continuous_tokens_that_are_one_hot():
    network = network_of()
    other = Config(1, 2, 16, 2, 2, 16, grid=4, latent_channels=CODES, text_width=6).build()
    own = {name: value for name, value in network.state_dict().items() if not name.startswith(("project", "head"))}
    other.load_state_dict(other.state_dict() | own)
    with torch.no_grad():
        other.project["1"].weight.copy_(network.project.weight.T)
        other.project["1"].bias.zero_()
    latents, (_, text, _) = some_indices(), inputs()
    tokens = network.tokens(latents)
    known = torch.rand(3, 16, generator=torch.Generator().manual_seed(1)).argsort(1) < 7
    hot = F.one_hot(tokens.squeeze(2).long(), CODES).float()
    torch.testing.assert_close(network.conditions(tokens, known, text), other.conditions(hot, known, text))
    assert isinstance(network, Discrete) and isinstance(other, Autoregressor) and not isinstance(other, Discrete)
    assert torch.equal(network.latents(tokens), latents)
    time = torch.zeros(3, dtype=torch.long)
    likeliest = network.logits(network.conditions(tokens, None, text)).argmax(2).view(3, 1, 4, 4)
    assert torch.equal(network(latents, time, text), likeliest.float())


def test_the_loss_is_the_cross_entropy_of_hidden_tokens_alone():
    made, (_, text, null) = masked_autoregression.Settings(mask_least=0.2), inputs()
    latents, network = some_indices(), network_of()
    objective = masked_autoregression.Objective(network, None, made)
    found = objective.generator_loss(LatentBatch(latents, text, null, torch.Generator().manual_seed(3)))
    generator = torch.Generator().manual_seed(3)
    share = masked_autoregression.hidden_share(made, float(torch.rand((), generator=generator, dtype=torch.float64)))
    hidden = torch.rand(3, 16, generator=generator).argsort(1)[:, : math.ceil(16 * share)]
    known = torch.ones(3, 16, dtype=torch.bool)
    for row, places in enumerate(hidden):
        known[row, places] = False
    chances = network.logits(network.conditions(network.tokens(latents), known, text)).softmax(2)
    own = chances.gather(2, network.tokens(latents).long()).squeeze(2)
    assert float(found.detach()) == pytest.approx(float(-own[~known].log().mean().detach()), rel=1e-5)
    fresh = masked_autoregression.Objective(SMALL.build(), None, made)
    start = fresh.generator_loss(LatentBatch(latents, text, null, torch.Generator().manual_seed(3)))
    assert float(start.detach()) == pytest.approx(math.log(CODES), rel=1e-6)  # all entries alike
    error = masked_autoregression.held_out_error(
        made, network, SCHEDULE, some_indices(16), inputs(16)[1], torch.zeros(16), inputs(16)[0]
    )
    assert error.ndim == 1 and (error > 0).all()


@torch.no_grad()
def test_raster_is_index_by_index_from_the_left_with_guided_logits():
    network, (noise, text, null) = network_of(), inputs()
    nothing = Text(null.tokens.expand(3, -1, -1), null.pooled.expand(3, -1))
    tokens = torch.zeros(3, 16, 1)
    for place in range(16):
        known = torch.arange(16).expand(3, -1) < place
        with_, without = (network.logits(network.conditions(tokens, known, told))[:, place] for told in (text, nothing))
        chances = ((without + 2.5 * (with_ - without)).double() / 0.7).softmax(1)
        for row in range(3):
            share, index = 0.5 * (1 + math.erf(float(noise[row].flatten()[place]) / 2**0.5)), 0
            while share > float(chances[row, : index + 1].sum()):
                index += 1
            tokens[row, place] = index
    found = draw(network, plan(order="raster", iterations=None, guidance=2.5, temperature=0.7), noise, text, null)
    assert torch.equal(network.tokens(found), tokens)


def test_indices_come_as_often_as_their_probability_says():
    logits = torch.tensor([[[0.0, 1.0, -1.0, 2.0]]])
    noise = torch.randn(1, 40_000, 1, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 0.5):
        found = autoregression.indices(logits.expand(1, 40_000, 4), noise, temperature).flatten()
        often = torch.bincount(found.long(), minlength=4) / 40_000
        assert torch.allclose(often, (logits[0, 0] / temperature).softmax(0), atol=0.01)
    assert (autoregression.indices(logits.expand(1, 40_000, 4), noise, 0.0) == 3).all()
    far = torch.tensor([[[-40.0], [40.0]]])
    assert autoregression.indices(logits.expand(1, 2, 4), far, 1.0).flatten().tolist() == [0, 3]


def test_a_description_without_codes_is_what_it_was():
    plain = Config(1, 1, 8, 2, 1, 8)
    assert "codes" not in plain.to_dict() and from_dict(SMALL.to_dict()) == SMALL
    assert not any("codes" in dict(block.settings) for block in plain.blocks(16, 5))
    alike = [Config(1, 1, 8, 2, depth, 8 * depth, patch=1, latent_channels=1, codes=4) for depth in (1, 3)]
    assert alike[0].key == alike[1].key != plain.key
    assert alike[1].scaled(Proxy(4, latent_channels=8, text_width=6, pooled_width=6)).latent_channels == 1
    with pytest.raises(
        ValueError, match="codes=4: a token is one index, expected patch=1 and latent_channels=1, got patch=2"
    ):
        Config(1, 1, 8, 2, 1, 8, patch=2, latent_channels=1, codes=4)
    with pytest.raises(ValueError, match="codes=0 must be from 1"):
        Config(1, 1, 8, 2, 1, 8, latent_channels=1, codes=0)


# --- trials ----------------------------------------------------------------------------------------------------------

KINDS = {"continuous": Config(1, 1, 8, 2, 1, 8, grid=4, latent_channels=1, text_width=6), "discrete": SMALL}


@pytest.mark.parametrize(("kind", "order"), [("continuous", "random"), ("discrete", "raster")])
def test_a_trial_that_goes_on_is_the_uninterrupted_one_and_draws_the_same(kind, order, tmp_path):
    generator = torch.Generator().manual_seed(0)
    tokens, pooled = (torch.randn(4, *shape, generator=generator).half() for shape in ((5, 6), (6,)))
    data = EncodedSet(some_indices(20), torch.arange(20) % 3, ("a", "b", "c", ""), tokens, pooled)
    settings = Training(images_seen=48, batch=4, warmup_images=16, learning_rate=0.01)

    def begun(seed=0):
        made = masked_autoregression.Settings(order=order, mask_least=0.2)
        return DenoiserTraining(masked_autoregression.Objective(network_of(KINDS[kind], seed), None, made), settings)

    whole, half, resumed = begun(), begun(), begun(seed=9)
    train(whole, data, 5, 48)
    train(half, data, 5, 20)
    half.save(tmp_path / "checkpoint.safetensors", {})
    resumed.restore(tmp_path / "checkpoint.safetensors")
    train(resumed, data, 5, 48)
    noise, text, null = inputs()
    steps = 1 if kind == "discrete" else 3
    how = plan(order=order, steps=steps, guidance=2.0, iterations=None if order == "raster" else 4)
    drawn = []
    for module in (whole, resumed):
        states = [module.objective.state_dict(), module.ema.weights]
        states += [{str(k): v["exp_avg"] for k, v in module.adam["generator"].state_dict()["state"].items()}]
        drawn.append([states, draw(module.objective.generator.eval(), how, noise, text, null)])
    for one, other in zip(*(states for states, _ in drawn), strict=True):
        assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    assert torch.equal(drawn[0][1], drawn[1][1]) and drawn[0][1].isfinite().all()
    moved, start = (made.objective.generator.output.weight for made in (whole, begun()))
    assert not torch.equal(moved, start)


# --- in a study ------------------------------------------------------------------------------------------------------

BASE = {
    "backbone": "mar", "encoder_depth": 1, "decoder_depth": 1, "width": 64, "heads": 2, "head_depth": 1, "head_width": 64,
    "grid": 4, "latent_channels": 1,
}  # fmt: skip
INDICES = {"name": "vq", "path": "scratch", "latents": "indices", "codes": 16, "widths": [32, 32, 32, 32]}
ONCE = {"solver": "autoregressive", "steps": 1, "iterations": 4}
SCENES = {"name": "kl", "shipped": "scenes"}


def checked(folder, level, autoencoder=INDICES, **given):
    study = {
        "architecture": BASE,
        "dataset": {"name": "scenes", "pictures": 64, "held_out_pictures": 64},
        "autoencoder": autoencoder,
        "conditioning": {"encoder": "scenes"},
        "objective": "masked_autoregression",
        "training": {"images_seen": 64},
        "sampling": ONCE,
        "evaluation": {"images": 8},
        "metrics": ["scene_accuracy"],
        "ablation": {
            "design": "one_factor",
            "factors": {"way": {"levels": {"a": {"architecture.codes": 16, "training.batch": 8}, "b": level}}},
            "maximise": ["prompt_accuracy"],
            "repeats": 2,
        },
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**study, **given}))
    made = study_file.load(path)
    check.check_cells(made)
    return made


def test_discrete_and_continuous_tokens_are_cells_of_one_study(tmp_path):
    own = {"sampling": {**ONCE, "steps": 4}, "architecture.patch": 2}
    study = checked(tmp_path, {"autoencoder": {**INDICES, "latents": "quantised"}, **own})
    assert [network.codes for network in design.architectures(study).values()] == [16, None]


@pytest.mark.parametrize(
    ("level", "words"),
    [
        ({"architecture.codes": 16, "autoencoder": SCENES}, "architecture.codes: 16, but latents of autoencoder kl are numbers"),
        ({}, "autoencoder.latents: .*indices are no numbers to denoise; expected quantised, unquantised, .* codes: 16"),
        ({"architecture.codes": 8}, "architecture.codes: 8, but autoencoder.codes is 16; expected the same"),
        ({"architecture.codes": 16, "sampling.steps": 5}, "sampling.steps: 5, but a token that is an index is drawn at once"),
        (
            {"architecture.codes": 16, "objective": {"name": "denoising"}, "sampling": {"solver": "ddim"}},
            "objective: denoising denoises numbers, and latents are indices; expected masked_autoregression",
        ),
        ({"architecture.codes": 16, "sampling": {"solver": "ddim"}}, "sampling.solver: ddim denoises numbers, and tokens are"),
        ({"architecture.codes": 16, "architecture.patch": 2}, "codes=16: a token is one index, expected patch=1"),
    ],
)  # fmt: skip
def test_latents_that_are_not_the_networks_are_one_line(tmp_path, level, words):
    with pytest.raises(InputError, match=words) as caught:
        checked(tmp_path, level)
    assert "\n" not in str(caught.value) and "levels.b" in str(caught.value) or "cell 'way=b'" in str(caught.value)


def test_a_network_of_indices_is_drawn_in_no_other_way():
    network, (noise, text, null) = network_of(), inputs()
    with pytest.raises(InputError, match="sampling.steps: 4, but a token that is an index"):
        draw(network, plan(steps=4), noise, text, null)
    with pytest.raises(InputError, match="sampling.solver: ddim denoises numbers, and this network draws indices"):
        draw(network, Plan(solver="ddim", steps=2), noise, text, null)
