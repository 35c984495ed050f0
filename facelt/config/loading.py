"""Loading of YAML configurations by path or recipe name: `base:`, dotted overrides, errors that name file and key."""

import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from facelt.config.base import allowed_names
from facelt.config.recipes import find_config
from facelt.config.registry import Registry, SettingsChoice
from facelt.config.yaml_file import parse_yaml, read_yaml
from facelt.errors import UserError

_MAX_BASES = 8
_MAX_MISTAKES = 20
# Values in messages are cut: a list of a million entries is no help.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


def explain(error: ValidationError, source: str) -> str:
    """Returns one line for each mistake, up to a limit: `source: key: problem`."""
    return _explain(error, lambda key: source)


def _explain(error: ValidationError, source_of: Callable[[tuple[str | int, ...]], str]) -> str:
    mistakes = error.errors()
    lines = [f"{source_of(detail['loc'])}: {_line(detail)}" for detail in mistakes[:_MAX_MISTAKES]]
    if len(mistakes) > _MAX_MISTAKES:
        lines.append(f"{source_of(())}: {len(mistakes) - _MAX_MISTAKES} more mistakes")
    return "\n".join(lines)


def _line(detail: dict[str, Any]) -> str:
    key = ".".join(map(str, detail["loc"]))
    prefix = f"{key}: " if key else ""
    value = _SHORT.repr(detail["input"])
    match detail["type"]:
        case "not_allowed":
            return prefix + detail["msg"]
        case "missing":
            return f"{prefix}this key is required"
        case "bool_type":
            return f"{prefix}{value}: input should be true or false"
        case "literal_error":
            allowed = [word.strip("'") for word in detail["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            return f"{prefix}{value} is not allowed; {allowed_names(str(detail['input']), allowed)}"
    message = detail["msg"].removeprefix("Value error, ")
    value = "" if isinstance(detail["input"], dict | list) else f"{value}: "
    return f"{prefix}{value}{message[:1].lower()}{message[1:]}"


_Schema = TypeVar("_Schema", bound=BaseModel)
_Location = tuple[str | int, ...]


class _Layer(NamedTuple):
    """Values of one source: a file, or the command line."""

    source: str
    values: Mapping[str, Any]


class _Override(NamedTuple):
    """A `dotted.key=value` of the command line."""

    text: str
    keys: tuple[str, ...]
    value: Any


@dataclass(frozen=True)
class ConfigLayers:
    """The sources of a configuration: options, overrides, and files, the topmost first, each followed by its base."""

    options: Mapping[str, Any]
    overrides: tuple[_Override, ...]
    files: tuple[_Layer, ...]

    def values(self, schema: type[BaseModel] | None = None) -> dict[str, Any]:
        """Returns the merged values, not validated.

        Mappings merge key by key, lists are replaced whole. With a schema, a source that sets another name of a
        registered implementation (`data.kind`) inherits only the keys that this one has. Raises UserError for an
        override that does not fit.
        """
        registries = {} if schema is None else _registries(schema)
        merged: dict[str, Any] = {}
        for layer in reversed(self.files):
            merged = _merge(_without_foreign_keys(merged, layer.values, registries), layer.values)
        names = {(name, registry.key) for name, registry in registries.items()}
        # Names come first, since they decide on the inherited keys alone.
        for override in sorted(self.overrides, key=lambda override: override.keys not in names):
            if override.keys in names:
                above = {override.keys[0]: {override.keys[1]: override.value}}
                merged = _without_foreign_keys(merged, above, registries)
            _apply(merged, override)
        return _merge(_without_foreign_keys(merged, self.options, registries), self.options)

    def validate(self, schema: type[_Schema]) -> _Schema:
        """Returns the validated configuration. Raises UserError naming the source of each mistake and the key."""
        values = self.values(schema)
        try:
            return schema.model_validate(values)
        except ValidationError as error:
            own, command = f"{schema.__module__}:{schema.__qualname__}", command_of(values)
            if self.files and own in _COMMAND_SCHEMAS.values() and command and own != _COMMAND_SCHEMAS[command]:
                path = self.files[0].source
                raise UserError(
                    f"{path}: this is a configuration of `facelt {command}`: facelt {command} --config {path}"
                ) from None
            raise UserError(_explain(error, self._source_of)) from None

    def _source_of(self, location: _Location) -> str:
        """The file that sets the value at a location, or the innermost mapping or list that lacks it.

        For values of the command line it is the file that they override.
        """
        top = self.files[0].source if self.files else "command line"
        candidates = [(_depth(self.options, location)[0], top)]
        for _, keys, value in self.overrides:
            if tuple(map(str, location[: len(keys)])) == keys:
                candidates.append((len(keys) + _depth(value, location[len(keys) :])[0], top))
        for layer in self.files:
            depth, is_complete = _depth(layer.values, location)
            candidates.append((depth, layer.source))
            if is_complete:
                break
        depth, source = max(candidates, key=lambda candidate: candidate[0])
        return source if depth else top


def load_config(
    path: Path | None, schema: type[_Schema], overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> _Schema:
    """Returns the validated configuration in a YAML file, or in the recipe of that name.

    Raises UserError: a missing or malformed file, an unknown key, a value out of range; the message names the file, the
    key, what is allowed there and the nearest spelling.
    """
    return read_layers(path, overrides, options).validate(schema)


def validate_values(values: Mapping[str, Any], schema: type[_Schema], source: str) -> _Schema:
    """Returns the validated configuration of values in memory; `source` names them in errors."""
    return ConfigLayers({}, (), (_Layer(source, values),)).validate(schema)


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


def read_layers(
    path: str | Path | None, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> ConfigLayers:
    """Reads a YAML file, or the recipe of that name, the files that `base:` names, and overrides.

    `base:` names another YAML file, relative to this one, or a recipe, whose values are the defaults. An override is
    `dotted.key=value`, its value read as YAML; a number steps into a list (`stages.1.epochs=3`). `options` are nested
    values above all others. Without a file, overrides and options are the whole configuration.

    Raises UserError for a missing or malformed file or override.
    """
    files = () if path is None else tuple(_read_files(path))
    return ConfigLayers(options or {}, tuple(map(_parse_override, overrides)), files)


def _read_files(name: str | Path) -> list[_Layer]:
    layers: list[_Layer] = []
    path = find_config(name)
    previous: dict[str, Path] = {}
    prefix = ""
    while True:
        try:
            values = read_yaml(path)
        except UserError as error:
            raise UserError(f"{prefix}{error}") from None
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise UserError(f"{prefix}{path}: expected a mapping of keys at the top, found {type(values).__name__}")
        base = values.pop("base", None)
        layers.append(_Layer(str(path if layers else name), values))
        if base is None:
            return layers
        if not isinstance(base, str) or not base:
            raise UserError(f"{path}: base: expected the name of one YAML file, found {_SHORT.repr(base)}")
        previous[os.path.realpath(path)] = path
        prefix = f"{path}: base: "
        try:
            path = find_config(base, path.parent)
        except UserError as error:
            raise UserError(f"{prefix}{error}") from None
        if os.path.realpath(path) in previous:
            raise UserError(f"{prefix}{base} leads back to {previous[os.path.realpath(path)]}; remove one of the two")
        if len(layers) > _MAX_BASES:
            raise UserError(f"{prefix}more than {_MAX_BASES} levels of bases")


def _registries(schema: type[BaseModel]) -> dict[str, Registry]:
    """The registries of the fields that pick an implementation by name, by field."""
    return {
        name: metadata.registry
        for name, field in schema.model_fields.items()
        for metadata in field.metadata
        if isinstance(metadata, SettingsChoice)
    }


def _without_foreign_keys(
    below: dict[str, Any], above: Mapping[str, Any], registries: Mapping[str, Registry]
) -> dict[str, Any]:
    """Leaves out those inherited keys that the implementation picked above does not have."""
    kept = dict(below)
    for field, registry in registries.items():
        inherited, section = below.get(field), above.get(field)
        if not isinstance(inherited, dict) or not isinstance(section, dict):
            continue
        name = section.get(registry.key, inherited.get(registry.key))
        if name != inherited.get(registry.key) and isinstance(name, str) and name in registry:
            known = registry.settings(name).model_fields
            kept[field] = {key: value for key, value in inherited.items() if key in known}
    return kept


def _depth(values: Any, location: _Location) -> tuple[int, bool]:
    """Number of leading keys of a location that exist, and if nothing below can add to them: a list or a value ends it.

    Mappings alone merge with those of the files below.
    """
    is_complete = False
    for depth, key in enumerate(location):
        is_complete |= not isinstance(values, dict)
        exists = key in values if isinstance(values, dict) else isinstance(values, list) and key in range(len(values))
        if not exists:
            return depth, is_complete
        values = values[key]
    return len(location), is_complete or not isinstance(values, dict)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _parse_override(text: str) -> _Override:
    dotted, separator, value = text.partition("=")
    keys = tuple(dotted.split("."))
    if not separator or not all(keys):
        raise UserError(f"--set {text}: expected KEY=VALUE, for example optim.lr=0.05")
    return _Override(text, keys, parse_yaml(value, f"--set {text[:80]}"))


def _apply(values: dict[str, Any], override: _Override) -> None:
    section: Any = values
    for key in override.keys[:-1]:
        index = _index(section, key, override.text)
        if isinstance(section, dict) and section.get(key) is None:
            section[key] = {}
        # The files' own values stay as they are.
        section[index] = section[index].copy() if isinstance(section[index], dict | list) else section[index]
        section = section[index]
    section[_index(section, override.keys[-1], override.text)] = override.value


def _index(section: Any, key: str, override: str) -> str | int:
    """Returns the key of a mapping, or the position in a list. Raises UserError."""
    if isinstance(section, dict):
        return key
    if not isinstance(section, list):
        raise UserError(f"--set {override}: the key before {key!r} is not a section")
    position = int(key) if key.isascii() and key.isdecimal() and len(key) < 10 else len(section)
    if position >= len(section):
        raise UserError(f"--set {override}: {key!r} is not an index of a list of {len(section)}")
    return position
