"""The study file as typed settings. Whatever is wrong in it becomes one line: file, line, key, value, what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from nas.cost import latency_table
from nas.diffusion.plan import Plan
from nas.documents import study_name
from nas.documents.quantities import count
from nas.documents.section import Section
from nas.documents.strict import Location
from nas.errors import InputError, about
from nas.networks.backbones import Backbone
from nas.networks.conditioning import Conditioning
from nas.search.prior import Belief
from nas.search.racing import Racing
from nas.search.stopping import Stopping
from nas.settings import design
from nas.settings.entries import Entry
from nas.settings.tracking import Tracking
from nas.settings.training import Training

LEARNING = ("tpe", "nsga2", "gp", "pool")  # samplers that what was trained tells something
CHOOSING = ("pool", "evolution")  # samplers that ask for every trial with its parameters: none is refused or repeated
LATER = {
    "evolution": "evolution",
    "from_": "from",
    "prior": "prior",
}  # keys of a search that older ones lack, as a study file names them


class Proxy(Section):
    """How the deploy-scale architecture is trained cheaply."""

    width_divisor: int = Field(8, ge=1)
    """Every width of the deploy-scale network is divided by this."""


class Deploy(Section):
    """The scale at which costs and budgets are counted."""

    image_size: int = Field(512, ge=64, le=8192)
    """Pixels along one side of the generated image."""
    downsampling: int = Field(8, ge=1, le=64)
    """Pixels per latent position along one side."""
    text_tokens: int = Field(77, ge=1, le=4096)
    """Text tokens the cross-attention reads."""
    latency: Path | None = None
    """A table of blocks that `nas latency SPACE --blocks FILE` wrote on the device to deploy on; it adds the cost
    `latency_ms` of one call of the denoiser, for budgets and objectives."""

    @model_validator(mode="after")
    def _divides(self) -> Deploy:
        if self.image_size % self.downsampling:
            raise ValueError(
                f"image_size: expected a multiple of downsampling, {self.downsampling}, got {self.image_size}"
            )
        return self

    @property
    def latent_size(self) -> int:
        return self.image_size // self.downsampling

    def costs(self, config: Backbone) -> dict[str, Any]:
        """Costs of one call of a deploy-scale denoiser, by column.

        Raises InputError when its latents cannot be halved as often as it asks, and when the table of latencies has not all.
        """
        try:
            found = asdict(config.cost(self.latent_size, self.text_tokens))
        except ValueError as error:
            raise InputError(
                f"deploy.image_size: {self.image_size} with downsampling {self.downsampling}: {error}"
            ) from None
        return found if self.latency is None else {**found, latency_table.COLUMN: self._table().latency_ms(config)}

    def latency_conditions(self) -> dict[str, dict[str, Any]]:
        """Where and how the latencies were measured, as a run records what its scores depend on; {} without a table."""
        if self.latency is None:
            return {}
        table = self._table()
        told = {name: getattr(table, name) for name in ("runtime", "threads", "clock", "device", "fingerprint")}
        return {latency_table.COLUMN: {"unit": "ms", "higher_is_better": False, **told}}

    def _table(self) -> latency_table.Table:
        assert self.latency is not None
        with about("deploy.latency"):
            table = latency_table.load(self.latency)
        if (table.latent_size, table.text_tokens) != (self.latent_size, self.text_tokens):
            raise InputError(
                f"deploy.latency: {self.latency} is of latents of side {table.latent_size} and {table.text_tokens} text tokens, "
                f"the study deploys at {self.latent_size} and {self.text_tokens}"
            )
        return table


class Evaluation(Section):
    """What every trial of the study draws and is scored on; the same captions and noise for all."""

    images: int = Field(256, ge=2, le=1_000_000)
    """Images sampled at each rung."""
    split: Literal["train", "held_out"] = "train"
    """Which captions are drawn."""
    seed: int = 0
    """Chooses the captions and the initial noise."""
    references: int | None = Field(None, ge=64)
    """Real pictures that distances are taken to, in whole batches of 64. None: all of the training split."""


class Pool(Section):
    """The candidates that `sampler: pool` chooses from."""

    looks: int | None = Field(None, ge=1, le=100_000)
    """Candidates to look at first. None: as many as take a quarter of the trainings' time, counted in calls of the denoiser.
    Where no candidate promises much, or none is left, more are looked at later."""
    images: int = Field(32, ge=1, le=100_000)
    """Pictures of a look: the first of those that trials are scored on, drawn in the same way; at most all of them."""


class Evolution(Section):
    """How `sampler: evolution` makes the study's base smaller: SnapFusion's architecture evolution (Li et al. 2023, arXiv
    2306.00980, section 4.1). A trial trains the network of the trial before without the blocks that were worth least."""

    target: float = Field(gt=0)
    """The cost at which nothing more is removed: milliseconds of `latency_ms`, of another column a share of what the base costs
    there."""
    cost: str = "macs"
    """What removals are to save: a column of costs, such as `macs`, or `latency_ms` with `deploy.latency`."""
    quality: str | None = None
    """The score whose loss is weighed against that. None: the one score among the objectives."""
    group: int = Field(1, ge=1, le=1_000)
    """Removals of different axes that are done at once, the least valuable first (SnapFusion does not report its number)."""
    images: int | None = Field(None, ge=1, le=100_000)
    """Pictures of a look at a removal: the first of those that trials are scored on, drawn in the same way. None: all of
    them."""
    runtime: str | None = None
    """The runtime that the blocks of `deploy.latency` were timed on, as the table names it; another table is refused. None: any
    will do."""


class Search(Section):
    """Which architectures are asked for, and what a good one is."""

    sampler: Literal["tpe", "nsga2", "gp", "random", "pool", "evolution"] = "tpe"
    """Optuna's TPE, NSGA-II or Gaussian processes (`gp`, the slowest to ask). `random` is the honest baseline: the same
    study, seeds and budget without a model of the space. `pool` looks cheaply at slices of a supernet, many more than it
    trains, and trains those that are expected to add most to the front. `evolution` trains one network in rounds, and removes
    the blocks that are worth least until it reaches a target."""
    pool: Pool = Pool()
    evolution: Evolution | None = None
    """How far `sampler: evolution` goes, and by what it chooses, for example {target: 0.6}."""
    start: tuple[str, ...] = ()
    """Networks that are tried first: presets, YAML files with an architecture, runs (all that they trained to the end), or
    folders of a run's trials, such as its `front`."""
    from_: tuple[str, ...] = Field((), alias="from")
    """Folders of earlier runs of the same space, under the same conditions. The sampler knows their finished trials from the
    beginning; they are no trials of this run, are not counted and stand in none of its tables. `sampler: pool` also takes over
    what was looked at, and trains no network of theirs again."""
    prior: dict[str, Belief] = {}
    """Likely values of axes, which are tried more often at first and are forgotten as trainings end: an axis, its value and how
    confident you are (low, medium or high). For example {ffn_ratio: {value: 2, confidence: high}}."""
    plan: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    """Fields of `sampling` with the values each may take, searched beside the architecture: a trial is a network with the way it
    is drawn, and `drawing_macs` what a picture costs it. For example {steps: [4, 10], cache: [null, {name: fora, every: 2}]}."""
    trials: int = Field(16, ge=1, le=1_000_000)
    """Architectures to train, in total, over all resumptions. Refused and repeated candidates are not counted."""
    minimise: tuple[str, ...] = ()
    """Columns to make small: any metric or cost."""
    maximise: tuple[str, ...] = ()
    """Columns to make large."""
    repeats: int = Field(0, ge=0, le=1_000)
    """Times an architecture that is suggested again is trained again with another seed; after that its result is reused."""
    max_refusals: int = Field(1_000, ge=1, le=1_000_000)
    """Candidates in a row that may be refused or repeated before the search gives up. Samplers `pool` and `evolution` ask for
    none that could be."""

    @model_validator(mode="after")
    def _has_objectives(self) -> Search:
        columns = self.minimise + self.maximise
        if not columns:
            raise ValueError("expected at least one column in minimise or maximise")
        if len(set(columns)) < len(columns):
            raise ValueError(f"a column is named twice: {', '.join(columns)}")
        if self.max_refusals != type(self).model_fields["max_refusals"].default and self.sampler in CHOOSING:
            raise ValueError(
                f"max_refusals: sampler {self.sampler} does not read it; expected one of: tpe, nsga2, gp, random"
            )
        if self.pool != Pool() and self.sampler != "pool":
            raise ValueError(f"pool: sampler {self.sampler} does not read it; expected sampler pool")
        if self.evolution is not None and self.sampler != "evolution":
            raise ValueError(f"evolution: sampler {self.sampler} does not read it; expected sampler evolution")
        if self.evolution is None and self.sampler == "evolution":
            raise ValueError(
                "evolution: required by sampler evolution, but not given; expected for example {target: 0.6}"
            )
        return self

    @model_validator(mode="after")
    def _learns_from_what_it_is_told(self) -> Search:
        for key, given in (("from", self.from_), ("prior", self.prior)):
            if given and self.sampler not in LEARNING:
                raise ValueError(
                    f"{key}: sampler {self.sampler} learns nothing; expected one of: {', '.join(LEARNING)}"
                )
        return self

    @model_serializer(mode="wrap")
    def _written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """By the names of the study file, and without what was not there before and is not given: searches that were recorded
        before it read and compare as they did."""
        written: dict[str, Any] = plain(self)
        named = {LATER.get(name, name): value for name, value in written.items()}
        return {name: value for name, value in named.items() if name not in LATER.values() or value}

    @property
    def objectives(self) -> dict[str, str]:
        """Column -> 'minimise' or 'maximise'."""
        return {column: "minimise" for column in self.minimise} | {column: "maximise" for column in self.maximise}


