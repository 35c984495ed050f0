"""The page docs/configuration.md, generated from the configuration schemas: `python -m tests.config.reference_page`."""

import contextlib
import inspect
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from eval_megaface.config import MegafaceConfig
from facelt.config import registry as registries
from facelt.config.audit import AuditConfig
from facelt.config.base import StrictModel
from facelt.config.registry import NameChoice, Registry, SettingsChoice
from facelt.config.train import TrainConfig

PAGE = Path(__file__).resolve().parents[2] / "docs/configuration.md"

# The page up to this line is written by hand.
MARK = "<!-- make docs writes all below -->\n"
REGISTRIES = [value for value in vars(registries).values() if isinstance(value, Registry)]
TOP = {"train": TrainConfig, "megaface": MegafaceConfig, "audit": AuditConfig}


class Page:
    """Sections of the page in order; a model or registry gets a heading where it is first used."""

    def __init__(self) -> None:
        self.headings: dict[type[BaseModel], str] = {}
        self.lines: list[str] = []
        self._waiting: list[tuple[str, type[BaseModel]]] = []

    def text(self) -> str:
        """Returns the whole page, with what is written by hand as it is."""
        body = []
        for command, schema in TOP.items():
            self.lines = [f"## facelt {command}", ""]
            self.headings[schema] = f"facelt {command}"
            self._write_model(schema)
            self._write_waiting(command)
            body.append("\n".join(self.lines))
        return PAGE.read_text(encoding="utf-8").partition(MARK)[0] + "\n".join([MARK, *body])

    def _write_waiting(self, command: str) -> None:
        while self._waiting:
            heading, model = self._waiting.pop(0)
            self.lines += [f"### {heading}", ""]
            self._write_model(model)

    def _write_model(self, model: type[BaseModel]) -> None:
        implementations = implementations_of(model)
        rows = []
        for key, field in model.model_fields.items():
            if implementations and key in ("name", "kind"):
                rows.append([f"`{key}`", names(implementations), "*required*", ""])
            else:
                words = self._type(field.annotation, field.metadata, f"{self._prefix(model)}{key}")
                rows.append([f"`{key}`", words, default_of(field), cell(field.description or "")])
        size = 4 if any(row[3] for row in rows) else 3
        self.lines += [
            *description(model),
            "",
            *table([["key", "type", "default", ""][:size], *(row[:size] for row in rows)]),
        ]
        self.lines.append("")

    def _prefix(self, model: type[BaseModel]) -> str:
        heading = self.headings.get(model, "")
        command, _, rest = heading.removeprefix("facelt ").partition(": ")
        return f"{command}: {rest}." if rest else f"{command}: "

    def _type(self, annotation: Any, metadata: typing.Sequence[Any], path: str) -> str:
        """The type in words, with its limits; models and registries are linked."""
        choice = next((item for item in metadata if isinstance(item, NameChoice)), None)
        if isinstance(choice, SettingsChoice):
            return "section: " + ", ".join(
                self._link_settings(choice.registry, name) for name in sorted(choice.names())
            )
        if choice is not None:
            return names(sorted(choice.names()))
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated:
            return self._type(arguments[0], [*arguments[1:], *metadata], path)
        if origin is typing.Literal:
            return names(arguments)
        if origin in (typing.Union, types.UnionType):
            inner = [self._type(part, metadata, path) for part in arguments if part is not type(None)]
            return " or ".join(inner)
        if origin is tuple:
            if arguments[-1] is Ellipsis:
                entries = limits(metadata, "entries").replace(" ", ", ", 1)
                return f"list of {self._type(arguments[0], (), path)}{entries}"
            parts = list(dict.fromkeys(self._type(part, (), path) for part in arguments))
            return f"list of {len(arguments)}: {', '.join(parts)}"
        if origin is dict:
            return "mapping of " + " to ".join(self._type(part, (), path) for part in arguments)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return f"section: {self._link(annotation, path)}"
        simple = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", Path: "path"}
        return simple[annotation] + limits(metadata, "characters")

    def _link(self, model: type[BaseModel], heading: str) -> str:
        if model not in self.headings:
            self.headings[model] = heading
            self._waiting.append((heading, model))
        heading = self.headings[model]
        return f"[{heading.partition(': ')[2]}]({anchor(heading)})"

    def _link_settings(self, registry: Registry, name: str) -> str:
        model = registry.settings(name)
        # Several implementations may share their settings.
        self._link(model, f"{registry.kind}: {', '.join(implementations_of(model))}")
        return f"[{name}]({anchor(self.headings[model])})"


