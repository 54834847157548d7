"""Models from what people write, stricter than pydantic: no boolean is a number, and numbers are finite. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from nas import menu
from nas.errors import brief, shown

Location = tuple[int | str, ...]
Decay = Annotated[float, Field(ge=0, lt=1)]  # one of AdamW's betas
WORDS = {  # of kinds of errors that pydantic explains to whoever wrote the model
    "model_type": "a section of keys and values",
    "dict_type": "keys and values",
    "tuple_type": "a list",
    "list_type": "a list",
    "too_short": "at least one",
    "int_parsing_size": "a whole number below 2^63",
    "path_type": "a path",
}


def validated(model: type[Any], content: Any) -> Any:
    """`content` as a `model`. Raises pydantic's ValidationError, also for a boolean that became a number, and for infinity."""
    made = model.model_validate(content)
    for location, given, wanted in _misread(content, made, ()):
        error = PydanticCustomError("number", "Input should be {wanted}", {"wanted": wanted})
        raise ValidationError.from_exception_data(
            model.__name__, [{"type": error, "loc": location, "input": given}]
        ) from None
    return made


def _misread(given: Any, made: Any, here: Location) -> Iterator[tuple[Location, Any, str]]:
    """(location, value, what was wanted) of every value that is another in the model than it was meant to be."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            yield from _misread(value, _inside(made, key), (*here, key))
    elif isinstance(given, list | tuple):
        for index, value in enumerate(given):
            yield from _misread(value, _inside(made, index), (*here, index))
    elif isinstance(made, bool) or not isinstance(made, int | float):
        return
    elif isinstance(given, bool):
        yield here, given, "a number"
    elif not math.isfinite(made):
        yield here, given, "a finite number"


def _inside(made: Any, key: Any) -> Any:
    """What a model made of a key or an item; None where it made something else."""
    if isinstance(made, BaseModel):
        return getattr(made, str(key), None)
    if isinstance(made, Mapping):
        return made.get(key)
    if isinstance(made, list | tuple) and isinstance(key, int) and key < len(made):
        return made[key]
    return None


def expected(model: type[BaseModel], error: Any) -> str:
    """What pydantic found wrong, in words for the author of the file."""
    kind = error["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        return f"unknown key{menu.nearest(str(error['loc'][-1]), keys_at(model, error['loc'][:-1]))}"
    if kind == "missing":
        return "required, but not given"
    message = str(error["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return message
    plain = message.removeprefix("Input should be ").partition(", unable")[0].partition(", got")[0]
    return f"expected {WORDS.get(kind, plain)}, got {shown(error['input'])}"


def keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """The keys a section at `location` may have."""
    for step in location:
        field = model.model_fields.get(str(step))
        if field is None:
            continue  # an item of a list, or a name in a mapping
        inside = next(models(field.annotation), None)
        if inside is None:
            return []
        model = inside
    return [named(name, field) for name, field in model.model_fields.items()]


def named(name: str, field: FieldInfo) -> str:
    """A field as people write it: `from_` is `from`."""
    return field.alias or name


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation: of `Search | None` Search, of `tuple[Stage, ...]` Stage."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models(argument)


def first_wrong(model: type[BaseModel], error: ValidationError) -> str:
    """The first key that is wrong and what was expected there, as the end of one line."""
    first = error.errors()[0]
    said = str(first["msg"]) if first["type"] == "json_invalid" else expected(model, first)
    steps = [step for step in map(str, first["loc"]) if step.isidentifier() or step.isdigit()]  # else a union's branch
    return ": ".join(filter(None, [".".join(steps), brief(ValueError(said))]))
