"""Drawing token by token: the bookkeeping, what it costs, what it may depend on, and the toy of two modes."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from nas.cost.traced import flops
from nas.diffusion import solvers
from nas.diffusion.plan import Plan
from nas.diffusion.tokens import autoregression, unmasking
from nas.documents.document import Document
from nas.errors import InputError
from nas.networks.backbones import presets
from nas.networks.backbones.mar import Config
from nas.networks.backbones.mar.network import Head
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch, check_drawing, masked_autoregression

SMALL = Config(1, 2, 16, 2, 2, 16, grid=4, latent_channels=3, text_width=6)
OBJECTIVE = masked_autoregression.noise_schedule(masked_autoregression.Settings())


def plan(**given):
    return Plan(**{"solver": "autoregressive", "steps": 3, "guidance": 1.0, "iterations": 4, **given})


def network_of(config=SMALL, seed=0):
    torch.manual_seed(seed)
    network = config.build()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def inputs(batch=3, side=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    text = Text(torch.randn(batch, 5, 6, generator=generator), torch.randn(batch, 1, generator=generator))
    null = Text(torch.randn(1, 5, 6, generator=generator), torch.zeros(1, 1))
    return torch.randn(batch, 3, side, side, generator=generator), text, null


def draw(network, how, noise, text, null):
    return solvers.sample(network, how, OBJECTIVE.config, noise, text, null)


class Watched(nn.Module):
    """A network whose calls are noted."""

    def __init__(self, network):
        super().__init__()
        self.network, self.config, self.told, self.asked = network, network.config, [], []
        self.tokens, self.latents = network.tokens, network.latents

    def conditions(self, tokens, known, text):
        self.told.append((tokens.clone(), known.clone()))
        return self.network.conditions(tokens, known, text)

    def denoised(self, tokens, time, conditions):
        self.asked.append((tokens.shape[:2], time.tolist()))
        return self.network.denoised(tokens, time, conditions)


# --- counts ----------------------------------------------------------------------------------------------------------


def by_masks(tokens, iterations):
    """MAR's released loop, on masks."""
    mask, found = np.ones(tokens, bool), []
    for step in range(iterations):
        ratio = np.cos(math.pi / 2.0 * (step + 1) / iterations)
        length = max(1, min(mask.sum() - 1, int(np.floor(tokens * ratio))))
        after = np.zeros(tokens, bool)
        after[:length] = True
        now = mask if step == iterations - 1 else mask ^ after
        found.append(int(now.sum()))
        mask = after
    return found


@pytest.mark.parametrize(
    ("tokens", "iterations"), [(256, 64), (256, 256), (64, 16), (64, 64), (16, 5), (16, 1), (7, 6)]
)
def test_counts_follow_the_cosine_rule(tokens, iterations):
    counts = unmasking.counts(tokens, iterations)
    assert counts == by_masks(tokens, iterations)
    assert sum(counts) == tokens and min(counts) >= 1 and len(counts) == iterations


def test_no_iteration_is_for_nothing():
    for tokens in range(1, 40):
        for iterations in range(1, 50):
            counts = unmasking.counts(tokens, iterations)
            assert sum(counts) == tokens and min(counts) >= 1 and len(counts) == min(iterations, tokens)
        assert unmasking.counts(tokens, None) == [1] * tokens


# --- bookkeeping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{}, {"iterations": None}, {"order": "raster", "iterations": None}, {"guidance": 2.0}]
)
def test_every_token_is_drawn_once_and_what_is_known_stays(given):
    how, (noise, text, null) = plan(**given), inputs()
    watched = Watched(network_of())
    tokens = watched.tokens(draw(watched, how, noise, text, null))
    told = watched.told
    branches = 1 if how.guidance == 1 else 2
    counts = unmasking.counts(16, how.iterations)
    assert [int(known[0].sum()) for _, known in told] == [sum(counts[:i]) for i in range(len(counts))]
    assert [rows for rows, _ in watched.asked] == [(branches * 3, n) for n in counts for _ in range(3)]
    for (before, known), (after, later) in zip(told, [*told[1:], (tokens, torch.ones(3, 16).bool())], strict=True):
        before, known, later = before[:3], known[:3], later[:3]
        assert (known <= later).all()
        assert torch.equal(before[known], after[:3][known])  # known tokens never change
    if how.order == "random":
        assert any(not torch.equal(known[0], known[1]) for _, known in told[1:])