def anchor(heading: str) -> str:
    """Returns the link to a heading, as GitHub makes it."""
    return "#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def implementations_of(model: type[BaseModel]) -> dict[str, Any]:
    """Returns the registered implementations with these settings, by name."""
    implementations = {}
    for registry in REGISTRIES:
        for name, implementation in registry.items():
            with contextlib.suppress(KeyError):  # an implementation without settings
                if registry.settings(name) is model:
                    implementations[name] = implementation
    # The order of registration is that of the imports.
    return dict(sorted(implementations.items()))


def description(model: type[BaseModel]) -> list[str]:
    """Returns the docstring as lines; settings without keys have the first line of each of their implementations.

    A kind of data has the paragraphs on the keys that all kinds have as well.
    """
    implementations = implementations_of(model)
    if implementations and model.model_fields.keys() <= {"name"}:
        return [inspect.cleandoc(each.__doc__).split("\n")[0] for each in implementations.values()]
    shared = next((base for base in model.__mro__[1:] if base.__name__ == "DataKind"), None)
    texts = [inspect.cleandoc(model.__doc__)]
    if shared is not None:
        # The sentences for developers come first and last.
        texts.append(inspect.cleandoc(shared.__doc__).split("\n\n")[1])
    return "\n\n".join(texts).split("\n")


def names(values: typing.Iterable[Any]) -> str:
    """Returns allowed values as code."""
    return ", ".join(f"`{value}`" for value in values)


def limits(metadata: typing.Sequence[Any], unit: str) -> str:
    """Returns the limits of a field after its type."""
    words = []
    for item in metadata:
        match item:
            case annotated_types.Ge(ge):
                words.append(f"≥ {ge}")
            case annotated_types.Gt(gt):
                words.append(f"> {gt}")
            case annotated_types.Le(le):
                words.append(f"≤ {le}")
            case annotated_types.Lt(lt):
                words.append("< 2^63" if lt == 2**63 else f"< {lt}")
            case annotated_types.MinLen(size):
                words.append(f"at least {size} {unit if size > 1 else unit.replace('entries', 'entry').rstrip('s')}")
    return "".join(f" {word}" if index == 0 else f", {word}" for index, word in enumerate(words))


def default_of(field: FieldInfo) -> str:
    """Returns the default as YAML."""
    if field.is_required():
        return "*required*"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        given = value.model_dump(mode="json", include=value.model_fields_set)
        return f"`{json.dumps(given)}`" if given else ""
    if value is None or value is PydanticUndefined:
        return ""
    return f"`{json.dumps(value, default=str)}`"


def cell(text: str) -> str:
    """Returns text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(rows: list[list[str]]) -> list[str]:
    """Returns the lines of a table with a header."""
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [header, "|" + "---|" * len(rows[0]), *body]


def undescribed_keys(model: type[BaseModel]) -> list[str]:
    """Returns the keys of a model that no docstring of its classes and no description explains."""
    text = " ".join(base.__doc__ or "" for base in model.__mro__ if issubclass(base, StrictModel))
    named = {re.split(r"\W", word)[0] for word in re.findall(r"`([^`]+)`", text)}
    return [key for key, field in model.model_fields.items() if key not in named and not field.description]


if __name__ == "__main__":
    PAGE.write_text(Page().text(), encoding="utf-8")
