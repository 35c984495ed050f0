"""What a validation error says to a user: the key, the allowed values and the nearest spelling."""

import difflib
import typing
from types import UnionType
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, schema: type[BaseModel], source: str) -> str:
    """One line for each mistake, `source: key: what is wrong`."""
    return "\n".join(f"{source}: {_line(detail, schema)}" for detail in error.errors())


def _line(detail: dict[str, Any], schema: type[BaseModel]) -> str:
    loc = detail["loc"]
    # A union's tag is a step of pydantic's, not a key that the user wrote.
    tags = {i for i, part in enumerate(loc) if any(_has_tag(model, part) for model in _models_at(schema, loc[:i]))}
    keys = [str(part) for i, part in enumerate(loc) if i not in tags]
    if detail["type"] == "extra_forbidden":
        allowed = sorted({name for model in _models_at(schema, loc[:-1]) for name in model.model_fields})
        return f"{_dotted(keys)}: unknown key; allowed: {', '.join(allowed)}{_nearest(keys[-1], allowed)}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"{_dotted(keys)}: this key is required"
    if detail["type"] == "literal_error":
        allowed = [word.strip("'") for word in detail["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return f"{_dotted(keys)}: {detail['input']!r} is not allowed; allowed: {', '.join(allowed)}" + _nearest(
            str(detail["input"]), allowed
        )
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        allowed = [word.strip("'") for word in detail["ctx"].get("expected_tags", "").split(", ")]
        given = str(detail["ctx"].get("tag", ""))
        key = f"{_dotted(keys)}.{detail['ctx']['discriminator'].strip(chr(39))}"
        if not given:
            return f"{key}: this key is required"
        return f"{key}: {given!r} is not allowed; allowed: {', '.join(allowed)}{_nearest(given, allowed)}"
    prefix = f"{_dotted(keys)}: " if keys else ""
    shown = "" if isinstance(detail["input"], dict | list) else f"{detail['input']!r}: "
    return f"{prefix}{shown}{message[:1].lower()}{message[1:]}"


def _dotted(keys: list[str]) -> str:
    return ".".join(keys)


def _nearest(word: str, allowed: list[str]) -> str:
    found = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def _models_at(annotation: Any, loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """The models that a key path may lead to; list positions and union tags are stepped over."""
    models = _models_in(annotation)
    if not loc:
        return models
    named = [model.model_fields[loc[0]].annotation for model in models if loc[0] in model.model_fields]
    # A position in a list names no field, nor does a union's tag, which names the model: the rest of the path goes on.
    inside = named or [model for model in models if _has_tag(model, loc[0])] or models
    return [model for part in inside for model in _models_at(part, loc[1:])]


def _has_tag(model: type[BaseModel], tag: int | str) -> bool:
    return any(typing.get_args(field.annotation) == (tag,) for field in model.model_fields.values())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, UnionType, list, tuple, dict, typing.Annotated):
        return [model for part in typing.get_args(annotation) for model in _models_in(part)]
    return []