def test_raster_is_token_by_token_from_the_left():
    """A second form: a plain loop over places, with a loop of DDPM's steps in it."""
    network, (noise, text, null) = network_of(), inputs()
    how = plan(order="raster", iterations=None, temperature=0.8)
    fresh = solvers.fresh_noise(noise, 3)
    next(fresh)  # of the order
    added = [network.tokens(next(fresh)) for _ in range(2)]
    alphas, times = OBJECTIVE.alphas_cumprod.double(), how.times()
    start, tokens = network.tokens(noise), torch.zeros(3, 16, 3)
    for place in range(16):
        known = torch.arange(16).expand(3, -1) < place
        condition = network.conditions(tokens, known, text)[:, place : place + 1]
        x = start[:, place : place + 1].double()
        for index, time in enumerate(times):
            v = network.denoised(x.float(), torch.full((3,), time), condition).double()
            a = alphas[time]
            clean = a.sqrt() * x - (1 - a).sqrt() * v
            if index + 1 == len(times):
                x = clean
                break
            b = alphas[times[index + 1]]
            beta = 1 - a / b
            mean = b.sqrt() * beta / (1 - a) * clean + (a / b).sqrt() * (1 - b) / (1 - a) * x
            deviation = ((1 - b) / (1 - a) * beta).sqrt()  # Ho et al. 2020, eq. 7
            x = mean + 0.8 * deviation * added[index][:, place : place + 1]
        tokens[:, place] = x[:, 0].float()
    found = network.tokens(draw(network, how, noise, text, null))
    assert torch.allclose(found, tokens, atol=1e-4)


def test_without_guidance_nothing_but_the_caption_is_asked_about():
    network, (noise, text, null) = network_of(), inputs()
    watched = Watched(network)
    plain = draw(watched, plan(), noise, text, null)
    assert {len(tokens) for tokens, _ in watched.told} == {3}
    assert torch.equal(plain, draw(network, plan(guidance_schedule="linear"), noise, text, null))
    other = Text(null.tokens + 1, null.pooled)
    assert torch.equal(plain, draw(network, plan(), noise, text, other))
    guided = draw(network, plan(guidance=50.0), noise, text, null)
    assert not torch.allclose(plain, guided, atol=1e-3)
    null_alone = draw(network, plan(guidance=0.0), noise, text, null)
    told_null = draw(network, plan(), noise, Text(null.tokens.expand(3, -1, -1), null.pooled.expand(3, -1)), null)
    assert torch.allclose(null_alone, told_null, atol=1e-4)


def test_linear_guidance_is_mars():
    how = plan(guidance=3.0, guidance_schedule="linear")
    missing = [15, 11, 6]  # of 16 tokens after each of 4 iterations; in the last one MAR counts 1
    known = np.cumsum(unmasking.counts(16, 4))
    assert [16 - int(k) for k in known[:-1]] == [int(16 * math.cos(math.pi / 2 * i / 4)) for i in (1, 2, 3)]
    scales = [how.scale_after(int(k), 16) for k in known]
    assert scales == pytest.approx([1 + 2 * (16 - m) / 16 for m in (*(16 - known[:-1]), 1)])
    assert plan(guidance=3.0).scale_after(int(known[0]), 16) == 3.0 and len(missing) == 3


def test_noise_is_the_only_randomness_and_rows_are_independent():
    network, (noise, text, null) = network_of(), inputs()
    how = plan(guidance=2.0)
    whole = draw(network, how, noise, text, null)
    torch.manual_seed(7)
    assert torch.equal(whole, draw(network, how, noise, text, null))
    one = Text(text.tokens[1:2], text.pooled[1:2])
    assert torch.allclose(draw(network, how, noise[1:2], one, null), whole[1:2], atol=1e-5)
    assert not torch.allclose(draw(network, how, noise + 1e-6, text, null), whole, atol=1e-2)
    cold = draw(network, plan(guidance=2.0, temperature=0.0), noise, text, null)
    assert not torch.allclose(cold, whole, atol=1e-2)


