"""Report on known people and strangers: sentences, plots, CSV tables, HTML page."""

from collections.abc import Sequence

from facelt.report.drawing import Plot, Series, Styles, assign_styles
from facelt.report.formatting import p_value, percent, percent_interval, points, points_interval, undecided_text
from facelt.report.html_page import markup, render
from facelt.report.known_people_schema import (
    KnownComparison,
    KnownPeopleReport,
    KnownRate,
    KnownScoreResult,
)
from facelt.report.plots import TradeoffCurve, bar_plot, dir_plot
from facelt.utils.tables import Table

# Doddington's rule: a FAR of fewer errors is uncertain.
_SUPPORTING_ERRORS = 30
_RATE_KEYS = tuple(KnownRate.model_fields)


def headline_scores(report: KnownPeopleReport) -> list[KnownScoreResult]:
    """Returns the reference and the default score of each model; of a single model all scores."""
    shown = {(model.name, model.default_score) for model in report.models}
    shown.add((report.reference.model, report.reference.score))
    return [result for result in report.scores if len(report.models) == 1 or (result.model, result.score) in shown]


def comparison_sentence(comparison: KnownComparison, report: KnownPeopleReport) -> str:
    """Returns a paired difference over all bands in words, with its interval, and if it is undecided."""
    size = points(abs(comparison.difference))
    condition = f"at FAR {100 * report.compared_far:g}%" if comparison.metric == "dir" else "without rejection"
    is_lower = comparison.difference < 0
    relation = f"{size} points {'fewer' if is_lower else 'more'} known people than"
    if size == "0":
        relation = "as many known people as"
    sentence = (
        f"{comparison.model} {comparison.score} names {relation} "
        f"{comparison.reference_model} {comparison.reference_score} {condition}"
    )
    if comparison.low is not None and comparison.high is not None:
        # The interval has the sign of the sentence: fewer by 1 to 3 points.
        ends = sorted((-1 if is_lower else 1) * end for end in (comparison.low, comparison.high))
        sentence += f", {100 * report.level:g}% interval {points_interval(*ends)}"
    if comparison.decided:
        return sentence
    # The interval may exclude 0 while that adjusted for all comparisons does not.
    if comparison.low is not None and (comparison.low > 0 or comparison.high < 0):
        ends = sorted((-1 if is_lower else 1) * end for end in (comparison.adjusted_low, comparison.adjusted_high))
        sentence += f", adjusted for all differences {points_interval(*ends)}"
    undecided = undecided_text(comparison.smallest_p, comparison.identities, report.level)
    return f"{sentence}: {undecided} (adjusted p {p_value(comparison.adjusted_p)})"


def headline_sentences(report: KnownPeopleReport) -> list[str]:
    """Returns a sentence on accuracy and one on DIR for each headline score but the reference, and for classifiers."""
    reference = (report.reference.model, report.reference.score)
    shown = {(result.model, result.score) for result in headline_scores(report)}
    return [
        comparison_sentence(row, report)
        for row in report.comparisons
        if row.band == "all"
        and ((row.model, row.score) in shown or (row.reference_model, row.reference_score) != reference)
    ]


def unmeasured_reasons(report: KnownPeopleReport) -> list[str]:
    """Returns the reasons for FARs without a threshold, each once."""
    return list(dict.fromkeys(point.reason for result in report.scores for point in result.dir if point.reason))


