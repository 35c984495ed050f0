"""Figures over one thing that varies, as OLTR's Figure 8 has them: the threshold, the open classes, the imbalance.

Shapes: N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from facelt.config.registry import OPENSET_SCORERS
from facelt.errors import UserError
from facelt.evaluation.evaluate import Evaluation, UnknownImages

SWEEP_METRICS = (
    *("overall", "many", "medium", "few", "open_images", "open_rejected"),
    *("f_measure_paper", "f_measure_released", "macro_f_with_unknown"),
)
_STEPS = 20


@dataclass(frozen=True)
class Sweep:
    """`rows` are (model, x, FIGURES) for each model and each x ascending; accuracies are those with rejection."""

    x_name: str
    rows: list[list]

    @property
    def header(self) -> tuple[str, ...]:
        return ("model", self.x_name, *SWEEP_METRICS)


def sweep_threshold(evaluations: Sequence[Evaluation], images: UnknownImages | None, seed: int) -> Sweep:
    """Every threshold from 0 to 1 where probabilities are held against it, else those that reject 0 to 100 % of the
    images in equal steps.
    """
    rows = []
    for one in evaluations:
        thresholds = np.linspace(0, 1, _STEPS + 1)
        if OPENSET_SCORERS[one.rejection.method].threshold is None:
            thresholds = np.unique(
                np.quantile(np.concatenate([one.known.decision_score_N, one.unknown.decision_score_N]), thresholds)
            )
        rows += [_row(one.name, float(threshold), one.figures_at(threshold)) for threshold in thresholds]
    return Sweep("threshold", rows)


def sweep_open_classes(evaluations: Sequence[Evaluation], images: UnknownImages | None, seed: int) -> Sweep:
    """More and more open classes, in an order drawn from the seed; all of them in the end.

    Raises UserError where the images are not known to be of several classes.
    """
    class_N = images.class_N[images.split.members]
    classes = np.unique(class_N.astype(str))
    if len(classes) < 2:
        raise UserError(
            "--sweep open-classes: the names of the open images tell no classes; lay them out as a folder a class, and "
            "name that with --open-images"
        )
    order = np.random.default_rng(seed).permutation(classes)
    rows = []
    for one in evaluations:
        for number in np.unique(np.linspace(1, len(order), _STEPS).round().astype(int)).tolist():
            some_N = np.isin(images.class_N[one.unknown.index_N].astype(str), order[:number])
            part = one.with_unknown(one.unknown.subset(some_N))
            rows.append(_row(one.name, number, part.figures_at(one.rejection.threshold)))
    return Sweep("open_classes", rows)


def sweep_longtailness(evaluations: Sequence[Evaluation], images: UnknownImages | None, seed: int) -> Sweep:
    """Models whose training data had different imbalance: the images of the largest class over the smallest.

    A line joins models of one method. Raises UserError for a single model.
    """
    if len(evaluations) < 2:
        raise UserError("--sweep longtailness: compares models; give --checkpoint several times")
    rows = []
    for one in evaluations:
        counts = one.counts_C[one.counts_C > 0]
        figures = one.report().json_values() if one.rejection is None else one.figures_at(one.rejection.threshold)
        rows.append(_row(one.model.card["stage"], float(counts.max() / counts.min()), figures))
    return Sweep("imbalance", sorted(rows, key=lambda row: row[:2]))


def _row(name: str, x: float, figures: dict) -> list:
    return [name, x, *(figures.get(figure) for figure in SWEEP_METRICS)]


SWEEPS = {"threshold": sweep_threshold, "open-classes": sweep_open_classes, "longtailness": sweep_longtailness}
