import copy
import inspect
from dataclasses import replace
from typing import Literal, get_args, get_origin

import pytest
import torch
from torch import nn

from nas import menu
from nas.diffusion import schedule
from nas.diffusion.plan import Plan
from nas.networks.conditioning import Text
from nas.objectives import FROZEN, INPUTS, LatentBatch, Pictures, denoising

SHAPE = (3, 4, 4)


class Denoiser(nn.Module):
    """A small network that reads all of its inputs."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(SHAPE[0], SHAPE[0], 3, padding=1)
        self.text = nn.Linear(5, SHAPE[0])
        self.time = nn.Linear(1, SHAPE[0])
        self.middle, self.middle_width = nn.Tanh(), SHAPE[0]
        self.output = nn.Conv2d(SHAPE[0], SHAPE[0], 1)

    @property
    def stages(self):
        return {"whole": self.middle}

    def forward(self, latents, time, text):
        given = self.text(text.tokens.mean(1) + text.pooled) + self.time(time[:, None] / 1000)
        return self.output(self.middle(self.convolution(latents) + given[:, :, None, None]))


class TokenDenoiser(Denoiser):
    """The same as an `Autoregressor`: its tokens are positions, conditions come of a convolution over those that are known."""

    def tokens(self, latents):
        return latents.flatten(2).transpose(1, 2)

    def latents(self, tokens):
        return tokens.transpose(1, 2).unflatten(2, SHAPE[1:])

    def conditions(self, tokens, known, text):
        seen = torch.zeros_like(tokens[..., :1]) if known is None else known[..., None].float()
        given = self.text(text.tokens.mean(1) + text.pooled)
        return self.tokens(self.convolution(self.latents(torch.where(seen > 0, tokens, 1.0)))) + given[:, None]

    def denoised(self, tokens, time, conditions):
        given = conditions + self.time(time.reshape(len(time), -1, 1) / 1000)
        return nn.functional.linear(self.middle(tokens + given), self.output.weight.flatten(1), self.output.bias)


def network_of(module):
    """A network that an objective can train."""
    return TokenDenoiser() if "tokens" in module.Objective.requires else Denoiser()


def batch_of(size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(size, *SHAPE, generator=generator)
    text = Text(torch.randn(size, 2, 5, generator=generator), torch.randn(size, 5, generator=generator))
    null = Text(text.tokens[:1] / 2, text.pooled[:1] / 2)
    start = torch.randn(size, *SHAPE, generator=generator)
    return LatentBatch(latents, text, null, generator, start=start)


# --- every objective -------------------------------------------------------------------------------------------------


class Decoding(nn.Module):
    """A frozen image decoder of two layers, as good as any for gradients to pass through."""

    def __init__(self, channels=SHAPE[0]):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(8)
            self.layer = nn.ConvTranspose2d(channels, 3, 4, stride=4)
        self.requires_grad_(False)

    def forward(self, latents):
        return torch.tanh(self.layer(latents))


def inputs(module, channels=SHAPE[0], pooled=5):
    """What an objective of the menu is given beside its networks, whatever its settings."""
    if "pictures" not in inspect.signature(module.Objective).parameters:
        return {}
    return {"pictures": Pictures(Decoding(channels), pooled)}


def variants():
    """Every objective with its default settings, once with each other value that a choice among its settings has, and with a
    perceptual distance if it has one."""
    for name in menu.names("objectives"):
        yield name, {}
        fields = menu.pick("objectives", name).Settings.model_fields
        if "perceptual" in fields:
            yield name, {"perceptual": {}, **({"reflow_updates": 0} if "reflow_updates" in fields else {})}
        for field, info in fields.items():
            if get_origin(info.annotation) is Literal:
                yield from ((name, {field: value}) for value in get_args(info.annotation) if value != info.default)


@pytest.fixture(params=variants(), ids=lambda variant: "-".join((variant[0], *map(str, variant[1].values()))))
def made(request):
    """An objective with a generator and, where it asks for one, a teacher that is frozen."""
    name, options = request.param
    module = menu.pick("objectives", name)
    torch.manual_seed(0)
    teacher = Denoiser().requires_grad_(False) if "teacher" in module.Objective.requires else None
    made = module.Objective(network_of(module), teacher, module.Settings(**options), **inputs(module))
    made.given_teacher = [teacher]  # in a list, so that it is not registered
    with torch.no_grad():
        for parameter in made.generator.parameters():  # as if trained: some objectives start at a minimum
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def gradients(network):
    """Of the parameters that are trained."""
    return [parameter.grad for parameter in network.parameters() if parameter.requires_grad]


def test_the_contract(made):
    assert isinstance(made, nn.Module) and isinstance(made.requires, frozenset)
    assert made.requires <= set(INPUTS)
    assert isinstance(made.generator, Denoiser)
    children = dict(made.named_children())
    assert all(
        critic.network is children[name] and critic.network is not made.generator
        for name, critic in made.critics.items()
    )
    given = ["pictures"] if "pictures" in made.requires or hasattr(made, "perceptual") else []
    assert list(inspect.signature(type(made)).parameters) == ["generator", "teacher", "settings", *given]
    assert not any(p.requires_grad for role in FROZEN if role in children for p in children[role].parameters())
    assert made.schedule_config["num_train_timesteps"] == 1000
    assert made.logged == {}
    assert made.passes >= 3 and isinstance(made.measures_progress, bool) and isinstance(made.guided_drawing, bool)
    assert made.solvers and set(made.solvers) <= set(get_args(Plan.model_fields["solver"].annotation))
    assert "ddim" in made.solvers or not made.guided_drawing  # a denoiser knows the way from noise to pictures
    made.after_step()


def test_the_schedule_can_be_had_without_a_network():
    for name in menu.names("objectives"):
        module = menu.pick("objectives", name)
        teacher = Denoiser() if "teacher" in module.Objective.requires else None
        made = module.Objective(network_of(module), teacher, module.Settings(), **inputs(module))
        assert dict(module.noise_schedule(module.Settings()).config) == made.schedule_config


def test_the_generators_loss_is_a_finite_scalar_that_trains_all_of_it(made):
    undecided_no_more(made)
    loss = made.generator_loss(batch_of())
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients(made.generator))


def undecided_no_more(made):
    """A few updates of each critic, whose last layer may start at zero and let no gradient through, or whose game gives its
    bias none before a first logit is beyond the margin."""
    for critic in made.critics.values():
        adam = torch.optim.Adam([p for p in critic.network.parameters() if p.requires_grad], lr=1e-1)
        for _ in range(6):
            critic.loss(batch_of()).backward()
            adam.step()
            adam.zero_grad()


@pytest.mark.parametrize("update", [0, 1])
def test_only_the_network_whose_turn_it_is_receives_gradients(made, update):
    """The gradient-flow matrix: rows are phases, columns are the objective's networks and the teacher it was given."""
    undecided_no_more(made)
    losses = {"generator": made.generator_loss, **{name: critic.loss for name, critic in made.critics.items()}}
    for phase, loss_of in losses.items():
        made.zero_grad()
        assert learners(made, phase, loss_of, update) == {phase}


