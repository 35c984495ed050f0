"""What an audit report says in words: names of metrics, rates as text, and sentences that a gap deserves.

An audit report on the terminal: a table of rates for each grouping, and what sets its groups apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from facelt.report.html_page import EN_DASH
from facelt.utils.json_values import plain
from facelt.utils.text import sanitize, shorten

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class Metric:
    """A metric's short and long name, and the noun of its trials."""

    short: str
    long: str
    trials: str


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "rank1": Metric("Rank 1", "rank-1 rate", "pairs"),
        "fnir": Metric("FNIR", "false negative identification rate", "searches"),
        "fpir": Metric("FPIR", "false positive identification rate", "searches"),
        "fmr": Metric("FMR", "false match rate", "non-mated pairs"),
        "fnmr": Metric("FNMR", "false non-match rate", "mated pairs"),
        "rank1_miss": Metric("1 - rank 1", "share of pairs missed at rank 1", "pairs"),
        "fmr_fnmr": Metric("FMR and FNMR", "both match errors", "pairs"),
    }
)
FIGURES: Mapping[str, str] = MappingProxyType(
    {
        "gap": "Largest gap",
        "ratio": "Largest ratio",
        "max_over_geometric_mean": "Max over geometric mean",
        "gini": "Gini",
        "fdr": "FDR",
        "inequity": "Inequity rate",
        "garbe": "GARBE",
    }
)
# Figures that are differences of rates, shown in points; the others are numbers.
_IN_POINTS = frozenset({"gap"})
# The order of the shot bands, whatever the alphabet says.
_BANDS = ("many", "few", "one", "zero")


def share(rate: float | None) -> str:
    """A rate in percent: two decimals from 1 % on, else two significant digits: 0.83024 -> '83.02', 5e-5 -> '0.005'."""
    if rate is None:
        return EN_DASH
    percent = 100 * rate
    if abs(percent) >= 1 or percent == 0:
        return f"{percent:.2f}" if percent else "0"
    return f"{float(f'{percent:.2g}'):.12f}".rstrip("0").rstrip(".")


def limits(low: float | None, high: float | None) -> str:
    """Both ends of an interval of rates in percent, empty without any: 74.5 to 89.1 with an en dash."""
    if low is None and high is None:
        return ""
    # Two dashes side by side would be read as one.
    between = " to " if low is not None and low < 0 else EN_DASH
    return f"{_end(low)}{between}{_end(high)}"


def _end(rate: float | None) -> str:
    if rate is None:
        return "?"
    return f"{100 * rate:.1f}" if abs(rate) >= 0.01 else share(rate)


def group_name(values: list[str]) -> str:
    """A group in one word, as `female & 30-<45`."""
    return " & ".join(values)


def group_order(by: list[str], values: list[str]) -> tuple:
    """A key that sorts groups by name, but shot bands from many to zero."""
    bands = [
        _BANDS.index(value) if name == "shots" and value in _BANDS else -1
        for name, value in zip(by, values, strict=True)
    ]
    return tuple(zip(bands, values, strict=True))


def p_value(p: float | None) -> str:
    """A p value with two significant digits, a dash for none."""
    return EN_DASH if p is None else f"{float(f'{p:.2g}'):g}"


def figure_text(row: dict) -> str:
    """A disparity's value as text: points for a gap, else a number; `at least` where it is a bound."""
    if row["value"] is None:
        return EN_DASH
    text = f"{share(row['value'])} points" if row["figure"] in _IN_POINTS else number(row["value"])
    return f"at least {text}" if row["at_least"] else text


def figure_limits(row: dict) -> str:
    """The interval of a disparity as text, empty where it has none."""
    if row["low"] is None and row["high"] is None:
        return ""
    if row["figure"] in _IN_POINTS:
        return limits(row["low"], row["high"])
    return f"{number(row['low'])}{EN_DASH}{number(row['high'])}"


def number(value: float | None) -> str:
    """A ratio or an index with three significant digits, `?` where it is not known."""
    if value is None:
        return "?"
    return f"{float(f'{value:.3g}'):g}" if abs(value) >= 1e-6 else "0"


def is_significant(contrast: dict, level: float) -> bool | None:
    """Whether the adjusted test rejects equality; None where there is no test."""
    p = contrast["adjusted_p"]
    return None if p is None else p < 1 - level


def verdict(contrast: dict, level: float) -> str:
    """In words whether a difference of two groups is more than chance."""
    known = is_significant(contrast, level)
    if known is None:
        return "not tested: people are in several of these groups"
    chance = f"{100 * (1 - level):g} %"
    return f"significant at {chance}" if known else f"not significant at {chance}"


def gap_sentence(contrast: dict, rates: Mapping[tuple, dict], level: float) -> str:
    """The two groups furthest apart in a metric, with rates, interval and what the test says."""
    first, second = (group_name(contrast[side]) for side in ("first", "second"))
    name = METRICS[contrast["metric"]].long
    high, low = (share(rates[tuple(contrast[side])]["rate"]) for side in ("first", "second"))
    tested = f", p = {p_value(contrast['p'])}, {p_value(contrast['adjusted_p'])} after Holm's correction"
    tested = tested if contrast["p"] is not None else ""
    return (
        f"{name}: {first} {high} %, {second} {low} %, a gap of {share(contrast['difference'])} points "
        f"({100 * level:g} % interval of the difference {_end(contrast['low'])} to {_end(contrast['high'])}{tested}): "
        f"{verdict(contrast, level)}."
    )


