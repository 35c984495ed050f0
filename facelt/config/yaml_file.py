"""Strict reading of YAML files: text, numbers, booleans, lists and mappings, in bounded memory.

Plain scalars are those of YAML 1.2's core schema: `1e-3` is a number, `no`, `12:30` and `2024-01-31` are text. Aliases
may repeat a value, up to a limit. Tags, merge keys, several documents and keys other than text or integers are refused.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from facelt.config.recipes import missing_file_hint
from facelt.errors import UserError
from recordio_tools.bounded_io import read_utf8

MAX_YAML_BYTES = 1 << 18
MAX_YAML_DEPTH = 32
MAX_YAML_NODES = 20_000
_MAX_INTEGER = 2**63

_INTEGER = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_UNPRINTABLE = re.compile(r"[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read_yaml(path: Path) -> Any:
    """Returns the value in a YAML file, None for an empty one.

    Raises UserError, one line that names the file, the line and the problem.
    """
    try:
        text = read_utf8(path, MAX_YAML_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration ({error.strerror}){missing_file_hint(path)}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Returns the value of YAML text. Raises UserError, one line that begins with `source`."""
    try:
        # The parser's own limits are on nodes, and a scalar may be as long as the text.
        node = _BoundedLoader(text).get_single_node()
        return None if node is None else _value(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{where}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{source}, line {line}: not valid YAML: a character that text cannot contain") from None
    except (ValueError, OverflowError):  # an escape such as "\UFFFFFFFF"
        raise UserError(f"{source}: not valid YAML: an escape is not a character") from None


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, which quotes text that would be read as a number, such as 1e5."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def dump_yaml(values: dict[str, Any]) -> str:
    """Returns YAML that `parse_yaml` reads as the same values; keys keep their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


class _Size(NamedTuple):
    """Nodes of a value with all that it contains, and the levels of its nesting."""

    nodes: int
    depth: int


class _BoundedLoader(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer,
                     yaml.resolver.BaseResolver):  # fmt: skip
    """Composer of nodes that counts them, the repetitions by aliases too, and stops at a limit."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        yaml.resolver.BaseResolver.__init__(self)
        self._level = 0
        self._num_nodes = 0
        self._deepest = 0
        self._sizes: dict[str, _Size] = {}

    def get_single_node(self) -> yaml.Node | None:
        """Returns the node of the only document. Raises YAMLError."""
        self.get_event()  # the start of the stream
        node = None if self.check_event(yaml.StreamEndEvent) else self.compose_document()
        if not self.check_event(yaml.StreamEndEvent):
            raise _problem("a second document begins here; a file holds one", self.peek_event())
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            size = self._sizes.get(event.anchor)
            if event.anchor in self.anchors and size is None:
                raise _problem(f"the alias *{event.anchor} is part of the value that it repeats", event)
            self._count(size or _Size(0, 0), event)
            return super().compose_node(parent, index)
        if event.tag is not None:
            raise _problem(f"the tag {event.tag[:40]} is not supported; remove it", event)
        if event.anchor in self.anchors:
            raise _problem(f"the anchor &{event.anchor} occurs twice", event)
        nodes, outer_deepest = self._num_nodes, self._deepest
        self._deepest = self._level
        self._count(_Size(1, 0), event)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        if event.anchor is not None:
            self._sizes[event.anchor] = _Size(self._num_nodes - nodes, self._deepest - self._level)
        self._deepest = max(self._deepest, outer_deepest)
        return node

    def _count(self, size: _Size, event: yaml.Event) -> None:
        self._num_nodes += size.nodes
        self._deepest = max(self._deepest, self._level + size.depth)
        if self._deepest >= MAX_YAML_DEPTH:
            raise _problem(f"more than {MAX_YAML_DEPTH} levels of nesting", event)
        if self._num_nodes > MAX_YAML_NODES:
            raise _problem(f"more than {MAX_YAML_NODES:,} values, repeated ones included", event)


def _problem(text: str, at: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=at.start_mark)


def _value(node: yaml.Node) -> Any:
    """The value of a node; what an alias repeats is a separate object each time."""
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    values: dict[str | int, Any] = {}
    texts = set()
    for key_node, value_node in node.value:
        key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise _problem("a key is neither text nor an integer; quote it", key_node)
        if key == "<<" and not key_node.style:
            raise _problem("merge keys (<<) are not supported; write the keys out or use base:", key_node)
        if str(key) in texts:
            raise _problem(f"the key {str(key)[:80]!r} occurs twice", key_node)
        texts.add(str(key))
        values[key] = _value(value_node)
    return values


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    if node.style is None:
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INTEGER.fullmatch(text):
            # 30 characters are enough for any number below the limit, and quick to convert.
            value = int(text, 0 if text[:2] in ("0x", "0o") else 10) if len(text) <= 30 else _MAX_INTEGER
            if abs(value) >= _MAX_INTEGER:
                raise _problem("an integer has more than 63 bits", node)
            return value
        if _FLOAT.fullmatch(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if match := _UNPRINTABLE.search(text):
        raise _problem(f"the text holds {match[0]!a}, a character that a name cannot contain", node)
    return text
