"""Markdown page of benchmark results: own runs, recipes not yet run, published results."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from facelt.report.schema import SHOT_BAND_NAMES
from facelt.utils.text import sanitize

_NONE = "-"
_COLUMNS = (
    *("recipe", "IF", "overall", *SHOT_BAND_NAMES, "width", "subset", "epochs", "tested epoch"),
    *("seeds", "minutes", "machine", "commit", "published"),
)

_MISSING_COLUMNS = ("not run", "smoke test", "published")

_HEAD = """# Long-tail benchmarks, measured and published

For anyone comparing a recipe with its publication: top-1 accuracy in % on the test split, mean over seeds ± sample
standard deviation. Many, medium and few are means of class accuracies (more than 100, 20 to 100, fewer than 20 training
images). IF is the imbalance factor: the size of the largest class over that of the smallest. If a data set has no
validation images, the last epoch is tested, so nothing is selected on the test split. Width is the channels of the
network's stages, with those of one branch if there are several. Subset is the file of the training images, and the
first digits of the SHA-256 of their positions in it and their labels: runs with equal ones saw the same images. Epochs
are those of each stage. Rows that differ in width, subset, epochs or tested epoch do not compare methods alone; a value
that was not recorded is shown as -. Minutes are those of one run, training and testing; those after the + are of first
stages that the run took from another recipe with equal ones, and did not train itself. `facelt bench` writes this page
from `benchmarks.jsonl`, one line per run, and `facelt/benchmarking/published.yaml`; none of our results is taken from a
publication. Recipes that were *not run* show their command instead; a smoke test is a run of one epoch per stage in
bfloat16 on a CPU in which every loss was finite and decreased.

Sources of published results: """
_PUBLISHED_COLUMNS = ("suite", "method", "IF", "accuracy")
_OTHER_NOTE = """Not comparable with the recipes above: a wider network alone gains several points, and another subset
of the training images changes the accuracy as well.