def largest_gaps(grouping: dict, level: float) -> list[str]:
    """A sentence for the largest gap of each metric of a grouping, rank 1 first; none where nothing can be compared."""
    sentences = []
    for metric in METRICS:
        found = [one for one in grouping["contrasts"] if one["metric"] == metric]
        if found:
            rates = {tuple(group["group"]): group["rates"][metric] for group in grouping["groups"]}
            sentences.append(gap_sentence(max(found, key=lambda one: one["difference"]), rates, level))
    return sentences


def threshold_text(threshold: dict) -> str:
    """A threshold, where it was set and on how much."""
    if threshold["kind"] == "given":
        return f"{threshold['score']:.4g}, {threshold['where']}"
    name = threshold["kind"].upper()
    text = (
        f"{threshold['score']:.4f}, set on {threshold['where']} for {name} {share(threshold['wanted'])} %; "
        f"{name} there is {share(threshold['rate'])} % of {threshold['trials']:,}"
    )
    return text if threshold["supported"] else f"{text}, too few for 30 errors at that rate"


def model_card(report: dict) -> str:
    """One paragraph for a model card, plain text; of a training record alone, who was in it."""
    level, parts = report["statistics"]["level"], []
    subject, provenance = report["subject"], report["provenance"]
    if subject is not None:
        who = f"{subject['identities']:,} people"
        what = (
            f"{subject['images']:,} images of {who}" if "images" in subject else f"{subject['pairs']:,} pairs of {who}"
        )
        of = f" ({provenance['data']})" if provenance["data"] else ""
        parts.append(f"Error rates were measured by group on {what}{of}, at one threshold for all groups.")
        parts += [f"Threshold for {use}: {threshold_text(one)}." for use, one in report["thresholds"].items()]
        for grouping in report["groupings"]:
            if "shots" not in grouping["by"]:
                told = " ".join(_capital(one) for one in largest_gaps(grouping, level))
                parts.append(f"By {' and '.join(grouping['by'])}: {told or 'fewer than two groups are large enough.'}")
    if report["training"] is not None:
        training = report["training"]
        parts.append(f"The training record holds {training['images']:,} images of {training['identities']:,} people:")
        parts += [_training_sentence(grouping) for grouping in training["groupings"]]
    parts.append("Attributes come from lists, not from the people; no gap found is no proof that there is none.")
    return " ".join(parts)


def _training_sentence(grouping: dict) -> str:
    told = ", ".join(
        f"{group_name(group['group'])} {share(group['share_of_images'])} % of the images "
        f"({group['identities']:,} people)"
        for group in grouping["groups"]
    )
    return f"{told}."


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def print_audit(report: dict, console: "Console | None" = None) -> None:
    """Print rates by group in percent with their intervals, the largest gap of each metric, and the training counts.

    Args:
        report: schema `facelt.audit/1`.
        console: a rich console; by default one on standard output.
    """
    from rich.console import Console
    from rich.text import Text

    report = plain(report)
    console = console or Console()
    level = report["statistics"]["level"]
    for grouping in report["groupings"]:
        console.print(_rates(grouping, report))
        for sentence in largest_gaps(grouping, level) if "shots" not in grouping["by"] else ():
            console.print(Text(sanitize(sentence)))
    for grouping in (report["against"] or {"groupings": []})["groupings"]:
        console.print(_against(grouping))
    for grouping in (report["training"] or {"groupings": []})["groupings"]:
        console.print(_training(grouping))
    for use, threshold in report["thresholds"].items():
        console.print(Text(sanitize(f"Threshold for {use}: {threshold_text(threshold)}."), style="dim"))
    for note in report["notes"]:
        console.print(Text(sanitize(f"Note: {note}"), style="dim"))


def _rates(grouping: dict, report: dict) -> "Table":
    from rich.text import Text

    table = _table(f"By {' and '.join(grouping['by'])}", "group")
    metrics = [metric for metric in METRICS if metric in report["overall"]]
    for metric in metrics:
        table.add_column(METRICS[metric].short, justify="right")
    rows = [("all", report["overall"], False)]
    rows += [(group_name(group["group"]), group["rates"], group["small"]) for group in grouping["groups"]]
    for name, rates, small in rows:
        label = Text(shorten(name), style="dim" if small else "bold")
        label.append("\ntoo small" if small else "", style="not bold dim")
        table.add_row(label, *(_cell(rates[metric]) for metric in metrics))
    return table


def _cell(row: dict | None):
    from rich.text import Text

    if row is None or row["rate"] is None:
        return Text("-")
    text = Text(share(row["rate"]))
    if ends := limits(row["low"], row["high"]):
        text.append(f"\n{ends}", style="dim")
    return text


def _against(grouping: dict) -> "Table":
    from rich.text import Text

    table = _table(f"Rank 1 of the other model less this one, by {' and '.join(grouping['by'])}", "group")
    for name in ("this", "other", "difference", "p (Holm)"):
        table.add_column(name, justify="right")
    for row in grouping["rows"]:
        ends = f"{share(row['difference'])}\n{limits(row['low'], row['high'])}"
        p = "-" if row["adjusted_p"] is None else f"{row['adjusted_p']:.2g}"
        table.add_row(Text(shorten(group_name(row["group"]))), share(row["rate"]), share(row["other_rate"]), ends, p)
    return table


def _training(grouping: dict) -> "Table":
    from rich.text import Text

    table = _table(f"Training images (identities) by {' and '.join(grouping['by'])}", "group")
    bands = list(grouping["groups"][0]["bands"])
    for name in ("all", *bands):
        table.add_column(name, justify="right")
    for group in grouping["groups"]:
        counts = [group, *(group["bands"][band] for band in bands)]
        cells = (f"{one['images']:,} ({one['identities']:,})" for one in counts)
        table.add_row(Text(shorten(group_name(group["group"]))), *cells)
    return table


def _table(title: str, first: str) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(sanitize(title), style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first, overflow="fold")
    return table
