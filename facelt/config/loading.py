"""Loading of YAML configurations by path or recipe name: one `base:`, dotted overrides, errors that name the key."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from facelt.config.base import allowed_names
from facelt.config.recipes import find_config, missing_file_hint
from facelt.errors import UserError


def explain(error: ValidationError, source: str) -> str:
    """Returns one line for each mistake: `source: key: problem`."""
    return "\n".join(f"{source}: {_line(detail)}" for detail in error.errors())


def _line(detail: dict[str, Any]) -> str:
    key = ".".join(map(str, detail["loc"]))
    prefix = f"{key}: " if key else ""
    match detail["type"]:
        case "not_allowed":
            return prefix + detail["msg"]
        case "missing":
            return f"{prefix}this key is required"
        case "literal_error":
            allowed = [word.strip("'") for word in detail["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            return f"{prefix}{detail['input']!r} is not allowed; {allowed_names(str(detail['input']), allowed)}"
    message = detail["msg"].removeprefix("Value error, ")
    value = "" if isinstance(detail["input"], dict | list) else f"{detail['input']!r}: "
    return f"{prefix}{value}{message[:1].lower()}{message[1:]}"


_Schema = TypeVar("_Schema", bound=BaseModel)
_MAX_BASES = 8


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses duplicate keys."""


def _strict_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict:
    keys = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in keys:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", key_node.start_mark)
        keys.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _strict_mapping)


def load_config(
    path: Path | None, schema: type[_Schema], overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> _Schema:
    """Returns the validated configuration in a YAML file, or in the recipe of that name.

    Raises UserError: a missing or malformed file, an unknown key, a value out of range; the message names the key, what
    is allowed there and the nearest spelling.
    """
    return validate_config(read_values(path, overrides, options), schema, path)


def validate_config(values: dict[str, Any], schema: type[_Schema], path: Path | None = None) -> _Schema:
    """Returns the validated configuration of values read from `path`. Raises UserError as `load_config` does."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        own, command = f"{schema.__module__}:{schema.__qualname__}", command_of(values)
        if path is not None and own in _COMMAND_SCHEMAS.values() and command and own != _COMMAND_SCHEMAS[command]:
            raise UserError(
                f"{path}: this is a configuration of `facelt {command}`: facelt {command} --config {path}"
            ) from None
        raise UserError(explain(error, source=str(path or "command line"))) from None


# The schema of each command's configuration, loaded when it is looked up.
_COMMAND_SCHEMAS = {
    "train": "facelt.config.train:TrainConfig",
    "audit": "facelt.config.audit:AuditConfig",
    "megaface": "eval_megaface.config:MegafaceConfig",
}


def command_of(values: Mapping[str, Any]) -> str | None:
    """Returns the command whose configuration has the most of these keys at its top; None if two have as many."""
    known_keys = {
        command: sum(key in resolve_name(schema).model_fields for key in values)
        for command, schema in _COMMAND_SCHEMAS.items()
    }
    *_, second, first = sorted(known_keys, key=known_keys.__getitem__)
    return first if known_keys[first] > known_keys[second] else None


def read_values(
    path: str | Path | None, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the values of a YAML file, or of the recipe of that name, not validated.

    `base:` names another YAML file, relative to this one, or a recipe, whose values are the defaults. Mappings merge
    key by key, lists are replaced whole. An override is `dotted.key=value`, its value read as YAML; a number steps into
    a list (`stages.1.epochs=3`). `options` are nested values that are merged last. Without a file, overrides and
    options are the whole configuration.

    Raises UserError for a missing or malformed file.
    """
    values = {} if path is None else _read(find_config(path), depth=0)
    for override in overrides:
        _apply(values, override)
    return _merge(values, options or {})


def _read(path: Path, depth: int) -> dict[str, Any]:
    if depth > _MAX_BASES:
        raise UserError(f"{path}: more than {_MAX_BASES} levels of `base:`; does a file name itself?")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration ({error.strerror}){missing_file_hint(path)}") from None
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
    try:
        base_file = find_config(base, path.parent)
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from None
    return _merge(_read(base_file, depth + 1), values)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
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
    section: Any = values
    for key in keys[:-1]:
        index = _index(section, key, override)
        if isinstance(section, dict) and section.get(key) is None:
            section[key] = {}
        section = section[index]
    section[_index(section, keys[-1], override)] = value


def _index(section: Any, key: str, override: str) -> str | int:
    """Returns the key of a mapping, or the position in a list. Raises UserError."""
    if isinstance(section, dict):
        return key
    if not isinstance(section, list):
        raise UserError(f"--set {override}: the key before {key!r} is not a section")
    if not key.isdecimal() or int(key) >= len(section):
        raise UserError(f"--set {override}: {key!r} is not an index of a list of {len(section)}")
    return int(key)
