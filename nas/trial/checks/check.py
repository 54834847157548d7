"""Everything that can be known to be wrong with a study before it starts. Nothing is written before this has passed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import cycle
from typing import TYPE_CHECKING, Any

from nas import menu
from nas.cost.budget import over_budget
from nas.diffusion.plan import Plan
from nas.documents.document import Placed
from nas.errors import InputError, shown
from nas.networks import lora, stages
from nas.networks.backbones import Backbone, Proxy
from nas.numbers import amount
from nas.objectives import INPUTS, check_drawing
from nas.settings import beliefs, design, design_check, plan_axes, plausible
from nas.settings.entries import Entry
from nas.settings.study import Study
from nas.settings.training import OF_BASE
from nas.space.search_space import SearchSpace
from nas.training import block_drop
from nas.trial import base_model
from nas.trial.checks import data_check, image_check
from nas.trial.given import starts
from nas.weights import checkpoints, inheritance, parts, supernet

if TYPE_CHECKING:
    from torch import nn

ANY_DATA = {"latent_channels": 4, "text_width": 8, "pooled_width": 8}  # for shapes that don't depend on the data
PROBED_CACHES = 20  # of these, that are asked for their units
PROBED_STUDENTS = 20  # of these, that are compared with a base of another architecture
PROBES = 2_000  # candidates counted on paper, to catch a budget nothing meets


def check(study: Study, space: SearchSpace | None) -> None:
    """Raises InputError that begins with the setting, and says its value and what was expected."""
    plausible.check(study)
    parts.check(study)
    if space is not None and space.family[0] != "backbones":
        raise InputError(f"space: {space.name!r} holds {space.family[0]}, not denoisers; a study trains denoisers")
    if study.ablation is not None:
        check_cells(study)
    elif space is not None:
        _check_search(study, space)


def _check_search(study: Study, space: SearchSpace) -> None:
    members = probe(study, space)
    plan_axes.check(study)
    ends = [part.architecture(end) for part in space.parts for end in (part.largest(), part.smallest())]
    ways = plan_axes.ways(study)
    for way in ways:
        for network in ends:
            plan_axes.costs(study, network, way)
    assert study.search is not None
    if "cache" not in study.search.plan:
        plan_axes.check_networks(study, study.sampling, [*ends, *members[:PROBED_CACHES]])
    costs = [plan_axes.costs(study, member, way) for member, way in zip(members, cycle(ways), strict=False)]
    known = _numbers(costs[0])
    _named("budget", study.budget, known)
    _columns(study, known)
    _meetable(study, space, costs)
    _check_proxy(study, space, members)
    _check_start(study)
    if study.base is not None:
        check_base(study)
    for way in ways:
        check_drawing(study.objective.name, plan_axes.plan(study, way))
        _check_plan(study.objective, plan_axes.plan(study, way))
    starts.members(study, space)
    beliefs.of(study, plan_axes.extended(study, space))
    if study.training.sliced:
        supernet.weights_path(study.training.init, study.space, study.dataset.name)
    largest = [part.architecture(part.largest()) for part in space.parts]
    for network in [*ends, *members[:PROBED_STUDENTS]]:
        if study.training.init == "base":
            _check_weights(study, network)
        _check_student(study, network)
        data_check.check_codes(study, network)
    for network in largest:
        _check_tokens(study.objective, study, network)
        _check_adapters(study, network)
    for network in ends:
        _check_block_drop(study, network)
        image_check.check(study, network)
    data_check.check(study, largest)


def _numbers(cost: dict[str, Any]) -> list[str]:
    return [name for name, value in cost.items() if isinstance(value, int | float)]


def check_cells(study: Study) -> None:
    """Whether every cell of an ablation can be trained: within budget, divisible by the proxy, and from where it starts."""
    assert study.ablation is not None
    networks = design.architectures(study)
    costs = {name: study.deploy.costs(config) for name, config in networks.items()}
    known = _numbers(next(iter(costs.values())))
    _named("budget", study.budget, known)
    _columns(study, [])
    if study.base is not None:
        check_base(study)
    seen = set()
    for cell in design.cells(study.ablation):
        with _of_cell(study.ablation, cell):
            if over := over_budget(costs[cell.name], study.budget):
                raise InputError(f"budget: over it: {over}")
            variant, network = design.changed(study, cell.settings), networks[cell.name]
            parts.check(variant)
            data_check.check_codes(variant, network)
            plan_axes.check_networks(variant, variant.sampling, [network])
            plausible.check(variant)
            image_check.check(variant, network)
            _check_start(variant)
            _check_tokens(variant.objective, variant, network)
            _check_weights(variant, network)
            _check_student(variant, network)
            _check_adapters(variant, network)
            _check_block_drop(variant, network)
            data = json.dumps([variant.model_dump(mode="json")[name] for name in design.ENCODED], default=str)
            if data not in seen:
                data_check.check(variant, [network])
            seen.add(data)


@contextmanager
def _of_cell(settings: design.Settings, cell: design.Cell) -> Iterator[None]:
    """Inside, an InputError names the cell, and begins with the level that gives the setting it is about, if one does."""
    try:
        yield
    except Placed:
        raise
    except InputError as error:
        path, _, message = str(error).partition(": ")
        for name, level in cell.levels.items():
            factor = settings.factors[name]
            given = next((own for own in factor.overrides(level) if path == own or path.startswith(f"{own}.")), None)
            if given is not None:
                place = design_check.place_of(name, factor, factor.names.index(level), given)
                raise InputError(f"{'.'.join(map(str, place))}: cell {cell.name!r}: {error}") from None
        raise InputError(f"{path}: cell {cell.name!r}: {message}") from None


@contextmanager
def _of_base() -> Iterator[None]:
    """Inside, an InputError about `training` is about `base.training`."""
    try:
        yield
    except Placed:
        raise
    except InputError as error:
        raise InputError(f"base.{str(error).removeprefix('base.')}") from None


def check_base(study: Study) -> None:
    """Whether the base model can be trained, and is the same for all cells."""
    assert study.base is not None
    data = {path.partition(".")[0] for path in design.varied(study.ablation)} if study.ablation else set()
    for section in sorted(data & {*design.ENCODED, "proxy"}):
        raise InputError(f"base: cells that differ in {section} cannot share one base model")
    if study.base.training.init in OF_BASE:
        raise InputError("base.training.init: the base cannot start from itself; expected scratch or supernet")
    if "teacher" in menu.pick("objectives", study.base.objective.name).Objective.requires:
        raise InputError(f"base.objective: {study.base.objective.name} needs a teacher, and the base is the first")
    if not menu.pick("objectives", study.base.objective.name).Objective.guided_drawing:
        raise InputError(
            f"base.objective: {study.base.objective.name} makes a generator of few steps, which cannot teach; expected denoising"
        )
    if study.base.checkpoint is not None:
        checkpoints.checkpoint_file(study.base.checkpoint)
    _check_tokens(study.base.objective, study, base_model.architecture(study), "base.objective")
    with _of_base():
        _check_weights(base_model.as_study(study), base_model.architecture(study))
        image_check.check(base_model.as_study(study), base_model.architecture(study))
        _check_block_drop(base_model.as_study(study), base_model.architecture(study))
        for plan in (study.base.sampling or study.sampling, study.sampling):
            plan_axes.check_networks(study, plan, [base_model.architecture(study)])


def _check_start(study: Study) -> None:
    """Whether what asks for a base model has one, and an objective what it needs."""
    entry = study.objective
    module = menu.pick("objectives", entry.name)
    needs = module.Objective.requires
    if strange := sorted(needs - set(INPUTS)):
        raise InputError(
            f"objective: {entry.name} needs {' and '.join(strange)}, which no study supplies; supplied are: {', '.join(INPUTS)}"
        )
    if study.base is None and study.training.init in OF_BASE:
        raise InputError(f"training.init: {study.training.init}: the study has no base section")
    if study.base is None and "base" in needs:
        raise InputError(f"objective: {entry.name} learns from a base, and the study has no base section")
    if study.base is None and study.training.init == "scratch" and "teacher" in needs:
        raise InputError(
            f"objective: {entry.name} starts from a trained network, but training.init is scratch and the study has no "
            "base section; expected base, supernet or a path to supernet weights"
        )
    if study.base is None and "pairs" in needs:
        raise InputError(f"objective: {entry.name} learns from what a base draws, and the study has no base section")
    if study.base is not None and "teacher" in needs and "base" not in needs and study.training.init == "scratch":
        raise InputError(f"training.init: scratch, but {entry.name} goes on from its teacher; expected base")
    if study.base is not None and ("teacher" in needs or study.training.init in OF_BASE):
        _check_prediction(entry, study.base.objective)
    check_drawing(entry.name, study.sampling)
    _check_plan(entry, study.sampling)
    if (own := getattr(module, "check", None)) is not None:
        own(entry.settings("objectives"), study.training.updates(study.training.images_seen))


def _check_plan(entry: Entry, plan: Plan) -> None:
    """Whether a network that an objective trains can be drawn so, as far as the objective's settings say."""
    if (own := getattr(menu.pick("objectives", entry.name), "check_plan", None)) is not None:
        own(entry.settings("objectives"), plan)


