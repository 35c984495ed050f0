"""README, docs and the comments of configs name links, paths, commands, options and Python objects that exist."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from facelt.cli.main import app
from recordio_tools.cli import recordio_app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, *sorted((ROOT / "configs").rglob("*.yaml")), ROOT / "Makefile"]
FOLDERS = "facelt|recordio_tools|eval_megaface|configs|docs|tests|benchmarks"
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(#[^)\s]*)?\)")
REPOSITORY_PATH = re.compile(rf"(?<![\w./-])((?:{FOLDERS})/[\w./*<>-]*)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOTTED_NAME = re.compile(r"`((?:facelt|recordio_tools|eval_megaface)(?:\.\w+)+)")
PROGRAMS = {
    "facelt": ["facelt"],
    "facelt.train": ["facelt", "train"],
    "eval_megaface/run.py": ["facelt", "megaface"],
    "recordio-tools": ["recordio-tools"],
    "recordio_tools": ["recordio-tools"],
}
COMMANDS = {"facelt": typer.main.get_command(app), "recordio-tools": typer.main.get_command(recordio_app)}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a page."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(path: Path) -> Iterator[str]:
    """Yields the commands of a page, in fences and in code spans, or of the comments of a configuration."""
    text = path.read_text()
    if path.suffix != ".md":
        yield from (line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
        return
    for language, body in FENCE.findall(text):
        if not language:
            yield from (line.removeprefix("$ ") for line in body.replace("\\\n", " ").splitlines())
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)))


def split_command(line: str) -> tuple[list[str], list[str]]:
    """Returns the program with its fixed subcommand, and the remaining words; no program if it is another one."""
    words = shlex.split(line, comments=True) if line.count("'") % 2 == 0 else line.split()
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        words = words[1:]
    if not words or words[0] not in ("facelt", "recordio-tools", "python", "torchrun"):
        return [], []
    index = next((index for index, word in enumerate(words) if word in PROGRAMS), None)
    return ([], []) if index is None else (PROGRAMS[words[index]], words[index + 1 :])


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_relative_link_has_a_target(page):
    for target, anchor in LINK.findall(FENCE.sub("", page.read_text())):
        path = page.parent / target if target else page
        assert path.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(path), f"{target}{anchor}: no such heading"


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_every_repository_path_exists(path):
    text = path.read_text()
    added = set(re.findall(r"^\+\+\+ b/(\S+)$", text, re.MULTILINE))
    for name in REPOSITORY_PATH.findall(text):
        name = name.rstrip("./")
        if "<" not in name and name not in added:
            assert list(ROOT.glob(name)), f"{name}: no such path"


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_every_command_and_option_exists(path):
    for line in command_lines(path):
        program, words = split_command(line)
        if not program:
            continue
        command = COMMANDS[program[0]]
        words = [*program[1:], *words]
        while (subcommands := getattr(command, "commands", None)) and words and re.match("[a-z]", words[0]):
            assert words[0] in subcommands, f"{line}: no such command"
            command, words = subcommands[words[0]], words[1:]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        options.add("--help")
        unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in options]
        assert not unknown, f"{line}: no such option"


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_every_benchmark_script_has_the_options_shown(path):
    for line in command_lines(path):
        if match := re.match(r"(?:\w+=\S+ )*python (benchmarks/\w+\.py)(.*)", line):
            source = (ROOT / match[1]).read_text()
            for option in re.findall(r"--[\w-]+", match[2].split("#")[0]):
                assert f'"{option}"' in source, f"{line}: no such option"


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_every_python_name_exists(path):
    text = path.read_text()
    for language, body in FENCE.findall(text):
        if language == "python":
            for module, names in re.findall(r"^from (\S+) import (.+)$", body, re.MULTILINE):
                for name in names.split(", "):
                    assert hasattr(importlib.import_module(module), name), f"{module}.{name}: no such name"
    for name in DOTTED_NAME.findall(text):
        module, _, attribute = name.replace(".", "/").rpartition("/")
        if not (ROOT / module / attribute).is_dir() and not (ROOT / module / f"{attribute}.py").is_file():
            if (ROOT / module / "__init__.py").is_file():
                assert hasattr(importlib.import_module(module.replace("/", ".")), attribute), f"{name}: no such name"
                continue
            assert (ROOT / f"{module}.py").is_file(), f"{name}: no such module"
            source = (ROOT / f"{module}.py").read_text()
            defined = rf"^(class|def) {attribute}\b|^from \S+ import .*\b{attribute}\b"
            assert re.search(defined, source, re.MULTILINE), f"{name}: no such name"


def test_every_make_target_exists():
    targets = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split())
    for page in PAGES:
        named = re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(), re.MULTILINE)
        assert set(named) <= targets, f"{page}: no such target"
