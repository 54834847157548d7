"""How the networks of a sweep are drawn: which plans of sampling, from what was asked on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from nas import menu
from nas.diffusion.plan import MOST_GUIDANCE, MOST_STEPS, ONE_STEP, Plan
from nas.documents import yaml_text
from nas.documents.document import Document
from nas.documents.yaml_text import NotRead
from nas.errors import InputError, bounded

SCALES = (1.0, 2.0, 3.0, 5.0, 7.5)
EVERYWHERE = Plan().guidance_interval


@dataclass(frozen=True)
class Ways:
    """What was asked for. Without `values`, every network in its own way, in one step and in `steps`, at every scale; with
    them, by its own plan with every combination of the values."""

    scales: Sequence[float] | None = None
    """None: SCALES, or with `values` the network's own."""
    steps: Sequence[int] = ()
    """Beside its own."""
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Of fields of the plan."""

    def plans(self, own: Plan) -> tuple[list[Plan], list[str]]:
        """Every plan that a network is drawn by whose own is `own`, and why numbers of steps and combinations of values are
        none."""
        if not self.values:
            found, wrong = plans(own, self.steps)
            scales = SCALES if self.scales is None else self.scales
            made, none = _made((f"--scales {scale:g}", plan, {"guidance": scale}) for plan in found for scale in scales)
            return made, [*wrong, *none]
        steps = {"steps": [own.steps, *self.steps]} if self.steps else {}
        scales_ = {"guidance": self.scales} if self.scales is not None else {}
        return crossed(own, {**self.values, **steps, **scales_})


def crossed(own: Plan, values: Mapping[str, Sequence[Any]]) -> tuple[list[Plan], list[str]]:
    """The plan with every combination of values that a plan can have, and what is wrong with the others."""
    found, wrong = [], []
    for combination in product(*values.values()):
        given = dict(zip(values, combination, strict=True))
        try:
            plan = own.changed(**given)
        except InputError as error:
            wrong.append(str(error))
            continue
        # without guidance an interval of it says nothing
        found.append(plan.changed(guidance_interval=EVERYWHERE) if plan.guidance == 1 else plan)
    return list(dict.fromkeys(found)), list(dict.fromkeys(wrong))


def ways_of(scales: str | None, steps: str | None, texts: Sequence[str]) -> Ways:
    """What the options --scales, --steps and --set say together. Raises InputError."""
    values = values_of(texts)
    for option, given, name in (("--scales", scales, "guidance"), ("--steps", steps, "steps")):
        if given is not None and name in values:
            raise InputError(bounded(f"{option} {given}: --set says {name} too; expected one of the two"))
    return Ways(None if scales is None else scales_of(scales), [] if steps is None else steps_of(steps), values)


def scales_of(text: str) -> list[float]:
    """`1,2,7.5` as ascending numbers without repetition. Raises InputError."""
    try:
        scales = sorted({float(part) for part in text.split(",")})
    except ValueError:
        scales = []
    if not scales or not all(0 <= scale <= MOST_GUIDANCE for scale in scales):
        raise InputError(
            f"--scales {text}: expected numbers from 0 to {MOST_GUIDANCE}, with commas between them, such as 1,2,3,5,7.5"
        )
    return scales


def steps_of(text: str) -> list[int]:
    """`1,2,4` as ascending whole numbers without repetition. Raises InputError."""
    try:
        steps = sorted({int(part) for part in text.split(",")})
    except ValueError:
        steps = []
    if not steps or not 1 <= steps[0] <= steps[-1] <= MOST_STEPS:
        raise InputError(
            f"--steps {text}: expected whole numbers from 1 to {MOST_STEPS}, with commas between them, such as 1,2,4"
        )
    return steps


def values_of(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`solver=ddim,heun` and `guidance_interval=[0, 999],[200, 799]` as values by field. Raises InputError."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, separator, given = text.partition("=")
        if not separator:
            raise InputError(bounded(f"--set {text}: expected FIELD=VALUE,VALUE, such as solver=ddim,heun"))
        if name not in Plan.model_fields:
            known = menu.nearest(name, list(Plan.model_fields))
            raise InputError(bounded(f"--set {text}: a plan of sampling has no {name!r}{known}"))
        if name in found:
            raise InputError(bounded(f"--set {text}: {name} was given before; expected all its values in one --set"))
        found[name] = _values(name, given, text)
    return found


def _values(name: str, given: str, text: str) -> list[Any]:
    """The values of one field, each as a plan has it."""
    try:
        values = yaml_text.read(f"[{given}]").value
    except NotRead as error:
        raise InputError(bounded(f"--set {text}: {error.problem}")) from None
    if not isinstance(values, list) or not values:
        raise InputError(bounded(f"--set {text}: expected values with commas between them"))
    place = Document("--set", {}, {"": f"--set {text}: "})
    read = [getattr(place.validate(Plan, {name: value} | _beside(name, value)), name) for value in values]
    return list(dict.fromkeys(read))


def _beside(name: str, value: Any) -> dict[str, int]:
    """What a value that has an entry for every evaluation needs beside it to be read: as many steps."""
    rows = value.get("rows") if name == "cache" and isinstance(value, dict) else value if name == "experts" else None
    return {"steps": len(rows)} if isinstance(rows, list) and rows else {}


def plans(own: Plan, steps: Sequence[int] = ()) -> tuple[list[Plan], list[str]]:
    """How a network that is drawn by `own` enters a sweep: so, in one step if that is another plan, and in each of `steps`; and
    why not in some of them, where it has a schedule with a row for each of its own steps for example.

    One step is one way whatever the solver: the clean latents predicted from pure noise.
    """
    single = Plan(solver="one_step")
    one = [] if own.solver in ONE_STEP else [single]
    asked, wrong = _made(
        (f"--steps {count}", single if count == 1 else own, {"steps": count}) for count in steps if count != own.steps
    )
    different = {(plan.solver, plan.steps): plan for plan in (own, *one, *asked)}
    return list(different.values()), wrong


def _made(asked: Iterable[tuple[str, Plan, Mapping[str, Any]]]) -> tuple[list[Plan], list[str]]:
    """Plans with other fields, and what is wrong with those that cannot be, each with the option that asked for it."""
    found, wrong = [], []
    for option, plan, fields in asked:
        try:
            found.append(plan.changed(**fields))
        except InputError as error:
            wrong.append(f"{option}: {error}")
    return found, list(dict.fromkeys(wrong))