def test_it_costs_what_is_counted():
    ways = [plan(), plan(guidance=3.0, steps=2), plan(order="raster", iterations=None, steps=1)]
    for text, how in zip(("prefix", "cross", "late_cross"), ways, strict=True):
        config = replace(SMALL, text=text, aligner=1, buffer=3, pooled_width=1)
        network, (noise, words, null) = network_of(config), inputs(batch=1)
        counted = flops(partial(draw, network, how, noise, words, null)) // 2
        assert how.macs(config.units(4, 5)) == counted, (text, how)
    with pytest.raises(InputError, match="solver: autoregressive draws token by token, which this family"):
        plan().macs(presets()["pixart"].units(8, 5))


# --- the head alone --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_head_learns_both_modes():
    """Two modes +-(1, -1) of deviation 0.1: shares, means and deviations of what is drawn, cold too; a mean would be 0."""
    torch.manual_seed(0)
    head = Head(Config(1, 1, 64, 1, 3, 64, latent_channels=2, text_width=1))
    nn.init.xavier_uniform_(head.condition.weight)
    adam, where = torch.optim.Adam(head.parameters(), 1e-3), torch.tensor([1.0, -1.0])

    def data(size):
        sign = torch.randint(0, 2, (size, 1)) * 2.0 - 1
        return (sign * where + 0.1 * torch.randn(size, 2))[:, None]

    condition = torch.zeros(1, 1, 64)
    for _ in range(1200):
        clean, time = data(256), torch.randint(0, 1000, (256, 1))
        error = masked_autoregression._error(
            Alone(head), OBJECTIVE, clean, time, torch.randn(256, 1, 2), condition.expand(256, -1, -1)
        )
        adam.zero_grad()
        error.mean().backward()
        adam.step()
    for temperature, low, high in ((1.0, 0.085, 0.115), (0.7, 0.055, 0.085)):
        steps = autoregression.Steps(plan(steps=100, temperature=temperature), OBJECTIVE.config)
        fresh = [torch.randn(4000, 1, 2) for _ in range(99)]
        with torch.no_grad():
            found = steps.drawn(
                lambda x, time: head(x, time.expand(len(x)), condition.expand(len(x), -1, -1)),
                torch.randn(4000, 1, 2),
                fresh,
            )[:, 0]
        up = found[:, 0] > 0
        assert 0.45 <= up.float().mean() <= 0.57
        for some, mean in ((found[up], where), (found[~up], -where)):
            assert torch.allclose(some.mean(0), mean, atol=0.03)
            assert ((some.std(0) > low) & (some.std(0) < high)).all()
    regressed = data(100_000).mean(0)
    assert regressed.abs().max() < 0.02  # what the least square error predicts is in neither mode


class Alone(nn.Module):
    """A head as a network."""

    def __init__(self, head):
        super().__init__()
        self.denoised = head


# --- the objective ---------------------------------------------------------------------------------------------------


def test_only_hidden_tokens_count_and_as_many_as_are_asked_for():
    made = masked_autoregression.Settings(mask_least=0.3)
    order = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
    for share in (0.3, 0.501, 1.0):
        hidden = masked_autoregression.hidden_places(made, order, share)
        assert hidden.shape == (4, math.ceil(16 * share)) and all(len(set(row.tolist())) == len(row) for row in hidden)
    raster = made.model_copy(update={"order": "raster"})
    assert masked_autoregression.hidden_places(raster, order, 0.25)[0].tolist() == [12, 13, 14, 15]
    assert masked_autoregression.hidden_places(raster, order, 0.0001)[0].tolist() == [15]


