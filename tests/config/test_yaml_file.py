"""Strict YAML: values of plain scalars, and one line for everything that is refused, in bounded memory."""

import subprocess
import sys

import pytest
import yaml

from facelt.config.yaml_file import MAX_YAML_BYTES, MAX_YAML_DEPTH, dump_yaml, parse_yaml, read_yaml
from facelt.errors import UserError


def refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "x.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1", 1), ("-7", -7), ("+7", 7), ("010", 10), ("0x1F", 31), ("0o17", 15), ("9223372036854775807", 2**63 - 1)],
        *[
            ("1e-3", 0.001),
            (".5", 0.5),
            ("2.", 2.0),
            ("1E+2", 100.0),
            ("-.inf", float("-inf")),
            ("1e999", float("inf")),
        ],
        *[("true", True), ("FALSE", False), ("~", None), ("null", None), ("", None)],
        *[("'1'", "1"), ('"true"', "true"), ("yes", "yes"), ("off", "off"), ("NO", "NO"), ("12:30", "12:30")],
        *[("2024-01-31", "2024-01-31"), ("2024-99-99", "2024-99-99"), ("1_000", "1_000"), ("=", "="), ("é 😀", "é 😀")],
        ("|\n  two\n  lines\n", "two\nlines\n"),
        ("a: &x [1]\nb: *x\nc: *x", {"a": [1], "b": [1], "c": [1]}),
        ("1: a\nb: {}", {1: "a", "b": {}}),
        ("\ufeffa: 1\r\nb: 2", {"a": 1, "b": 2}),
        ("# nothing\n", None),
    ],
)
def test_values(text, value):
    parsed = parse_yaml(text, "x.yaml")
    assert (type(parsed), parsed) == (type(value), value)


def test_the_repetitions_of_an_alias_are_separate_objects():
    values = parse_yaml("a: &x {b: [1]}\nc: *x", "x.yaml")
    values["a"]["b"].append(2)
    assert values["c"] == {"b": [1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "line 2: not valid YAML: the key 'a' occurs twice"),
        ("1: a\n'1': b", "line 2: not valid YAML: the key '1' occurs twice"),
        ("[1]: 2", "line 1: not valid YAML: a key is neither text nor an integer"),
        ("{a: b}: 2", "line 1: not valid YAML: a key is neither text nor an integer"),
        ("a: 1\n.nan: 2", "line 2: not valid YAML: a key is neither text nor an integer"),
        ("true: 2", "line 1: not valid YAML: a key is neither text nor an integer"),
        ("~: 2", "line 1: not valid YAML: a key is neither text nor an integer"),
        ("!!python/object/apply:os.getcwd []", "line 1: not valid YAML: the tag tag:yaml.org,2002:python/object"),
        ("!!set {a}", "the tag tag:yaml.org,2002:set is not supported"),
        ("a: !!binary zzz", "the tag tag:yaml.org,2002:binary is not supported"),
        ("a: !!timestamp 2024-99-99", "the tag tag:yaml.org,2002:timestamp is not supported"),
        ("a: !!int x", "the tag tag:yaml.org,2002:int is not supported"),
        ("a: !!bool x", "the tag tag:yaml.org,2002:bool is not supported"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "line 3: not valid YAML: merge keys (<<) are not supported"),
        ("a: &x [*x]", "line 1: not valid YAML: the alias *x is part of the value that it repeats"),
        ("a: *x", "line 1: not valid YAML: found undefined alias"),
        ("a: &x 1\nb: &x 2", "line 2: not valid YAML: the anchor &x occurs twice"),
        ("a: 1\n---\nb: 2", "line 2: not valid YAML: a second document begins here"),
        ("a:\n\tb: 1", "line 2: not valid YAML: found character '\\t'"),
        ("a: [", "not valid YAML: "),
        ("a: '", "not valid YAML: "),
        ("a: " + "9" * 5000, "line 1: not valid YAML: an integer has more than 63 bits"),
        ("a: 0x" + "f" * 5000, "an integer has more than 63 bits"),
        ("a: 9223372036854775808", "an integer has more than 63 bits"),
        ("a: \x01", "line 1: not valid YAML: a character that text cannot contain"),
        ('a: "\\0"', "line 1: not valid YAML: the text holds '\\x00'"),
        ('a: "\\ud800"', "the text holds '\\ud800'"),
        ('a: "\\U00110000"', "not valid YAML: an escape is not a character"),
        ('a: "\\UFFFFFFFF"', "not valid YAML: an escape is not a character"),
        ("[" * 100_000, f"line 1: not valid YAML: more than {MAX_YAML_DEPTH} levels of nesting"),
        ("{a: " * 100, f"more than {MAX_YAML_DEPTH} levels of nesting"),
        ("- " * 1000 + "1", f"more than {MAX_YAML_DEPTH} levels of nesting"),
        ("- x\n" * 20_001, "more than 20,000 values, repeated ones included"),
    ],
)
def test_refusals(text, message):
    assert message in refusal(text)


def laugh(levels: int, repeats: int) -> str:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * repeats)}]" for i in range(1, levels)]
    return "\n".join(lines)


def test_aliases_are_counted_as_values_and_levels():
    # 2 * 3 ** 8 values of x, lists aside.
    assert "more than 20,000 values" in refusal(laugh(9, 3))
    assert parse_yaml(laugh(5, 3), "x.yaml")["a4"][2][2][2][2] == ["x", "x"]
    assert "levels of nesting" in refusal(laugh(MAX_YAML_DEPTH, 1))
    assert parse_yaml(laugh(MAX_YAML_DEPTH - 2, 1), "x.yaml")["a1"] == [["x", "x"]]


def test_a_billion_laughs_take_little_memory(tmp_path):
    """As text of 342 bytes this took 2 GB."""
    (tmp_path / "laugh.yaml").write_text(laugh(10, 10))
    program = """
import resource, sys
from pathlib import Path
from facelt.config.yaml_file import read_yaml
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_yaml(Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", program, tmp_path / "laugh.yaml"], capture_output=True, text=True)
    name, kilobytes = run.stdout.split()
    assert name == "UserError"
    assert int(kilobytes) < 20_000


def test_a_file_that_is_no_text_or_too_long_is_refused(tmp_path):
    def message(content: bytes) -> str:
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_yaml(tmp_path / "x.yaml")
        return str(caught.value).removeprefix(f"{tmp_path / 'x.yaml'}: ")

    assert message(b"a: 1\nb: \xff\n") == "line 2 is not UTF-8 text (byte 8)"
    assert message(b"#" * (MAX_YAML_BYTES + 1)).startswith("cannot read the configuration (262,145 bytes are more than")
    with pytest.raises(UserError, match=r"cannot read the configuration \(a folder, not a regular file\)"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    "text", ["1e5", "1.5e3", "0o17", "yes", "no", "12:30", "1", ".5", "", "a: b", "~", "2024-01-31"]
)
def test_a_dump_reads_back_as_the_same_values(text):
    shared = [1, 2]
    values = {"text": text, "keys": {text or "x": 1e-05}, "a": shared, "b": shared, "c": [True, None, 1e20, -3]}
    assert parse_yaml(dump_yaml(values), "x.yaml") == values
    assert yaml.safe_load(dump_yaml(values)) == values
