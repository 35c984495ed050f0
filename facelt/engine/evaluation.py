"""The figures of a trained model on a split: closed-set, and with images of unknown classes mixed in.

Shapes: N images, C classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import count

import numpy as np

from facelt.engine.answers import Answers
from facelt.engine.class_names import class_names
from facelt.engine.data import TrainingData
from facelt.engine.handed_on import TrainedModel
from facelt.metrics.accuracy import BANDS, class_counts, shot_accuracy, shot_bands
from facelt.metrics.calibration import BINS, expected_calibration_error
from facelt.metrics.detection import detection
from facelt.metrics.experts import ExpertCounts
from facelt.metrics.open_confusion import ANSWERS, TRUE, open_confusion
from facelt.metrics.open_set import F_MEASURE_FORMS, closed_macro_f, open_macro_f, open_set_f_measure
from facelt.metrics.oscr import OscrCurve, oscr

SCHEMA = "facelt.evaluation/1"


@dataclass(frozen=True)
class Rejection:
    """By which open-set method images are rejected, and at which threshold, set by what."""

    method: str
    threshold: float
    threshold_from: str


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model answers to known images and, with a rejection, to those of unknown classes; all figures of it."""

    model: TrainedModel
    data: TrainingData
    split: str
    convention: str
    known: Answers
    rejection: Rejection | None = None
    unknown: Answers | None = None
    number: int = 1
    experts: ExpertCounts | None = None

    @cached_property
    def counts_C(self) -> np.ndarray:
        """Training images of each class, int64 [C]."""
        return self.data.train_counts

    @cached_property
    def names(self) -> list[str]:
        """What the classes are called, [C]."""
        return class_names(self.data, self.model.config.data)

    @property
    def name(self) -> str:
        """What the model is called where several are compared: its run and its stage, and, from the second model of one
        name on, a number.
        """
        again = f" ({self.number})" if self.number > 1 else ""
        return f"{self.model.config.out.name}/{self.model.card['stage']}{again}"

    def beside(self, others: Sequence["Evaluation"]) -> "Evaluation":
        """The same with a name that none of these has."""
        taken = {one.name for one in others}
        numbered = (replace(self, number=number) for number in count(1))
        return next(one for one in numbered if one.name not in taken)

    def with_unknown(self, unknown: Answers) -> "Evaluation":
        """The same with other unknown images."""
        return replace(self, unknown=unknown)

    def labels_and_answers(self, threshold: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """True classes and answers of known and unknown images, int64 [N], at another threshold or its own."""
        threshold = self.rejection.threshold if threshold is None else threshold
        both = (self.known, self.unknown)
        return np.concatenate([one.label_N for one in both]), np.concatenate([one.at(threshold) for one in both])

    def report(self) -> dict:
        """Schema `facelt.evaluation/1`; rates are fractions, None where there is nothing to measure them on."""
        known = self.known
        right_N = known.class_N == known.label_N
        return {
            "schema": SCHEMA,
            "model": {"name": self.name, "weights_sha256": self.model.weights_sha256, "classes": len(self.counts_C)},
            "split": self.split,
            "convention": self.convention,
            **asdict(shot_accuracy(self.counts_C, known.label_N, known.class_N, self.convention)),
            "macro_f": closed_macro_f(known.label_N, known.class_N),
            "ece": expected_calibration_error(np.minimum(known.confidence_N, 1), right_N),
            "ece_bins": BINS,
            "open": None if self.rejection is None else self._open(),
            "experts": None if self.experts is None else asdict(self.experts),
        }

    def _open(self) -> dict:
        label_N, answer_N = self.labels_and_answers()
        found = detection(self.known.score_N, self.unknown.score_N)
        curve = self.oscr
        confusion = open_confusion(self.counts_C, label_N, answer_N, self.convention)
        return {
            **asdict(self.rejection),
            **self.figures_at(self.rejection.threshold),
            **{key: value for key, value in asdict(found).items() if key != "reason"},
            "oscr": None if curve is None else curve.area,
            "reason": found.reason,
            "confusion": {
                true: dict(zip(ANSWERS, row, strict=True)) for true, row in zip(TRUE, confusion.tolist(), strict=True)
            },
        }

    def figures_at(self, threshold: float) -> dict:
        """What depends on the threshold: accuracies of known images, of which some are rejected, and F-measures."""
        label_N, answer_N = self.labels_and_answers(threshold)
        open_answer_N = answer_N[label_N < 0]
        return {
            **asdict(shot_accuracy(self.counts_C, label_N, answer_N, self.convention)),
            "open_images": len(open_answer_N),
            "open_rejected": float((open_answer_N < 0).mean()) if len(open_answer_N) else None,
            **{f"f_measure_{form}": open_set_f_measure(label_N, answer_N, form) for form in F_MEASURE_FORMS},
            "macro_f_with_unknown": open_macro_f(label_N, answer_N),
        }

    @cached_property
    def oscr(self) -> OscrCurve | None:
        """The curve of the rejection's score; None without known or without unknown images."""
        right_N = self.known.open_class_N == self.known.label_N
        return oscr(self.known.score_N, right_N, self.unknown.score_N)

    def classes(self) -> tuple[list[str], list[list]]:
        """(header, a row for each class): training images, band, images tested, named rightly, and with rejection."""
        images_C, right_C = class_counts(self.known.label_N, self.known.class_N, len(self.counts_C))
        band_C = shot_bands(self.counts_C, self.convention)
        header = ["class", "name", "training_images", "band", "images", "right", "accuracy"]
        bands = [BANDS[band] for band in band_C]
        columns = [range(len(self.counts_C)), self.names, self.counts_C.tolist(), bands]
        columns += [images_C.tolist(), right_C.tolist(), _shares(right_C, images_C)]
        if self.rejection is not None:
            header += ["right_with_rejection", "accuracy_with_rejection", "rejected"]
            answer_N = self.known.at(self.rejection.threshold)
            _, kept_C = class_counts(self.known.label_N, answer_N, len(self.counts_C))
            gone_C = np.bincount(self.known.label_N[answer_N < 0], minlength=len(self.counts_C))
            columns += [kept_C.tolist(), _shares(kept_C, images_C), gone_C.tolist()]
        return header, [list(row) for row in zip(*columns, strict=True)]


def _shares(part_C: np.ndarray, whole_C: np.ndarray) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(part_C.tolist(), whole_C.tolist(), strict=True)]