def test_shares_are_those_of_a_cut_normal_distribution():
    from scipy.stats import truncnorm

    for given in ({}, {"mask_mean": 0.5, "mask_deviation": 0.1, "mask_least": 0.2}, {"mask_deviation": 100.0}):
        made = masked_autoregression.Settings(**given)
        low, high = ((end - made.mask_mean) / made.mask_deviation for end in (made.mask_least, 1.0))
        theirs = truncnorm(low, high, made.mask_mean, made.mask_deviation)
        for quantile in (0.0, 0.1, 0.5, 0.99):
            assert masked_autoregression.hidden_share(made, quantile) == pytest.approx(theirs.ppf(quantile), abs=1e-6)


@pytest.mark.parametrize("order", ["random", "raster"])
def test_held_out_errors_do_not_depend_on_chance_and_fall(order):
    noise, text, null = inputs(batch=16)
    made = masked_autoregression.Settings(order=order, mask_least=0.2)
    torch.manual_seed(0)
    network = SMALL.build()
    objective = masked_autoregression.Objective(network, None, made)
    latents = 0.3 * noise + 1

    def held_out():
        time = torch.full((16,), 500)
        return masked_autoregression.held_out_error(made, network, OBJECTIVE, latents, text, time, noise).mean()

    with torch.no_grad():
        before = held_out()
        assert torch.equal(before, held_out())
    adam = torch.optim.Adam(network.parameters(), 3e-3)
    for update in range(40):
        batch = LatentBatch(latents, text, null, torch.Generator().manual_seed(update))
        adam.zero_grad()
        objective.generator_loss(batch).backward()
        adam.step()
    with torch.no_grad():
        assert held_out() < 0.5 * before
    assert all(p.grad is not None for p in network.parameters())


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"order": "raster"}, "order: solver ddim does not read it; expected solver autoregressive"),
        ({"iterations": 3}, "iterations: solver ddim does not read it"),
        ({"solver": "dpm++", "temperature": 0.9}, "temperature: solver dpm\\+\\+ does not read it"),
        (
            {"solver": "autoregressive", "order": "raster", "iterations": 8},
            "order raster draws one token after .* got 8",
        ),
        ({"solver": "autoregressive", "cache": {"name": "fora"}}, "cache: solver autoregressive does not read it"),
        (
            {"solver": "autoregressive", "guidance_interval": [1, 2]},
            "guidance_interval: solver autoregressive does not",
        ),
        ({"solver": "autoregressive", "iterations": 0}, "iterations: expected greater than or equal to 1, got 0"),
        ({"solver": "autoregressive", "order": "spiral"}, "order: expected 'random' or 'raster', got 'spiral'"),
    ],
)
def test_plans_that_cannot_be_are_one_line(given, words):
    with pytest.raises(InputError, match=words) as caught:
        Document("study.yaml", given).validate(Plan, given)
    assert "\n" not in str(caught.value)


def test_other_networks_and_objectives_are_refused():
    noise, text, null = inputs()
    with pytest.raises(InputError, match="sampling.solver: autoregressive draws token by token, which this network"):
        draw(lambda latents, time, text: latents, plan(), noise, text, null)
    with pytest.raises(InputError, match="sampling.solver: autoregressive, but denoising never tells"):
        check_drawing("denoising", plan())
    with pytest.raises(InputError, match="trains networks that draw token by token"):
        masked_autoregression.Objective(nn.Identity(), None, masked_autoregression.Settings())
    raster = masked_autoregression.Settings(order="raster")
    with pytest.raises(InputError, match="sampling.order: random, but objective.order is raster"):
        masked_autoregression.check_plan(raster, plan())
    masked_autoregression.check_plan(raster, plan(order="raster", iterations=None))
    masked_autoregression.check_plan(raster, Plan())


def test_later_fields_are_written_only_where_they_say_something():
    assert Plan().model_dump() == {"solver": "ddim", "steps": 25, "guidance": 3.0}
    told = Plan(solver="autoregressive", iterations=16, guidance_schedule="linear")
    assert told.model_dump() == Plan().model_dump() | {
        "solver": "autoregressive", "iterations": 16, "guidance_schedule": "linear",
    }  # fmt: skip