class Base(Section):
    """A model that is trained once, before any trial: trials start from it (`training.init: base`) or learn from it."""

    architecture: str | dict[str, Any] | None = None
    """As the study's `architecture`, which it is unless given."""
    objective: Entry = Entry(name="denoising")
    """What its training minimises."""
    training: Training = Training()
    """How it is trained; it may itself start from the supernet."""
    sampling: Plan | None = None
    """How it is drawn for its own scores, the reference line of the report, beside `sampling` of the study."""
    checkpoint: Path | None = None
    """Trained already: a folder that `nas export` wrote, or its weights.safetensors. Nothing is trained then."""


class Study(Section):
    """One study: everything that decides its result."""

    name: Annotated[str, AfterValidator(study_name.checked)]
    """Names the folder of its runs: letters, digits, spaces and `. _ + -`; the study's folder unless given."""
    question: str = ""
    """What the study asks, in one sentence."""
    space: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """A search space: a name in search_spaces/ or a path to a YAML file; a list of them is searched as one space, so that
    families of networks stand on one front. An ablation needs one only to start from the supernet of that space."""
    architecture: str | dict[str, Any] | None = None
    """For an ablation, the network its cells change: a preset (`nas cost` takes the same names), a YAML file such as a
    run's best.yaml, or a mapping; the base of `space` unless given."""
    dataset: Entry
    """The captioned pictures: a name in nas/datasets, with its settings."""
    autoencoder: Entry = Entry(name="kl")
    """Between pictures and latents: a name in nas/networks/autoencoders."""
    conditioning: Conditioning = Conditioning()
    """What the denoiser is told of a picture: the frozen text encoder, and whether an embedding of the picture too."""
    prior: Entry = Field(Entry(name="none"), exclude_if=lambda entry: entry == Entry(name="none"))
    """What makes an embedding of a picture of a caption, where `conditioning.image` asks for one: a name in nas/priors. It is
    trained once, on the training pictures, for all trials."""
    proxy: Proxy = Proxy()
    deploy: Deploy = Deploy()
    objective: Entry = Entry(name="denoising")
    """What training minimises: a name in nas/objectives."""
    training: Training = Training()
    sampling: Plan = Plan()
    """How every trial's network is drawn from for its scores."""
    evaluation: Evaluation = Evaluation()
    metrics: tuple[Entry, ...] = Field((Entry(name="fid"), Entry(name="clip_score")), min_length=1)
    """What the pictures are scored by: names in nas/metrics."""
    budget: dict[str, Annotated[float, BeforeValidator(count)]] = {}
    """Upper limits on deploy-scale costs, for example params: 400M. A candidate over budget is never trained."""
    base: Base | None = None
    search: Search | None = None
    """Architectures that a sampler chooses. A study has one of `search` and `ablation`."""
    ablation: design.Settings | None = None
    """Fixed cells, each trained several times."""
    stopping: Stopping = Stopping()
    racing: Racing = Racing()
    """Repeats after the search, of architectures whose place on the front is undecided."""
    tracking: Tracking = Tracking()
    """Logging to Weights & Biases."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Trials that run side by side on this machine. None: one per core, or one per GPU."""
    worker_memory: Annotated[float, BeforeValidator(count), Field(ge=256e6)] | None = None
    """Bytes a worker process may hold, for example 8G; a trial that needs more fails. None: no bound but the machine's."""
    worker_threads: int = Field(1, ge=1, le=1024)
    """CPU threads of every trial, however many run side by side: another number of threads adds up in another order, so scores
    differ in their last digits. More than one pays where a machine has more cores than trials, beside GPUs for example."""
    worker_cpus: float | None = Field(None, gt=0, le=1024)
    """CPU cores a trial holds on a Ray cluster (`--engine ray`). None: as many as `worker_threads`."""
    worker_gpus: float | None = Field(None, ge=0, le=1)
    """GPUs a trial holds on a Ray cluster; 0.5: two trials share one. None: one where the cluster has any. A trial trains on
    one GPU at most."""
    seed: int = 0
    """Decides, with the architecture and the repeat, the seed of every training."""

    @property
    def objectives(self) -> dict[str, str]:
        """Column -> 'minimise' or 'maximise': what a good trial is."""
        asked = self.search or self.ablation
        return asked.objectives if asked else {}

    @property
    def look_images(self) -> int:
        """Pictures of a look at what is not trained, at most all that trials are scored on."""
        assert self.search is not None
        own = self.search.evolution.images if self.search.evolution is not None else self.search.pool.images
        return min(own or self.evaluation.images, self.evaluation.images)

    @property
    def trials(self) -> int:
        """Networks to train, in total."""
        if self.search is not None:
            return self.search.trials
        return design.size(self.ablation) * self.ablation.repeats if self.ablation is not None else 0

    def menu_entries(self) -> Iterable[tuple[Location, str, Entry]]:
        """(location, folder, entry) of every menu choice in the study."""
        yield ("dataset",), "datasets", self.dataset
        yield ("autoencoder",), "autoencoders", self.autoencoder
        yield ("objective",), "objectives", self.objective
        if self.prior != Entry(name="none"):
            yield ("prior",), "priors", self.prior
        if self.base is not None:
            yield ("base", "objective"), "objectives", self.base.objective
        for index, metric in enumerate(self.metrics):
            yield ("metrics", index), "metrics", metric

    def resolved(self) -> dict[str, Any]:
        """Every setting with its default filled in, as plain YAML-able values."""
        plain: dict[Any, Any] = self.model_dump(mode="json")
        for location, folder, entry in self.menu_entries():
            full = {"name": entry.name, **entry.settings(folder).model_dump(mode="json")}
            if len(location) == 1:
                plain[location[0]] = full
            else:
                plain[location[0]][location[1]] = full
        if self.ablation is not None:
            plain["ablation"]["reference"] = self.ablation.reference_levels
        return plain
