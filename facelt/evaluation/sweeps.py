"""Sweeps over the rejection threshold, the number of unknown classes, or the imbalance of training (OLTR, Figure 8).

N images.
"""

from collections.abc import Callable, Sequence
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
    """Rows (model, x, SWEEP_METRICS), for each model by ascending x; accuracies are those after rejection."""

    x_name: str
    rows: list[list]

    @property
    def header(self) -> tuple[str, ...]:
        return ("model", self.x_name, *SWEEP_METRICS)


def sweep_threshold(evaluations: Sequence[Evaluation], images: UnknownImages | None, seed: int) -> Sweep:
    """Sweeps the threshold: from 0 to 1 for probabilities, else over quantiles of the images' scores."""
    rows = []
    for evaluation in evaluations:
        thresholds = np.linspace(0, 1, _STEPS + 1)
        if OPENSET_SCORERS[evaluation.rejection.method].threshold is None:
            scores = [part.decision_score_N for part in (evaluation.known, evaluation.unknown)]
            thresholds = np.unique(np.quantile(np.concatenate(scores), thresholds))
        rows += [_row(evaluation.name, float(threshold), evaluation.metrics_at(threshold)) for threshold in thresholds]
    return Sweep("threshold", rows)


def sweep_open_classes(evaluations: Sequence[Evaluation], images: UnknownImages | None, seed: int) -> Sweep:
    """Sweeps the number of unknown classes, which are added in a random order of the seed.

    Raises UserError if the images are not known to be of several classes.
    """
    classes = np.unique(images.class_N[images.split.members].astype(str))
    if len(classes) < 2:
        raise UserError(
            "--sweep open-classes: the names of the unknown images do not give their classes; put each class in a "
            "folder, and name the parent folder with --open-images"
        )
    order = np.random.default_rng(seed).permutation(classes)
    rows = []
    for evaluation in evaluations:
        unknown, threshold = evaluation.unknown, evaluation.rejection.threshold
        class_N = images.class_N[unknown.index_N].astype(str)
        for number in np.unique(np.linspace(1, len(order), _STEPS).round().astype(int)).tolist():
            part = evaluation.with_unknown(unknown.subset(np.isin(class_N, order[:number])))
            rows.append(_row(evaluation.name, number, part.metrics_at(threshold)))
    return Sweep("open_classes", rows)


def sweep_longtailness(evaluations: Sequence[Evaluation], images: UnknownImages | None, seed: int) -> Sweep:
    """Compares models by the imbalance of their training data, the size of the largest class over the smallest.

    Rows of one method have one name. Raises UserError for a single model.
    """
    if len(evaluations) < 2:
        raise UserError("--sweep longtailness: compares models; give --checkpoint several times")
    rows = []
    for evaluation in evaluations:
        counts = evaluation.counts_C[evaluation.counts_C > 0]
        if evaluation.rejection is None:
            metrics = evaluation.report().json_values()
        else:
            metrics = evaluation.metrics_at(evaluation.rejection.threshold)
        rows.append(_row(evaluation.model.card["stage"], float(counts.max() / counts.min()), metrics))
    return Sweep("imbalance", sorted(rows, key=lambda row: row[:2]))


def _row(name: str, x: float, metrics: dict) -> list:
    return [name, x, *(metrics.get(metric) for metric in SWEEP_METRICS)]


SWEEPS: dict[str, Callable[[Sequence[Evaluation], UnknownImages | None, int], Sweep]] = {
    "threshold": sweep_threshold,
    "open-classes": sweep_open_classes,
    "longtailness": sweep_longtailness,
}