"""
_OTHER_COLUMNS = ("suite", "method", "network", "subset", "IF", "accuracy")


@dataclass(frozen=True)
class MeanStd:
    """Mean as a fraction, and the sample standard deviation of two values or more."""

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class PublishedResult:
    """Published accuracy in percent, the letter of its source, and the selection of its epoch.

    A `network` or `subset` other than the suite's makes it incomparable with the recipes.
    """

    method: str
    imbalance: float | None
    accuracy: float
    source: str
    selection: str | None = None
    epochs: int | None = None
    network: str | None = None
    subset: str | None = None

    @property
    def is_comparable(self) -> bool:
        """No other network or subset is known."""
        return self.network is None and self.subset is None


@dataclass(frozen=True)
class BenchmarkRow:
    """One configuration of a recipe; without `seeds` it was not run. `smoke` is the commit of a passed smoke test.

    `reused` are the stages taken from other recipes, in words, and `reused_minutes` what those had taken.
    """

    suite: str
    recipe: str
    imbalance: float | None
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    overall: MeanStd | None = None
    bands: Mapping[str, MeanStd | None] = field(default_factory=dict)
    minutes: float | None = None
    reused: tuple[str, ...] = ()
    reused_minutes: float | None = None
    machines: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    subset: str | None = None
    epochs: tuple[int, ...] | None = None
    smoke: str | None = None
    published: tuple[PublishedResult, ...] = ()


def benchmarks_page(
    rows: Sequence[BenchmarkRow], unmatched: Sequence[tuple[str, PublishedResult]], sources: Mapping[str, str]
) -> str:
    """Returns the whole page.

    Args:
        rows: recipes in the order of the page, run or not.
        unmatched: (suite, result) of published results without a recipe, or of another network or subset.
        sources: the source of each letter.
    """
    parts = [_HEAD, "; ".join(f"{letter} {meaning}" for letter, meaning in sources.items()), ".\n"]
    for suite in dict.fromkeys(row.suite for row in rows):
        run, missing = (
            [row for row in rows if row.suite == suite and bool(row.seeds) == was_run] for was_run in (True, False)
        )
        parts.append(f"\n## {markdown_cell(suite)}\n")
        if run:
            parts += ["\n", *_table(_COLUMNS, map(_cells, run)), "\nTo reproduce:\n\n"]
            parts += [f"- {_code(command)}\n" for command in dict.fromkeys(map(bench_command, run))]
        if missing:
            parts += ["\n", *_table(_MISSING_COLUMNS, map(_missing_cells, missing))]
    alone = [(suite, result) for suite, result in unmatched if result.is_comparable]
    if alone:
        parts += [
            "\n## Published results without a recipe here\n\n",
            *_table(_PUBLISHED_COLUMNS, map(_alone_cells, alone)),
        ]
    other = [(suite, result) for suite, result in unmatched if not result.is_comparable]
    if other:
        parts += ["\n## Published results with another network or subset\n\n", _OTHER_NOTE]
        parts += _table(_OTHER_COLUMNS, map(_other_cells, other))
    return "".join(parts)


def bench_command(row: BenchmarkRow) -> str:
    """Returns the command of a row: with the seeds that were run, or with three seeds."""
    words = ["facelt bench", f"{row.suite}/{row.recipe}"]
    words += [] if row.imbalance is None else [f"--imbalance {_number(row.imbalance)}"]
    words.append(f"--seeds {','.join(map(str, row.seeds or (0, 1, 2)))}")
    return " ".join([*words, *(f"--set {shlex.quote(setting)}" for setting in row.settings)])


def markdown_cell(text: str) -> str:
    """Returns a text as a cell of a Markdown table, with all markup escaped."""
    return "".join("\\" + letter if letter in "\\|`*[]<>&~" else letter for letter in sanitize(text))


def _cells(row: BenchmarkRow) -> list[str]:
    name = ", ".join([row.recipe, *row.settings])
    return [
        *(markdown_cell(name), _number(row.imbalance), _percent(row.overall)),
        *(_percent(row.bands.get(band)) for band in SHOT_BAND_NAMES),
        _joined(row.widths),
        _joined(filter(None, [row.subset])),
        _NONE if row.epochs is None else " + ".join(map(str, row.epochs)) or "0",
        _joined(row.chosen),
        ", ".join(map(str, row.seeds)),
        _minutes_cell(row),
        _joined(row.machines),
        _joined(row.commits),
        _published_cell(row),
    ]


def _minutes_cell(row: BenchmarkRow) -> str:
    own, reused = (_NONE if value is None else f"{value:.1f}" for value in (row.minutes, row.reused_minutes))
    return f"{own} + {reused} ({_joined(row.reused)})" if row.reused else own


def _alone_cells(entry: tuple[str, PublishedResult]) -> list[str]:
    suite, result = entry
    return [markdown_cell(suite), markdown_cell(result.method), _number(result.imbalance), _published(result)]


def _other_cells(entry: tuple[str, PublishedResult]) -> list[str]:
    suite, method, imbalance, accuracy = _alone_cells(entry)
    differences = [markdown_cell(text or "the same") for text in (entry[1].network, entry[1].subset)]
    return [suite, method, *differences, imbalance, accuracy]


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(map(markdown_cell, texts)) or _NONE


def _missing_cells(row: BenchmarkRow) -> list[str]:
    smoke = _NONE if row.smoke is None else f"passed at {markdown_cell(row.smoke)}"
    return [_code(bench_command(row)).replace("|", "\\|"), smoke, _published_cell(row)]


def _published_cell(row: BenchmarkRow) -> str:
    return "; ".join(map(_published, row.published)) or _NONE


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_line(columns), "|" + "---|" * len(columns) + "\n", *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _percent(result: MeanStd | None) -> str:
    if result is None:
        return _NONE
    return f"{100 * result.mean:.2f}" + ("" if result.std is None else f" ± {100 * result.std:.2f}")


def _published(result: PublishedResult) -> str:
    epochs = None if result.epochs is None else f"{result.epochs} epochs"
    notes = ", ".join(filter(None, [result.source, result.selection, epochs]))
    return f"{result.accuracy} ({markdown_cell(notes)})"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:g}"


def _code(text: str) -> str:
    """Returns the text as inline code, with more backticks around it than it has in a row."""
    text = sanitize(text)
    longest = max((len(run) for run in "".join(letter if letter == "`" else " " for letter in text).split()), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"
