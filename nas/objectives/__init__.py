"""Training objectives, one file each. The training loop never names one.

A file provides

- `Settings`: a frozen pydantic model; a `Lora` in it is of adapters of the teacher or of a network like it;
- `noise_schedule(settings)`: the diffusers scheduler whose configuration a sampler must use;
- `Objective(generator, teacher, settings)`, with `pictures` too if it requires them or has a setting `perceptual`: an
  `nn.Module` with `requires` (a frozenset of `INPUTS` that a study must supply; what is not among them is refused before anything
  is trained), `schedule_config` (that scheduler's configuration), `generator_loss(batch) -> scalar`, `critics` (the other
  networks that learn, by name: a discriminator, a fake score, other experts; {} for none), `logged` (detached scalars of the last
  losses, by name), `after_step()`, `guided_drawing` (whether what it trains is still a denoiser, made to be drawn with guidance),
  `solvers` (those of plans that it is made for), `measures_progress` (whether a lower generator loss means a better network),
  `finishes` (whether it makes what is drawn of more than its generator) and `finished(lessons)`, which makes it, and `passes`:
  the network passes that one image costs in a generator update and the critics' turns that belong to it. A forward pass counts 1,
  a backward pass to the weights 1, to the input 1; plain denoising has 3. Heads and embeddings count nothing, nor do the image
  decoder and a network that looks at pictures. `passes_of(updates)` is their mean over a training, of an objective whose updates
  differ. An objective that learns from pairs, or searches at the end, also has `offline_passes`, those spent outside the updates,
  in all;
- `check(settings, updates)`, if a training of so many updates can be wrong for it, and `check_plan(settings, plan)`, if a way of
  drawing can: raise InputError;
- `check_teacher(settings, own, taught)`, if a teacher can be: given what the stages put out (`nas.networks.stages.shapes`);
- `held_out_error(settings, network, schedule, latents, text, time, noise)`, if the loss of held-out pictures is not
  `nas.diffusion.schedule.denoising_error`.

What is logged has one name in all files: `gan_loss_gen` and `gan_loss_disc` of a game, `critic_accuracy_fake` and `_real` of
its critic, `vsd_loss` of a difference of scores, `distillation_loss`, `regression_loss` and `reconstruction_loss` of what is
drawn to an answer.

What an objective trains or moves is a submodule, and is saved with a checkpoint; only those of `FROZEN`, which never change,
are not. Randomness comes from the batch's generator, and what depends on the update's number from the batch's `update`, so
that a resumed training is the uninterrupted one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from nas import menu
from nas.diffusion import schedule
from nas.diffusion.guidance import Denoiser, guided
from nas.diffusion.plan import ALONG_A_PATH, AUTOREGRESSIVE, ONE_STEP, Plan
from nas.errors import InputError
from nas.networks.conditioning import Text


@dataclass(frozen=True)
class LatentBatch:
    """What one update sees. `generator` is the only source of randomness an objective may use."""

    latents: Tensor  # (B, C, H, W), unit variance
    text: Text  # tokens (B, T, D), pooled (B, P); already replaced by the null caption where dropped
    null: Text  # the null caption, one row
    generator: Generator
    update: int = 0  # number of this update, from 0
    start: Tensor | None = None  # of pairs: the noise (B, C, H, W) that the teacher drew the latents from

    def to(self, device: torch.device | str) -> "LatentBatch":
        """The batch on another device; the generator stays, so that every device sees the same numbers."""
        text, null = (Text(one.tokens.to(device), one.pooled.to(device)) for one in (self.text, self.null))
        start = None if self.start is None else self.start.to(device)
        return replace(self, latents=self.latents.to(device), text=text, null=null, start=start)

    def split(self, parts: int) -> "list[LatentBatch]":
        """The batch in at most `parts` pieces of about the same size, which draw from its generator one after the other."""
        if parts == 1:
            return [self]
        rows = torch.arange(len(self.latents), device=self.latents.device).chunk(parts)
        return [
            replace(
                self,
                latents=self.latents[some],
                text=Text(self.text.tokens[some], self.text.pooled[some]),
                start=None if self.start is None else self.start[some],
            )
            for some in rows
        ]

    @property
    def unconditional(self) -> Text:
        """The null caption for every row."""
        return Text(*(one.expand(len(self.latents), *one.shape[1:]) for one in self.null))

    def times(self, low: int, high: int) -> Tensor:
        """Uniform random times (B,) in low .. high - 1."""
        time = torch.randint(low, high, self.latents.shape[:1], generator=self.generator)
        return time.to(self.latents.device)

    def draw(self, steps: int) -> tuple[Tensor, Tensor]:
        """Uniform random times (B,) in 0 .. steps - 1, and noise of the latents' shape."""
        return self.times(0, steps), self.noise()

    def noise(self) -> Tensor:
        """Fresh noise of the latents' shape."""
        return torch.randn(self.latents.shape, generator=self.generator).to(self.latents.device)


INPUTS = {  # what a study can supply
    "teacher": "the trained network that a `base` section names",
    "base": "a `base` section for the teacher, of another architecture where one likes, from which nothing need start",
    "tokens": "a network that draws token by token (`nas.networks.backbones.Autoregressor`)",
    "pictures": "the image decoder, for what learns from pixels (`Pictures`), also where its setting `perceptual` is given",
    "pairs": "noise, and what the base draws from it: the batch's `start` and `latents` (setting `pairs` of the objective)",
}


@dataclass(frozen=True)
class Pictures:
    """What an objective that learns from pixels is given beside its networks: frozen, and no part of a checkpoint."""

    decoder: nn.Module  # latents (B, C, H, W) -> pictures (B, 3, H f, W f) in [-1, 1]
    pooled_width: int  # of a caption


