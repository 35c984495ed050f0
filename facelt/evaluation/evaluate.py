"""Closed-set and open-set evaluation of a trained model on a split. N images, C classes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from facelt.config.registry import OPENSET_SCORERS
from facelt.config.train import TrainConfig
from facelt.data.image_files import folder_names
from facelt.data.kind import Split, TrainingData
from facelt.errors import UserError
from facelt.inference.model import TrainedModel, run_stage_name
from facelt.inference.predict import OpenSetPredictions, Predictor, fit_scorer, predict_all, predict_open_set
from facelt.inference.sources import open_image_source
from facelt.metrics.classification import (
    CALIBRATION_BINS,
    SHOT_BANDS,
    ShotAccuracy,
    expected_calibration_error,
    expert_counts,
    per_class_counts,
    shot_accuracy,
    shot_bands,
)
from facelt.metrics.open_set import (
    CONFUSION_COLUMNS,
    CONFUSION_ROWS,
    F_MEASURE_FORMS,
    TPR_PERCENT,
    OscrCurve,
    closed_macro_f,
    detection_metrics,
    open_confusion,
    open_macro_f,
    open_set_f_measure,
    oscr_curve,
    threshold_at_tpr,
)
from facelt.openset.rejection import MaxSoftmax
from facelt.report.schema import EvaluationReport
from recordio_tools.progress import ProgressFn, no_progress

VALIDATION_SPLIT = "validation"
OPEN_SPLIT = "open"


@dataclass(frozen=True)
class OpenSetOptions:
    """An open-set method, its threshold, and images of unknown classes.

    Without a threshold, the method's default applies, or else one that is set on known images of the validation split.
    Without images, the split `open` of the data is used; `root` is the folder of a list's paths.
    """

    method: str
    threshold: float | None = None
    images: Path | None = None
    root: Path | None = None


@dataclass(frozen=True)
class Rejection:
    """The applied open-set method, its threshold, and the origin of the threshold."""

    method: str
    threshold: float
    threshold_from: str


@dataclass(frozen=True, eq=False)
class UnknownImages:
    """Images of unknown classes, and the class name of each image of the split's dataset, [N]."""

    split: Split
    class_N: np.ndarray


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions for known images and, with a rejection, for images of unknown classes; all metrics of them."""

    model: TrainedModel
    data: TrainingData
    split: str
    convention: str
    known: OpenSetPredictions
    rejection: Rejection | None = None
    unknown: OpenSetPredictions | None = None
    number: int = 1

    @cached_property
    def counts_C(self) -> np.ndarray:
        """Training images of each class, int64 [C]."""
        return self.data.train_counts

    @property
    def name(self) -> str:
        """The model's name, see `run_stage_name`."""
        return run_stage_name(self.model.config, self.model.card, self.number)

    def with_unique_name(self, others: Sequence["Evaluation"]) -> "Evaluation":
        """Returns a copy whose name differs from those of the others."""
        names = {other.name for other in others}
        numbered = (replace(self, number=number) for number in count(1))
        return next(evaluation for evaluation in numbered if evaluation.name not in names)

    def with_unknown(self, unknown: OpenSetPredictions) -> "Evaluation":
        """Returns a copy with other unknown images."""
        return replace(self, unknown=unknown)

    def report(self, comparison: Mapping[str, Any] | None = None) -> EvaluationReport:
        """Returns the report; rates are fractions, None without any image to measure them on.

        `comparison` are the values of its comparison with another model, if there is one.
        """
        known = self.known
        values = {
            "model": {"name": self.name, "weights_sha256": self.model.weights_sha256, "classes": len(self.counts_C)},
            "split": self.split,
            "convention": self.convention,
            **asdict(shot_accuracy(self.counts_C, known.label_N, known.class_N, self.convention)),
            "macro_f": closed_macro_f(known.label_N, known.class_N),
            "ece": expected_calibration_error(np.minimum(known.confidence_N, 1), known.class_N == known.label_N),
            "ece_bins": CALIBRATION_BINS,
            "open": None if self.rejection is None else self._open_set_report(),
            "experts": None,
        }
        if known.expert_prediction_NK is not None:
            counts = expert_counts(known.label_N, known.expert_prediction_NK.T, known.class_N)
            values["experts"] = asdict(counts)
        if comparison is not None:
            values["comparison"] = comparison
        return EvaluationReport.build(values)

    def _open_set_report(self) -> dict:
        label_N, prediction_N = self._labels_and_predictions(self.rejection.threshold)
        detection = asdict(detection_metrics(self.known.score_N, self.unknown.score_N))
        reason = detection.pop("reason")
        confusion = open_confusion(self.counts_C, label_N, prediction_N, self.convention)
        return {
            **asdict(self.rejection),
            **self.metrics_at(self.rejection.threshold),
            **detection,
            "oscr": None if self.oscr is None else self.oscr.area,
            "reason": reason,
            "confusion": {
                true: dict(zip(CONFUSION_COLUMNS, row, strict=True))
                for true, row in zip(CONFUSION_ROWS, confusion.tolist(), strict=True)
            },
        }

    def metrics_at(self, threshold: float) -> dict:
        """Returns the metrics that depend on the threshold: accuracies of known images after rejection, F-measures."""
        label_N, prediction_N = self._labels_and_predictions(threshold)
        is_rejected_U = prediction_N[label_N < 0] < 0
        return {
            **asdict(shot_accuracy(self.counts_C, label_N, prediction_N, self.convention)),
            "open_images": len(is_rejected_U),
            "open_rejected": float(is_rejected_U.mean()) if len(is_rejected_U) else None,
            **{f"f_measure_{form}": open_set_f_measure(label_N, prediction_N, form) for form in F_MEASURE_FORMS},
            "macro_f_with_unknown": open_macro_f(label_N, prediction_N),
        }

    def _labels_and_predictions(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Labels and predictions of known and unknown images, int64 [N]; -1 for unknown or rejected."""
        parts = (self.known, self.unknown)
        predictions = [part.reject_below(threshold) for part in parts]
        return np.concatenate([part.label_N for part in parts]), np.concatenate(predictions)

    @cached_property
    def oscr(self) -> OscrCurve | None:
        """The OSCR curve of the method's ranking score; None without known or without unknown images."""
        is_correct_N = self.known.open_class_N == self.known.label_N
        return oscr_curve(self.known.score_N, is_correct_N, self.unknown.score_N)

    def class_table(self) -> tuple[list[str], list[list]]:
        """Returns a header and a row for each class: training images, shot band, test images, and correct ones with and
        without rejection.
        """
        known, classes = self.known, len(self.counts_C)
        images_C, correct_C = per_class_counts(known.label_N, known.class_N, classes)
        bands = [SHOT_BANDS[band] for band in shot_bands(self.counts_C, self.convention)]
        header = ["class", "name", "training_images", "band", "images", "right", "accuracy"]
        columns = [range(classes), self.model.config.data.class_names(self.data), self.counts_C.tolist(), bands]
        columns += [images_C.tolist(), correct_C.tolist(), _fractions(correct_C, images_C)]
        if self.rejection is not None:
            header += ["right_with_rejection", "accuracy_with_rejection", "rejected"]
            prediction_N = known.reject_below(self.rejection.threshold)
            _, accepted_C = per_class_counts(known.label_N, prediction_N, classes)
            rejected_C = np.bincount(known.label_N[prediction_N < 0], minlength=classes)
            columns += [accepted_C.tolist(), _fractions(accepted_C, images_C), rejected_C.tolist()]
        return header, [list(row) for row in zip(*columns, strict=True)]


def _fractions(part_C: np.ndarray, total_C: np.ndarray) -> list[float | None]:
    return [part / total if total else None for part, total in zip(part_C.tolist(), total_C.tolist(), strict=True)]


def evaluate_model(
    model: TrainedModel,
    split: str,
    convention: str,
    open_set: OpenSetOptions | None,
    *,
    batch: int,
    workers: int,
    experts: bool = False,
    progress: ProgressFn = no_progress,
) -> tuple[Evaluation, UnknownImages | None]:
    """Evaluates a model on a split; returns the evaluation and its unknown images. With `experts` each expert as well.

    Raises UserError if the data have no such split, no unknown images or no images to set a threshold on, and for
    `experts` of a model without experts.
    """
    data = model.config.data.open(model.config.seed)
    predictor = Predictor.of(model, batch, workers, progress=progress)
    known_split = find_split(data, split)
    if open_set is None:
        known = predict_open_set(predictor, known_split, MaxSoftmax(), experts=experts, title=split)
        return Evaluation(model, data, split, convention, known), None
    images = open_unknown_images(data, model.config, open_set.images, open_set.root)
    scorer = OPENSET_SCORERS.find(open_set.method)()
    if open_set.threshold is None and scorer.threshold is None and VALIDATION_SPLIT not in data.evaluation:
        raise UserError(
            f"--threshold: {open_set.method} has no default and there is no split {VALIDATION_SPLIT} to set it on; "
            "give one"
        )
    fit_scorer(scorer, predictor, data)
    known = predict_open_set(predictor, known_split, scorer, experts=experts, title=split)
    threshold, source = open_set.threshold, "given"
    if threshold is None:
        threshold, source = scorer.threshold, "the method's own"
    if threshold is None:
        validation = known
        if split != VALIDATION_SPLIT:
            validation = predict_open_set(predictor, data.evaluation[VALIDATION_SPLIT], scorer, title=VALIDATION_SPLIT)
        threshold = threshold_at_tpr(validation.decision_score_N[validation.label_N >= 0])
        source = f"accepts {TPR_PERCENT} % of known {VALIDATION_SPLIT} images"
    if threshold is None:
        raise UserError(f"--threshold: no known image of the split {VALIDATION_SPLIT} can be read to set one")
    unknown = predict_open_set(predictor, images.split, scorer, title="unknown images")
    # They are unknown even if their dataset has labels.
    unknown = unknown._replace(label_N=np.full_like(unknown.label_N, -1))
    rejection = Rejection(open_set.method, threshold, source)
    return Evaluation(model, data, split, convention, known, rejection, unknown), images


def closed_set_accuracy(model: TrainedModel, split: str, convention: str, *, batch: int, workers: int) -> ShotAccuracy:
    """Returns the accuracy on a split of the model's data. Raises UserError if there is no such split."""
    data = model.config.data.open(model.config.seed)
    result = predict_all(Predictor.of(model, batch, workers), find_split(data, split), ("label", "prediction"))
    return shot_accuracy(data.train_counts, result.label_N.numpy(), result.prediction_N.numpy(), convention)


def find_split(data: TrainingData, name: str) -> Split:
    """Returns an evaluation split by name. Raises UserError with the names of all splits, and if it is unusable."""
    if name not in data.evaluation:
        names = ", ".join(data.evaluation) or "none"
        raise UserError(f"--split {name}: the configuration of this model has no such split; it has: {names}")
    split = data.evaluation[name]
    split.dataset.require_usable(split.members)
    return split


def open_unknown_images(
    data: TrainingData, config: TrainConfig, path: Path | None = None, root: Path | None = None
) -> UnknownImages:
    """Opens the images at `path` (a .rec, a folder, or a list with `root`), or the split `open` of the data.

    Classes are folders or, if all images are in one folder, file names up to the first underscore. Raises UserError.
    """
    if path is not None:
        source = open_image_source(path, config, root=root)
        class_N = np.full(len(source.dataset), "", dtype=object)
        class_N[source.members] = source.identities
        return UnknownImages(Split(source.dataset, source.members), class_N)
    if OPEN_SPLIT not in data.evaluation:
        raise UserError("--open: the configuration of this model has no data.open_set; name images with --open-images")
    split = data.evaluation[OPEN_SPLIT]
    split.dataset.require_usable(split.members)
    paths = split.dataset.paths
    classes = folder_names(paths)
    if not any(classes):
        classes = [Path(path).name.partition("_")[0] for path in paths]
    return UnknownImages(split, np.array(classes, dtype=object))