def known_people_tables(report: KnownPeopleReport) -> dict[str, Table]:
    """Returns the CSV tables by file name, in long form."""
    accuracy, detection, by_band, curves = [], [], [], []
    for result in report.scores:
        series = [result.model, result.score]
        accuracy += [[*series, band, *_rate_cells(rate)] for band, rate in result.accuracy.items()]
        by_band += [
            [*series, report.compared_far, band, *_rate_cells(rate)] for band, rate in result.dir_by_band.items()
        ]
        detection += [
            [*series, point.far, point.threshold, point.accepted, point.supported, *_rate_cells(point.rate)]
            for point in result.dir
        ]
        curves += [[*series, *point] for point in zip(result.curve.far, result.curve.dir, strict=True)]
    summary = [[*(getattr(result, key) for key in _SUMMARY_KEYS)] for result in report.scores]
    comparison_keys = tuple(KnownComparison.model_fields)
    comparisons = [[getattr(comparison, key) for key in comparison_keys] for comparison in report.comparisons]
    return {
        "accuracy.csv": Table(("model", "score", "band", *_RATE_KEYS), accuracy),
        "dir.csv": Table(("model", "score", "far", "threshold", "accepted", "supported", *_RATE_KEYS), detection),
        "dir_by_band.csv": Table(("model", "score", "far", "band", *_RATE_KEYS), by_band),
        "detection.csv": Table(_SUMMARY_KEYS, summary),
        "curves.csv": Table(("model", "score", "far", "dir"), curves),
        "comparisons.csv": Table(comparison_keys, comparisons),
    }


_SUMMARY_KEYS = ("model", "score", "auroc", "oscr", "fpr_at_95_tpr")


def _rate_cells(rate: KnownRate | None) -> list[object]:
    return [None if rate is None else getattr(rate, key) for key in _RATE_KEYS]


def known_people_page(report: KnownPeopleReport) -> str:
    """Returns the report as one HTML page."""
    headline = headline_scores(report)
    styles = assign_styles([(result.model, result.score) for result in headline])
    return render(
        "known_people.html",
        {
            "report": report,
            "sentences": headline_sentences(report),
            "reasons": unmeasured_reasons(report),
            "strangers": sum(source.images for source in report.strangers),
            "plots": [_dir_plot(report, headline, styles), _accuracy_plot(report, headline, styles)],
        },
    )


def _label(result: KnownScoreResult) -> str:
    return f"{result.model} · {result.score}"


def _dir_plot(report: KnownPeopleReport, headline: Sequence[KnownScoreResult], styles: Styles) -> Plot:
    strangers = sum(source.images for source in report.strangers)
    curves = [
        TradeoffCurve(
            _label(result), result.curve.far, result.curve.dir,
            [(point.far, None if point.rate is None else point.rate.rate) for point in result.dir],
            _SUPPORTING_ERRORS / strangers, styles[result.model, result.score],
        )
        for result in headline
    ]  # fmt: skip
    return dir_plot(curves)


def _accuracy_plot(report: KnownPeopleReport, headline: Sequence[KnownScoreResult], styles: Styles) -> Plot:
    names = ["all", *report.bands]
    series = tuple(
        Series(
            _label(result),
            *(
                [None if value is None else 100 * value for value in values]
                for values in zip(
                    *((rate.rate, rate.low, rate.high) for rate in map(result.accuracy.get, names)), strict=True
                )
            ),
            style=styles[result.model, result.score],
        )
        for result in headline
    )
    spoken = "; ".join(
        f"{line.label} "
        + ", ".join(
            f"{name} {'not measured' if rate is None else f'{rate:.1f} percent'}"
            for name, rate in zip(names, line.rate, strict=True)
        )
        for line in series
    )
    svg = bar_plot(
        series, names, y_label="rank-1 accuracy (%)",
        description=f"Bar plot of the rank-1 accuracy by training images of the identity: {spoken}.",
    )  # fmt: skip
    limits = ", ".join(f"{band} {images}" for band, images in report.bands.items())
    caption = (
        f"Without rejection, by the training images of the identity ({limits}). Thin lines are "
        f"{100 * report.level:g}\u00a0% intervals; a dash marks a band without images."
    )
    data = tuple(
        (
            _label(result),
            *(
                f"{percent(rate.rate, 1)} {percent_interval(rate.low, rate.high)}".strip()
                for rate in map(result.accuracy.get, names)
            ),
        )
        for result in headline
    )
    return Plot("Rank-1 accuracy by training images", caption, markup(svg), series, ("", *names), data)