FROZEN = ("teacher", "decoder", "feature_network", "perceptual")  # submodules that never change


@dataclass(frozen=True)
class Critic:
    """A network that learns beside the generator, and how. It is a submodule of the objective."""

    network: nn.Module
    loss: Callable[[LatentBatch], Tensor]
    updates: int = 1  # its updates in a row, each before a generator update
    every: int = 1  # generator updates from one turn of its to the next
    learning_rate: float = 1.0  # times the generator's
    betas: tuple[float, float] | None = None  # AdamW's; None: the generator's
    averaged: bool = False  # whether a moving average is kept of it as of the generator, and is what `finished` finds


class Objective(Protocol):
    """What the training loop relies on (see the module docstring)."""

    requires: frozenset[str]
    logged: dict[str, Tensor]

    @property
    def generator(self) -> nn.Module: ...

    @property
    def critics(self) -> Mapping[str, Critic]: ...

    @property
    def schedule_config(self) -> dict[str, Any]: ...

    def generator_loss(self, batch: LatentBatch) -> Tensor: ...

    def after_step(self) -> None: ...

    def finished(self, lessons: Callable[[int], LatentBatch]) -> nn.Module: ...

    def passes_of(self, updates: int) -> float: ...

    def named_children(self) -> Iterator[tuple[str, nn.Module]]: ...


def takes_pictures(name: str, settings: Any) -> bool:
    """Whether an objective of the menu, with these settings, learns from pixels."""
    required = menu.pick("objectives", name).Objective.requires
    return "pictures" in required or getattr(settings, "perceptual", None) is not None


def held_out_error(name: str, settings: Any) -> Callable[..., Tensor]:
    """The squared errors of held-out pictures, as an objective of the menu has them (see the module docstring)."""
    own = getattr(menu.pick("objectives", name), "held_out_error", None)
    return schedule.denoising_error if own is None else partial(own, settings)


def check_drawing(name: str, sampling: Plan) -> None:
    """Raises InputError where what an objective of the menu trains knows no path, and is to be drawn along one; where it has
    guidance inside, and is to be drawn with it again; and where it is one network, and is to be drawn by several."""
    made = menu.pick("objectives", name).Objective
    if sampling.steps > 1 and sampling.solver in ALONG_A_PATH and sampling.solver not in made.solvers:
        raise InputError(
            f"sampling.solver: {sampling.solver} in {sampling.steps:,} steps, but {name} makes a generator that predicts clean "
            f"latents at once; expected {' or '.join(made.solvers)}"
        )
    if sampling.solver == AUTOREGRESSIVE and AUTOREGRESSIVE not in made.solvers:
        raise InputError(
            f"sampling.solver: {AUTOREGRESSIVE}, but {name} never tells the network a token that is known; expected another "
            "solver, or objective masked_autoregression"
        )
    if sampling.experts is not None and not made.finishes:
        raise InputError(
            f"sampling.experts: {name} trains one network; expected none, or objective deme with merge none"
        )
    if sampling.guidance != 1 and not made.guided_drawing:
        raise InputError(
            f"sampling.guidance: {sampling.guidance:g}, but {name} makes a generator that is drawn without guidance; expected 1"
        )


class Lone(nn.Module):
    """What objectives share that train a generator by a noise schedule: no critic, no teacher, and nothing else that moves."""

    requires: frozenset[str] = frozenset()
    solvers: tuple[str, ...] = ONE_STEP
    guided_drawing = False
    measures_progress = False
    finishes = False

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: schedule.Settings):
        super().__init__()
        self.generator = generator
        self.schedule = schedule.noise_schedule(settings)
        self.logged: dict[str, Tensor] = {}

    @property
    def critics(self) -> dict[str, Critic]:
        return {}

    @property
    def schedule_config(self) -> dict[str, Any]:
        return dict(self.schedule.config)

    @property
    def steps(self) -> int:
        """Training times of the schedule."""
        return int(self.schedule.config["num_train_timesteps"])

    @property
    def passes(self) -> float:
        return 3.0

    def passes_of(self, updates: int) -> float:
        """`passes`, in the mean over a training of so many updates."""
        return self.passes

    def after_step(self) -> None:
        """Nothing moves besides the generator."""

    def finished(self, lessons: Callable[[int], LatentBatch]) -> nn.Module:
        """The network that is scored and saved where a training pauses or ends, averages in the place of weights.

        `lessons(count)` is a fixed batch of what was learned from, the same for every training of a study.
        """
        return self.generator


class Distillation(Lone):
    """What objectives share whose generator starts as a trained network, their teacher, that stays as it is.

    Raises InputError without a teacher.
    """

    requires = frozenset({"teacher"})

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: schedule.Settings):
        super().__init__(generator, teacher, settings)
        if teacher is None:
            name = type(self).__module__.rpartition(".")[2]
            raise InputError(f"objective: {name} needs a teacher, the trained network it starts from, and got none")
        self.teacher = teacher

    def clean(self, network: Denoiser, noisy: Tensor, time: Tensor, text: Text) -> Tensor:
        """The clean latents (B, C, H, W) that a network predicts from noisy ones at times (B,), float32."""
        return schedule.clean(self.schedule, noisy, time, network(noisy, time, text))

    @torch.no_grad()
    def guided(
        self, network: Denoiser, noisy: Tensor, time: Tensor, batch: LatentBatch, scale: Tensor | float
    ) -> Tensor:
        """The same under guidance, without gradients."""
        return schedule.clean(self.schedule, noisy, time, guided(network, noisy, time, batch.text, batch.null, scale))

    def noised(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """x_t of clean latents at times (B,)."""
        noisy: Tensor = self.schedule.add_noise(latents, noise, time)
        return noisy
