"""The page of benchmark results, in Markdown: what was run, what was not and how it would be, what others published."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from facelt.utils.text import sanitize

NOTHING = "-"
COLUMNS = ("recipe", "IF", "overall", "many", "medium", "few", "seeds", "minutes", "machine", "commit", "published")

MISSING = ("not run", "smoke test", "published")

HEAD = """# Benchmarks

Top-1 accuracy in % on the test split: mean over seeds, ± the sample standard deviation; many, medium and few are means
of class accuracies (more than 100, 20 to 100, fewer than 20 training images). IF is the imbalance: the largest class
over the smallest. Where a data set has no validation images the last epoch is tested, so nothing is chosen on the test
split. Minutes are those of one run, training and testing. `facelt bench` writes this page from `benchmarks.jsonl`, one
line a run, and `published.yaml`; a figure of ours is never taken from a publication. What was *not run* has its command
instead; a smoke test is a run of one epoch a stage in bfloat16 on a CPU, in which every loss was finite and fell.

Published figures bear their source: """
PUBLISHED = """
## Published, without a recipe here

| suite | method | IF | accuracy |
|---|---|---:|---|
"""


@dataclass(frozen=True)
class Figure:
    """A mean as a fraction, and its sample standard deviation where there are two values at least."""

    mean: float
    spread: float | None = None


@dataclass(frozen=True)
class PublishedFigure:
    """An accuracy in percent that others published: the letter of its source, how its epoch was chosen."""

    method: str
    imbalance: float | None
    accuracy: float
    source: str
    selection: str | None = None


@dataclass(frozen=True)
class BenchmarkRow:
    """One configuration of a recipe, not run without seeds; `smoke` is the commit of a short run that went well."""

    suite: str
    recipe: str
    imbalance: float | None
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    overall: Figure | None = None
    bands: Mapping[str, Figure | None] = field(default_factory=dict)
    minutes: float | None = None
    machines: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    smoke: str | None = None
    published: tuple[PublishedFigure, ...] = ()


def page(
    rows: Sequence[BenchmarkRow], unmatched: Sequence[tuple[str, PublishedFigure]], sources: Mapping[str, str]
) -> str:
    """The whole page; rows come in the order they are to stand in.

    Args:
        rows: our recipes, run or not.
        unmatched: (suite, figure) of published figures that none of our recipes is for.
        sources: what the letters of the sources mean.
    """
    parts = [HEAD, ", ".join(f"{letter} {meaning}" for letter, meaning in sources.items()), ".\n"]
    for suite in dict.fromkeys(row.suite for row in rows):
        own = [row for row in rows if row.suite == suite]
        run, missing = [row for row in own if row.seeds], [row for row in own if not row.seeds]
        parts.append(f"\n## {cell(suite)}\n")
        if run:
            parts += ["\n", *_table(COLUMNS, map(_cells, run)), "\nThe same again:\n\n"]
            parts += [f"- {_code(command(row))}\n" for row in run]
        if missing:
            parts += ["\n", *_table(MISSING, map(_missing_cells, missing))]
    if unmatched:
        parts.append(PUBLISHED)
        parts += [
            _line([cell(suite), cell(one.method), _number(one.imbalance), _published(one)]) for suite, one in unmatched
        ]
    return "".join(parts)


def command(row: BenchmarkRow) -> str:
    """What a user types for the row: again where it was run, with three seeds where it was not."""
    words = ["facelt bench", f"{row.suite}/{row.recipe}"]
    words += [] if row.imbalance is None else [f"--imbalance {_number(row.imbalance)}"]
    words.append(f"--seeds {','.join(map(str, row.seeds or (0, 1, 2)))}")
    return " ".join([*words, *(f"--set {shlex.quote(setting)}" for setting in row.settings)])


def cell(text: str) -> str:
    """A text as a cell of a Markdown table: nothing in it is markup, ends the cell or the line."""
    return "".join("\\" + letter if letter in "\\|`*[]<>&~" else letter for letter in sanitize(text))


def _cells(row: BenchmarkRow) -> list[str]:
    name = ", ".join([row.recipe, *row.settings])
    overall = _percent(row.overall)
    # Where an epoch was chosen the reader is told.
    overall += "".join(f" ({cell(chosen)})" for chosen in row.chosen if chosen != "last epoch")
    return [
        *(cell(name), _number(row.imbalance), overall),
        *(_percent(row.bands.get(band)) for band in ("many", "medium", "few")),
        ", ".join(map(str, row.seeds)),
        NOTHING if row.minutes is None else f"{row.minutes:.1f}",
        "; ".join(map(cell, row.machines)),
        "; ".join(map(cell, row.commits)),
        _beside(row),
    ]


def _missing_cells(row: BenchmarkRow) -> list[str]:
    smoke = NOTHING if row.smoke is None else f"passed at {cell(row.smoke)}"
    return [_code(command(row)).replace("|", "\\|"), smoke, _beside(row)]


def _beside(row: BenchmarkRow) -> str:
    return "; ".join(map(_published, row.published)) or NOTHING


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_line(columns), "|" + "---|" * len(columns) + "\n", *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _percent(figure: Figure | None) -> str:
    if figure is None:
        return NOTHING
    return f"{100 * figure.mean:.2f}" + ("" if figure.spread is None else f" ± {100 * figure.spread:.2f}")


def _published(one: PublishedFigure) -> str:
    words = ", ".join(filter(None, [one.source, one.selection]))
    return f"{one.accuracy} ({cell(words)})"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:g}"


def _code(text: str) -> str:
    """Between more backticks than the text has anywhere."""
    text = sanitize(text)
    longest = max((len(run) for run in "".join(letter if letter == "`" else " " for letter in text).split()), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"