def _check_tokens(entry: Entry, study: Study, config: Backbone, section: str = "objective") -> None:
    """Whether a network draws token by token, where its objective needs one that does."""
    if "tokens" not in menu.pick("objectives", entry.name).Objective.requires:
        return
    if config.units(study.deploy.latent_size, study.deploy.text_tokens).autoregression is None:
        raise InputError(
            f"{section}: {entry.name} trains networks that draw token by token, which this family cannot; expected denoising, "
            "or a family of networks that can"
        )


def _check_prediction(entry: Entry, base: Entry) -> None:
    """Whether a network that goes on from the base means the same by its output."""
    own, taught = entry.settings("objectives"), base.settings("objectives")
    for name in ("prediction", "zero_terminal_snr"):
        has, wants = getattr(own, name), getattr(taught, name)
        if has != wants:
            raise InputError(f"objective.{name}: {has!r}, but its teacher is trained with {wants!r} (base.objective)")


def _check_weights(study: Study, config: Backbone) -> None:
    """Whether a network divides by the proxy, and has the shapes of the weights it is to start from."""
    wanted, init = _scaled(study, config), study.training.init
    if init == "base":
        base = _scaled(study, base_model.architecture(study))
        shapes = [checkpoints.shapes(supernet.skeleton(network)) for network in (base, wanted)]
        if difference := checkpoints.first_difference(*shapes):
            raise InputError(
                f"training.init: base: the base model is another architecture: {difference}; expected the same, or "
                "training.init: inherited for one with blocks removed"
            )
    elif study.training.sliced:
        path = supernet.weights_path(init, study.space, study.dataset.name)
        supernet.check_covers(config, path, str(study.space), study.proxy.width_divisor)