def learners(made, phase, loss_of, update):
    """The networks that receive gradients in a phase; all of the one whose turn it is, and nothing else changes."""
    flags = [parameter.requires_grad for parameter in made.parameters()]
    weights = copy.deepcopy(made.state_dict())
    batch = batch_of()
    loss = loss_of(replace(batch, update=update))
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    networks = dict(made.named_children())
    receives = {role: [gradient is not None for gradient in gradients(network)] for role, network in networks.items()}
    assert all(gradient is None for p in made.parameters() if not p.requires_grad for gradient in [p.grad])
    assert all(receives[phase]) and all(gradient.abs().sum() > 0 for gradient in gradients(networks[phase]))
    (teacher,) = made.given_teacher
    assert teacher is None or all(gradient is None for gradient in gradients(teacher))
    assert [parameter.requires_grad for parameter in made.parameters()] == flags
    assert all(torch.equal(value, weights[name]) for name, value in made.state_dict().items())
    return {role for role, got in receives.items() if any(got)}


def test_the_critic_is_not_the_teacher(made):
    (teacher,) = made.given_teacher
    for critic in made.critics.values():
        own = {id(p) for p in critic.network.parameters() if p.requires_grad}
        assert not own & {id(p) for p in made.generator.parameters()}
        assert teacher is None or not own & {id(p) for p in teacher.parameters()}


def test_what_is_logged_is_a_detached_scalar(made):
    for loss in (*(critic.loss for critic in made.critics.values()), made.generator_loss):
        loss(batch_of())
    assert all(value.shape == () and not value.requires_grad and value.isfinite() for value in made.logged.values())


def test_the_batchs_generator_is_the_only_randomness(made):
    undecided_no_more(made)
    torch.manual_seed(1)
    first = made.generator_loss(batch_of())
    torch.manual_seed(2)
    assert torch.equal(first, made.generator_loss(batch_of()))
    assert not torch.equal(first, made.generator_loss(batch_of(seed=1)))


