"""Reports on IJB and TinyFace: on the terminal, and as CSV tables."""

from typing import TYPE_CHECKING

from facelt.report.formatting import EN_DASH, percent, percent_interval, rate_name
from facelt.report.schema import IjbReport, RankRate, TinyfaceReport, VerificationSource
from facelt.report.terminal import label, make_table
from facelt.utils.tables import Table
from facelt.utils.text import sanitize

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def print_ijb(report: IjbReport, console: "Console | None" = None) -> None:
    """Prints TAR at each FAR, rank-k rates, and FNIR at each FPIR, in percent with their limits."""
    from rich.console import Console

    console = console or Console()
    pairs, identification = report.verification, report.identification
    _print_title(console, f"{report.dataset}, {_source(report.source)}; in %")
    table = make_table("", [f"TAR at\nFAR {rate_name(point.wanted)}" for point in pairs.points])
    table.add_row("1:1", *(_rate(point.tar, point.tar_limits, point.supported) for point in pairs.points))
    console.print(table)
    if identification is not None:
        columns = [f"rank {rank.rank}" for rank in identification.ranks]
        columns += [f"FNIR at\nFPIR {point.wanted:g}" for point in identification.points]
        table = make_table("", columns)
        cells = [*map(_rank, identification.ranks)]
        cells += [_rate(point.fnir, point.fnir_limits, point.supported) for point in identification.points]
        table.add_row("1:N", *cells)
        console.print(table)
    _print_legend(console, _ijb_legend(report))


def _ijb_legend(report: IjbReport) -> list[str]:
    pairs, identification = report.verification, report.identification
    weighting = ["weighed by the detection score"] if report.weighting.detector_score else ["not weighed"]
    weighting += ["scaled to unit length"] if report.weighting.normalized else []
    lines = [
        f"{report.templates:,} templates of {report.media:,} media, {report.images:,} images "
        f"({', '.join(weighting)}). Below a rate: its {100 * report.level:.0f} % limits at that threshold, clustered "
        "by person. A score at the threshold is a match; the threshold is the lowest that keeps the FAR or FPIR.",
        f"1:1: {pairs.mated:,} mated and {pairs.nonmated:,} non-mated pairs.",
    ]
    points = [*pairs.points]
    if identification is None:
        lines.append("The lists of 1:N identification are not there, so it is not measured.")
    else:
        points += identification.points
        galleries = "; ".join(
            f"{gallery.name} {gallery.templates:,} templates, {gallery.mated:,} mated and {gallery.nonmated:,} "
            "non-mated searches"
            for gallery in identification.galleries
        )
        lines.append(f"1:N: {galleries}. FNIR: mean of both galleries, at rank {identification.rank}.")
    if any(not point.supported and point.reason is None for point in points):
        lines.append("* uncertain: too few non-mated pairs or searches for 30 errors at this rate.")
    lines += [f"{EN_DASH} {reason}." for reason in dict.fromkeys(point.reason for point in points if point.reason)]
    return lines + [f"FAR {rate_name(point.wanted)}: {point.warning}." for point in pairs.points if point.warning]


def print_tinyface(report: TinyfaceReport, console: "Console | None" = None) -> None:
    """Prints the rank-k rates in percent with their limits."""
    from rich.console import Console

    console = console or Console()
    _print_title(console, f"TinyFace, {_source(report.source)}; in %")
    table = make_table("1:N", [f"rank {rank.rank}" for rank in report.ranks])
    mated = report.probes - report.probes_without_mate
    table.add_row(label(f"{mated:,}", "probes", style=""), *map(_rank, report.ranks))
    console.print(table)
    lines = [
        f"Gallery: {report.gallery_matches:,} images of {report.identities:,} probed and other identities, "
        f"{report.distractors:,} distractors. Below a rate: its {100 * report.level:.0f} % limits, clustered by person."
    ]
    if report.probes_without_mate:
        lines.append(f"{report.probes_without_mate:,} probes have no mate in the gallery and are not counted.")
    _print_legend(console, lines)


def face_benchmark_tables(report: IjbReport | TinyfaceReport) -> dict[str, Table]:
    """Returns the CSV tables of a report by file name."""
    return _ijb_tables(report) if isinstance(report, IjbReport) else {"ranks.csv": _rank_table(report.ranks)}


def _ijb_tables(report: IjbReport) -> dict[str, Table]:
    rows = [
        [point.wanted, point.tar, *(point.tar_limits or (None, None)), point.far, point.score, point.supported]
        for point in report.verification.points
    ]
    tables = {"verification.csv": Table(("far", "tar", "low", "high", "measured_far", "threshold", "supported"), rows)}
    if (identification := report.identification) is not None:
        rows = [
            [point.wanted, point.fnir, *(point.fnir_limits or (None, None)), point.fpir, point.supported]
            for point in identification.points
        ]
        tables["ranks.csv"] = _rank_table(identification.ranks)
        tables["open_set.csv"] = Table(("fpir", "fnir", "low", "high", "measured_fpir", "supported"), rows)
    return tables


def _rank_table(ranks: list[RankRate]) -> Table:
    return Table(
        ("rank", "rate", "low", "high"), [[rank.rank, rank.rate, *(rank.limits or (None, None))] for rank in ranks]
    )


def _source(source: VerificationSource) -> str:
    if source.kind is None:
        return source.name
    return f"{source.name}: {source.kind} embedding"


def _rank(rank: RankRate) -> "Text":
    return _rate(rank.rate, rank.limits, True)


def _rate(rate: float | None, limits: list[float] | None, supported: bool) -> "Text":
    star = "" if supported or rate is None else "*"
    return label(percent(rate) + star, *([] if limits is None else [percent_interval(*limits)]), style="")


def _print_title(console: "Console", title: str) -> None:
    from rich.text import Text

    console.print(Text(sanitize(title), style="bold"))


def _print_legend(console: "Console", lines: list[str]) -> None:
    from rich.text import Text

    console.print(Text("\n".join(map(sanitize, lines)), style="dim"), highlight=False)