def _scaled(study: Study, config: Backbone) -> Backbone:
    """The proxy of a network, for any data. Raises InputError where it does not divide."""
    try:
        return config.scaled(Proxy(study.proxy.width_divisor, **ANY_DATA))
    except ValueError as error:
        raise InputError(f"proxy.width_divisor: {error}") from None


def _check_student(study: Study, config: Backbone) -> None:
    """Whether a network that is not the base can have its weights, and learn from it."""
    if study.base is None:
        return
    own, taught_by = _scaled(study, config), _scaled(study, base_model.architecture(study))
    student, teacher = supernet.skeleton(own), supernet.skeleton(taught_by)
    if study.training.init == "inherited" and not (
        study.search and study.search.evolution
    ):  # that has members beyond its base
        inheritance.check(student, teacher, inheritance.sources(own, taught_by))
    entry = study.objective
    if (check_teacher := getattr(menu.pick("objectives", entry.name), "check_teacher", None)) is not None:
        side = study.deploy.latent_size
        check_teacher(entry.settings("objectives"), *(_stages(network, side) for network in (own, taught_by)))


@lru_cache(maxsize=32)  # a teacher is the same for all cells
def _stages(config: Backbone, side: int) -> stages.Shapes:
    return stages.shapes(supernet.skeleton(config), config, side)


def _check_adapters(study: Study, config: Backbone) -> None:
    """Whether adapters fit a network, and its objective's the teacher; only the names of layers matter here."""
    if study.training.lora is not None:
        if study.training.init == "scratch":
            raise InputError(
                "training.lora: adapters of a network that was never trained, training.init is scratch; expected base, "
                "supernet or a path to supernet weights"
            )
        lora.targets(_skeleton(study, config), study.training.lora)
    for setting, adapters in lora.inside(study.objective.settings("objectives"), "objective"):
        taught_by = config if study.base is None else base_model.architecture(study)
        lora.targets(_skeleton(study, taught_by), adapters, setting)