def test_a_few_updates_lower_the_loss(made):
    if not made.measures_progress:
        pytest.skip("its loss says nothing about quality")
    adam = torch.optim.Adam(made.generator.parameters(), lr=3e-2)
    losses = []
    for _ in range(40):
        loss = made.generator_loss(batch_of(16))
        adam.zero_grad()
        loss.backward()
        adam.step()
        made.after_step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# --- batches ---------------------------------------------------------------------------------------------------------


def test_times_are_uniform_and_noise_is_normal():
    time, noise = batch_of(8000).draw(10)
    assert time.shape == (8000,) and noise.shape == (8000, *SHAPE)
    counts = torch.bincount(time, minlength=10)
    assert len(counts) == 10 and (counts - 800).abs().max() < 5 * 27  # standard deviation of a count: 27
    assert noise.mean().abs() < 0.01 and (noise.std() - 1).abs() < 0.01


def test_a_batch_moves_with_its_text_and_keeps_its_generator():
    batch = batch_of()
    moved = batch.to("cpu")
    assert moved.generator is batch.generator and torch.equal(moved.latents, batch.latents)
    assert torch.equal(moved.text.tokens, batch.text.tokens) and torch.equal(moved.text.pooled, batch.text.pooled)


# --- denoising -------------------------------------------------------------------------------------------------------


class Knows(nn.Module):
    """The answer, from the clean latents; it must invert the noising by itself."""

    def __init__(self, clean, made, prediction):
        super().__init__()
        self.clean, self.made, self.prediction = clean, made, prediction

    def forward(self, latents, time, text):
        alpha = self.made.alphas_cumprod[time].view(-1, 1, 1, 1)
        noise = (latents - alpha.sqrt() * self.clean) / (1 - alpha).sqrt()
        return noise if self.prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * self.clean


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_who_knows_the_answer_has_no_loss(prediction):
    settings, batch = schedule.Settings(prediction=prediction), batch_of(64)
    network = Knows(batch.latents, schedule.noise_schedule(settings), prediction)
    assert denoising.Objective(network, None, settings).generator_loss(batch) < 1e-6


def test_stable_diffusions_schedule():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    made = schedule.noise_schedule(schedule.Settings())
    torch.testing.assert_close(made.alphas_cumprod, torch.cumprod(1 - betas, 0))
    assert made.alphas_cumprod[-1] == pytest.approx(0.00466, abs=1e-5)  # its known terminal signal


def test_zero_terminal_snr_ends_in_pure_noise():
    made = schedule.noise_schedule(schedule.Settings(zero_terminal_snr=True))
    plain = schedule.noise_schedule(schedule.Settings())
    assert made.alphas_cumprod[-1] == 0
    torch.testing.assert_close(made.alphas_cumprod[0], plain.alphas_cumprod[0])
    root = plain.alphas_cumprod.sqrt()  # Lin et al. 2024, algorithm 1
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    torch.testing.assert_close(made.alphas_cumprod.sqrt(), expected, atol=1e-4, rtol=1e-3)


def test_zero_terminal_snr_needs_v():
    """At the last step x = e, so a network that predicts e learns nothing and nothing can be drawn from it."""
    with pytest.raises(ValueError, match="zero_terminal_snr"):
        schedule.Settings(prediction="epsilon", zero_terminal_snr=True)


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_noisy_latents_and_targets_by_hand(prediction):
    made = schedule.noise_schedule(schedule.Settings(prediction=prediction))
    clean, noise = torch.randn(4, *SHAPE), torch.randn(4, *SHAPE)
    time = torch.tensor([0, 10, 500, 999])
    noisy, target = schedule.corrupted(made, clean, time, noise)
    for row, t in enumerate(time):
        a, s = made.alphas_cumprod[t].sqrt(), (1 - made.alphas_cumprod[t]).sqrt()
        torch.testing.assert_close(noisy[row], a * clean[row] + s * noise[row])
        expected = noise[row] if prediction == "epsilon" else a * noise[row] - s * clean[row]
        torch.testing.assert_close(target[row], expected)


def test_the_loss_is_the_mean_of_the_squared_errors():
    settings = schedule.Settings()
    made, network = schedule.noise_schedule(settings), Denoiser()
    batch = batch_of(5)
    time, noise = batch_of(5).draw(1000)
    noisy, target = schedule.corrupted(made, batch.latents, time, noise)
    expected = (network(noisy, time, batch.text) - target).square().mean()
    torch.testing.assert_close(denoising.Objective(network, None, settings).generator_loss(batch), expected)
    error = schedule.denoising_error(network, made, batch.latents, batch.text, time, noise)
    assert error.shape == batch.latents.shape
    torch.testing.assert_close(error.mean(), expected)


@pytest.mark.parametrize("options", [{"prediction": "x0"}, {"predictions": "v"}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        schedule.Settings(**options)
