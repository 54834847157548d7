"""Objectives of several networks in the training loop: turns, resuming, precision."""

import pytest
import torch
from safetensors import safe_open
from test_training import (
    QUICK,
    Denoiser,
    assert_identical,
    encoded,
    module_of,
    on_the_cpu,  # noqa: F401 (fixtures)
    weights,
)
from torch import nn

from nas.networks import lora
from nas.objectives import Critic, ufogen
from nas.training.batches import Batches
from nas.training.loop import train


class Duel(nn.Module):
    """A toy with two networks: the critic tells latents from what the generator makes of noise; the generator fools it."""

    requires = frozenset()
    schedule_config = {}

    def __init__(self, **pace):
        super().__init__()
        self.pace, self.logged = pace or {"updates": 2}, {}
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.critic = nn.Sequential(nn.Flatten(), nn.Linear(32, 1))
        self.generator = Denoiser()
        self.calls = []

    @property
    def critics(self):
        return {"critic": Critic(self.critic, self.critic_loss, **self.pace)}

    def made(self, batch):
        time, noise = batch.draw(1000)
        return self.generator(noise, time, batch.text)

    def generator_loss(self, batch):
        self.calls.append("generator")
        return nn.functional.softplus(-self.critic(self.made(batch))).mean()

    def critic_loss(self, batch):
        self.calls.append("critic")
        real, fake = self.critic(batch.latents), self.critic(self.made(batch).detach())
        return (nn.functional.softplus(-real) + nn.functional.softplus(fake)).mean()

    def after_step(self):
        self.calls.append("after")


def test_critic_and_generator_take_turns_and_both_learn():
    module = module_of(objective=Duel())
    before = weights(module)
    train(module, encoded(), 5, 24)
    assert module.objective.calls == ["critic", "critic", "generator", "after"] * 3
    after = weights(module)
    for name in ("network.generator.first.weight", "network.critic.1.weight", "ema.first.weight"):
        assert not torch.equal(before[name], after[name]), name
    assert not any(name.startswith("ema.") and "critic" in name for name in after)
    assert module.images_seen == 24


@pytest.mark.parametrize(
    "pace",
    [
        {"updates": 2},
        {"every": 2, "learning_rate": 0.5, "betas": (0.0, 0.9)},
        {"updates": 3, "every": 3, "learning_rate": 4},
    ],
)
def test_the_critics_update_leaves_the_generator_and_the_other_way_round(pace):
    """Against a plain loop with two optimisers."""
    module, data = module_of(objective=Duel(**pace)), encoded()
    train(module, data, 5, 16)  # in two parts: the critic's turns are counted from the beginning
    train(module, data, 5, 40)
    duel, sums = Duel(**pace), {}
    pace = duel.critics["critic"]
    optimizers = {
        "critic": torch.optim.AdamW(duel.critic.parameters(), betas=pace.betas or QUICK.betas, weight_decay=0.01),
        "generator": torch.optim.AdamW(duel.generator.parameters(), betas=QUICK.betas, weight_decay=0.01),
    }
    rates = {"critic": pace.learning_rate, "generator": 1.0}
    for update, batch in enumerate(Batches(data, QUICK, 5, 0, 5)):
        assert batch.update == update
        turn = pace.updates if update % pace.every == 0 else 0
        for name in ("critic",) * turn + ("generator",):
            duel.zero_grad()
            loss = (duel.critic_loss if name == "critic" else duel.generator_loss)(batch)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(getattr(duel, name).parameters(), 1.0)
            optimizers[name].param_groups[0]["lr"] = 0.01 * min(1, (update + 1) / 4) * rates[name]
            optimizers[name].step()
            sums.setdefault(f"{name}_loss", []).append(loss.item())
            sums.setdefault(f"{name}_gradient_norm", []).append(norm.item())
    logged = module.logged()
    assert logged == pytest.approx({name: sum(values) / len(values) for name, values in sums.items()}, rel=1e-5)
    assert module.logged() == {}  # the next ones are of the next updates
    for mine, theirs in zip(module.objective.parameters(), duel.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


class Trio(Duel):
    """A second critic, slower than the first, of the same kind."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.fake_score = nn.Sequential(nn.Flatten(), nn.Linear(32, 32))

    @property
    def critics(self):
        return {
            "critic": Critic(self.critic, self.critic_loss),
            "fake_score": Critic(self.fake_score, self.score, every=2),
        }

    def score(self, batch):
        self.calls.append("fake_score")
        return (self.fake_score(self.made(batch).detach()) - batch.latents.flatten(1)).square().mean()


def test_three_networks_learn_each_in_its_turn_and_go_on_where_they_were(tmp_path):
    whole, half, resumed = (module_of(objective=Trio()) for _ in range(3))
    before = weights(whole)
    train(whole, encoded(), 5, 32)
    turn = ["critic", "fake_score", "generator", "after", "critic", "generator", "after"]
    assert whole.objective.calls == turn * 2
    names = ("network.generator.first.weight", "network.critic.1.weight", "network.fake_score.1.weight")
    assert not any(torch.equal(before[name], weights(whole)[name]) for name in names)
    assert {"critic_loss", "fake_score_loss", "generator_loss"} <= set(whole.logged())
    train(half, encoded(), 5, 16)
    half.save(tmp_path / "half.safetensors", {})
    resumed.restore(tmp_path / "half.safetensors")
    train(resumed, encoded(), 5, 32)
    assert_identical(weights(resumed), weights(whole))


def test_a_resumed_duel_is_the_uninterrupted_one(tmp_path):
    whole, half, resumed = (module_of(objective=Duel()) for _ in range(3))
    train(whole, encoded(), 5, 48)
    train(half, encoded(), 5, 24)
    half.save(tmp_path / "half.safetensors", {})
    resumed.restore(tmp_path / "half.safetensors")
    train(resumed, encoded(), 5, 48)
    assert_identical(weights(resumed), weights(whole))


class Last(Denoiser):
    """A denoiser that names its last layer, as backbones do."""

    @property
    def output(self):
        return self.last


def adversarial(options, rank=None, settings=QUICK):
    network, teacher = Last(), Last().requires_grad_(False)
    if rank:
        lora.adapt(network, lora.Lora(rank=rank), seed=1)
    return module_of(settings, ufogen.Objective(network, teacher, ufogen.Settings(**options)))


def test_a_checkpoint_with_adapters_holds_them_alone(tmp_path):
    module = adversarial({"reconstruction": "ema_distill"}, rank=2)
    train(module, encoded(), 5, 16)
    module.save(tmp_path / "adapters.safetensors", {})
    with safe_open(tmp_path / "adapters.safetensors", "pt") as file:
        names = list(file.keys())
    mine = [name for name in names if name.startswith(("generator.", "ema.", "average."))]
    assert len(mine) == 3 * 2 * 3  # three layers, an A and a B each
    assert all("lora_" in name for name in mine) and not any(name.startswith("teacher") for name in names)
    frozen = dict(Last().named_parameters())
    for name, parameter in module.objective.generator.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, frozen[name.replace("base_layer.", "")])
