"""What a validation error says to a user: the key, the allowed values and the nearest spelling.

Loading: YAML with one `base:`, dotted overrides, and errors that name the key and the nearest spelling.
"""

import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from facelt.errors import UserError


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


Schema = TypeVar("Schema", bound=BaseModel)
MAX_BASES = 8


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader that refuses a key given twice, where YAML would keep the last one silently."""


def _strict_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _strict_mapping)


def load_config(path: Path | None, schema: type[Schema], overrides: Sequence[str] = ()) -> Schema:
    """The validated configuration in a YAML file.

    `base:` names another YAML file, relative to this one, whose values are the defaults. Mappings merge key by key,
    lists are replaced whole. An override is `dotted.key=value`, its value read as YAML; a number steps into a list
    (`stages.1.epochs=3`). Without a file the overrides are all there is.

    Raises UserError: missing or malformed file, unknown key, value out of range; the message names the key, what is
    allowed there and the nearest spelling.
    """
    values = {} if path is None else _read(Path(path), depth=0)
    for override in overrides:
        _apply(values, override)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, schema, source=str(path or "command line"))) from None


def _read(path: Path, depth: int) -> dict[str, Any]:
    if depth > MAX_BASES:
        raise UserError(f"{path}: more than {MAX_BASES} levels of `base:`; does a file name itself?")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys at the top, found {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: base: expected the name of one YAML file, found {base!r}")
    return _merge(_read(path.parent / base, depth + 1), values)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _apply(values: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    keys = dotted.split(".")
    if not separator or not all(keys):
        raise UserError(f"--set {override}: expected KEY=VALUE, for example optim.lr=0.05")
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML") from None
    place: Any = values
    for key in keys[:-1]:
        place = _step(place, key, override)
    if isinstance(place, list):
        place[_position(place, keys[-1], override)] = value
    elif isinstance(place, dict):
        place[keys[-1]] = value
    else:
        raise UserError(f"--set {override}: {keys[-1]!r} lies below a plain value")


def _step(place: Any, key: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_position(place, key, override)]
    if isinstance(place, dict):
        if place.get(key) is None:
            place[key] = {}
        return place[key]
    raise UserError(f"--set {override}: {key!r} lies below a plain value")


def _position(place: list, key: str, override: str) -> int:
    if not key.isdecimal() or int(key) >= len(place):
        raise UserError(f"--set {override}: {key!r} is not a position in a list of {len(place)}")
    return int(key)