def _check_block_drop(study: Study, config: Backbone) -> None:
    """Whether a network has blocks that can be left out."""
    if study.training.block_drop is not None:
        block_drop.check(_skeleton(study, config))


def _skeleton(study: Study, config: Backbone) -> nn.Module:
    return supernet.skeleton(config.scaled(Proxy(study.proxy.width_divisor, **ANY_DATA)))


def probe(study: Study, space: SearchSpace) -> list[Backbone]:
    """Random members."""
    rng = random.Random(study.seed)
    return [space.architecture(space.sample(rng)) for _ in range(PROBES)]


def check_pool(study: Study) -> None:
    """Whether a search that looks at slices has a supernet; `check` is also for studies that train one. Raises InputError."""
    if study.search is None or study.search.sampler != "pool":
        return
    if isinstance(study.space, tuple) and len(study.space) > 1:
        raise InputError(
            "search.sampler: pool looks at slices of one space's supernet; expected another sampler for several"
        )
    if not study.training.sliced:
        raise InputError(
            f"search.sampler: pool looks at slices of a supernet, but training.init is {study.training.init}; expected another "
            "sampler, or training.init: supernet or a path to supernet weights"
        )


def _check_proxy(study: Study, space: SearchSpace, members: Sequence[Backbone]) -> None:
    """Whether members have a proxy."""
    proxy = Proxy(study.proxy.width_divisor, **ANY_DATA)
    for member in members:
        try:
            member.scaled(proxy)
        except ValueError as error:
            raise InputError(f"proxy.width_divisor: a member of space {space.name!r}: {error}") from None


def _named(section: str, given: Sequence[str] | dict[str, float], known: list[str]) -> None:
    places = given if isinstance(given, dict) else range(len(given))
    for name, place in zip(given, places, strict=True):
        if name not in known:
            raise InputError(f"{section}.{place}: unknown column {shown(name)}{menu.nearest(name, known)}")


def _columns(study: Study, costs: list[str]) -> None:
    metrics = {}
    for entry in study.metrics:
        for column in menu.pick("metrics", entry.name).columns(entry.settings("metrics")):
            if column in metrics:
                raise InputError(f"metrics: two of them give the column {column!r}")
            metrics[column] = entry
    known = [*metrics, *(["denoising_loss"] if _one_loss(study) else []), *costs]
    asked, section = (study.search, "search") if study.search else (study.ablation, "ablation")
    assert asked is not None
    _check_loss(study, section)
    _named(f"{section}.minimise", asked.minimise, known)
    _named(f"{section}.maximise", asked.maximise, known)


def _check_loss(study: Study, section: str) -> None:
    """Whether the denoising loss is not asked for of networks that are no denoisers."""
    made = menu.pick("objectives", study.objective.name).Objective
    if "denoising_loss" in study.objectives and _one_loss(study) and not made.guided_drawing:
        raise InputError(
            f"{section}.{study.objectives['denoising_loss']}: denoising_loss, but {study.objective.name} trains no denoiser, "
            "so that it says nothing; expected columns of metrics or costs"
        )


def _one_loss(study: Study) -> bool:
    """Whether all trials have the same denoising loss: what they predict and from which latents is not varied."""
    varied = design.varied(study.ablation) if study.ablation else []
    return not any(path.partition(".")[0] in ("objective", *design.ENCODED) for path in varied)


def _meetable(study: Study, space: SearchSpace, costs: list[dict[str, Any]]) -> None:
    if not all(over_budget(cost, study.budget) for cost in costs):
        return
    refused = {name: sum(cost[name] > limit for cost in costs) for name, limit in study.budget.items()}
    why = ", ".join(f"{name} over {amount(study.budget[name])}: {count}" for name, count in refused.items() if count)
    least = ", ".join(f"{name} {amount(min(cost[name] for cost in costs))}" for name in study.budget)
    raise InputError(
        f"budget: none of {PROBES:,} random candidates of space {space.name!r} meets it ({why}); the least seen: {least}"
    )
