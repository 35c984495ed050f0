"""What classes are called, for whoever reads a table of them.

C classes.

The figures of a trained model on a split: closed-set, and with images of unknown classes mixed in.

Shapes: N images, C classes.

Images of classes that a model was not trained on: the data's own split of them, or any other images.

Shapes: N images.

Asking a trained model everything an evaluation is made of.

Closed-set accuracy of a trained model, and nothing else of it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np

from facelt.config.registry import OPENSET_SCORERS
from facelt.config.train import TrainConfig
from facelt.data.image_files import ImageFileDataset, folder_names
from facelt.data.kind import Split, TrainingData
from facelt.errors import UserError
from facelt.inference.model import TrainedModel
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
    known: OpenSetPredictions
    rejection: Rejection | None = None
    unknown: OpenSetPredictions | None = None
    number: int = 1

    @cached_property
    def counts_C(self) -> np.ndarray:
        """Training images of each class, int64 [C]."""
        return self.data.train_counts

    @cached_property
    def names(self) -> list[str]:
        """What the classes are called, [C]."""
        return self.model.config.data.class_names(self.data)

    @property
    def name(self) -> str:
        """What the model is called where several are compared: its run and its stage, and, from the second model of one
        name on, a number.
        """
        again = f" ({self.number})" if self.number > 1 else ""
        return f"{self.model.config.out.name}/{self.model.card['stage']}{again}"

    def with_unique_name(self, others: Sequence["Evaluation"]) -> "Evaluation":
        """The same with a name that none of these has."""
        taken = {one.name for one in others}
        numbered = (replace(self, number=number) for number in count(1))
        return next(one for one in numbered if one.name not in taken)

    def with_unknown(self, unknown: OpenSetPredictions) -> "Evaluation":
        """The same with other unknown images."""
        return replace(self, unknown=unknown)

    def labels_and_predictions(self, threshold: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """True classes and answers of known and unknown images, int64 [N], at another threshold or its own."""
        threshold = self.rejection.threshold if threshold is None else threshold
        both = (self.known, self.unknown)
        return np.concatenate([one.label_N for one in both]), np.concatenate(
            [one.reject_below(threshold) for one in both]
        )

    def report(self) -> EvaluationReport:
        """Schema `facelt.evaluation/1`; rates are fractions, None where there is nothing to measure them on."""
        known = self.known
        right_N = known.class_N == known.label_N
        values = {
            "model": {"name": self.name, "weights_sha256": self.model.weights_sha256, "classes": len(self.counts_C)},
            "split": self.split,
            "convention": self.convention,
            **asdict(shot_accuracy(self.counts_C, known.label_N, known.class_N, self.convention)),
            "macro_f": closed_macro_f(known.label_N, known.class_N),
            "ece": expected_calibration_error(np.minimum(known.confidence_N, 1), right_N),
            "ece_bins": CALIBRATION_BINS,
            "open": None if self.rejection is None else self._open(),
            "experts": self._experts(),
        }
        return EvaluationReport.build(values)

    def _experts(self) -> dict | None:
        known = self.known
        if known.expert_prediction_NK is None:
            return None
        return asdict(expert_counts(known.label_N, known.expert_prediction_NK.T, known.class_N))

    def _open(self) -> dict:
        label_N, answer_N = self.labels_and_predictions()
        found = detection_metrics(self.known.score_N, self.unknown.score_N)
        curve = self.oscr
        confusion = open_confusion(self.counts_C, label_N, answer_N, self.convention)
        return {
            **asdict(self.rejection),
            **self.figures_at(self.rejection.threshold),
            **{key: value for key, value in asdict(found).items() if key != "reason"},
            "oscr": None if curve is None else curve.area,
            "reason": found.reason,
            "confusion": {
                true: dict(zip(CONFUSION_COLUMNS, row, strict=True))
                for true, row in zip(CONFUSION_ROWS, confusion.tolist(), strict=True)
            },
        }

    def figures_at(self, threshold: float) -> dict:
        """What depends on the threshold: accuracies of known images, of which some are rejected, and F-measures."""
        label_N, answer_N = self.labels_and_predictions(threshold)
        open_answer_N = answer_N[label_N < 0]
        return {
            **asdict(shot_accuracy(self.counts_C, label_N, answer_N, self.convention)),
            "open_image_source": len(open_answer_N),
            "open_rejected": float((open_answer_N < 0).mean()) if len(open_answer_N) else None,
            **{f"f_measure_{form}": open_set_f_measure(label_N, answer_N, form) for form in F_MEASURE_FORMS},
            "macro_f_with_unknown": open_macro_f(label_N, answer_N),
        }

    @cached_property
    def oscr(self) -> OscrCurve | None:
        """The curve of the rejection's score; None without known or without unknown images."""
        right_N = self.known.open_class_N == self.known.label_N
        return oscr_curve(self.known.score_N, right_N, self.unknown.score_N)

    def classes(self) -> tuple[list[str], list[list]]:
        """(header, a row for each class): training images, band, images tested, named rightly, and with rejection."""
        images_C, right_C = per_class_counts(self.known.label_N, self.known.class_N, len(self.counts_C))
        band_C = shot_bands(self.counts_C, self.convention)
        header = ["class", "name", "training_images", "band", "images", "right", "accuracy"]
        bands = [SHOT_BANDS[band] for band in band_C]
        columns = [range(len(self.counts_C)), self.names, self.counts_C.tolist(), bands]
        columns += [images_C.tolist(), right_C.tolist(), _shares(right_C, images_C)]
        if self.rejection is not None:
            header += ["right_with_rejection", "accuracy_with_rejection", "rejected"]
            answer_N = self.known.reject_below(self.rejection.threshold)
            _, kept_C = per_class_counts(self.known.label_N, answer_N, len(self.counts_C))
            gone_C = np.bincount(self.known.label_N[answer_N < 0], minlength=len(self.counts_C))
            columns += [kept_C.tolist(), _shares(kept_C, images_C), gone_C.tolist()]
        return header, [list(row) for row in zip(*columns, strict=True)]


def _shares(part_C: np.ndarray, whole_C: np.ndarray) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(part_C.tolist(), whole_C.tolist(), strict=True)]


SPLIT = "open"


@dataclass(frozen=True, eq=False)
class UnknownImages:
    """`split`, and the class of each image of its dataset, a name [N], as far as their paths tell."""

    split: Split
    class_N: np.ndarray

    def unknown(self, found: OpenSetPredictions) -> OpenSetPredictions:
        """Answers to these images with the label -1, whatever labels their dataset gives them."""
        return found._replace(label_N=np.full_like(found.label_N, -1))


def open_unknown_images(
    data: TrainingData, config: TrainConfig, path: Path | None = None, root: Path | None = None
) -> UnknownImages:
    """The images at `path` (a .rec, a folder, or a list with `root`), or the split `open` of the data.

    Classes are folders; where all images lie in one, what their names begin with, up to the first underscore. Raises
    UserError.
    """
    if path is not None:
        source = open_image_source(path, config, root=root)
        class_N = np.full(len(source.dataset), "", dtype=object)
        class_N[source.members] = source.identities
        return UnknownImages(Split(source.dataset, source.members), class_N)
    if SPLIT not in data.evaluation:
        raise UserError("--open: the configuration of this model has no data.open_set; name images with --open-images")
    split = data.evaluation[SPLIT]
    return UnknownImages(split, np.array(_classes(split.dataset), dtype=object))


def _classes(dataset: ImageFileDataset) -> list[str]:
    folders = folder_names(dataset.paths)
    return folders if any(folders) else [Path(path).name.partition("_")[0] for path in dataset.paths]


VALIDATION = "validation"


@dataclass(frozen=True)
class OpenSetOptions:
    """The open-set method, its threshold (None: its own, or one set on known images of the validation split), and the
    open images (None: the split `open` of the data).
    """

    method: str
    threshold: float | None = None
    images: Path | None = None
    root: Path | None = None


def evaluate_model(
    model: TrainedModel,
    split: str,
    convention: str,
    open_: OpenSetOptions | None,
    *,
    batch: int,
    workers: int,
    experts: bool = False,
    progress: ProgressFn = no_progress,
) -> tuple[Evaluation, UnknownImages | None]:
    """The evaluation, and the open images it is of; with `experts` also what each of the model's experts says alone.

    Raises UserError where the data have no such split, no open images, or nothing to set a threshold by, and where a
    model without experts is asked for them.
    """
    data = model.config.data.open(model.config.seed)
    predictor = Predictor.of(model, batch, workers, progress=progress)
    known_split = find_split(data, split)
    if open_ is None:
        known = predict_open_set(predictor, known_split, MaxSoftmax(), experts=experts, title=split)
        return Evaluation(model, data, split, convention, known), None
    images = open_unknown_images(data, model.config, open_.images, open_.root)
    rejecter = OPENSET_SCORERS.find(open_.method)()
    if open_.threshold is None and rejecter.threshold is None and VALIDATION not in data.evaluation:
        raise UserError(
            f"--threshold: {open_.method} has none of its own and there is no split {VALIDATION} to set it by; give one"
        )
    fit_scorer(rejecter, predictor, data)
    known = predict_open_set(predictor, known_split, rejecter, experts=experts, title=split)
    threshold, source = open_.threshold, "given"
    if threshold is None:
        threshold, source = rejecter.threshold, "the method's own"
    if threshold is None:
        validation = known
        if split != VALIDATION:
            validation = predict_open_set(predictor, data.evaluation[VALIDATION], rejecter, title=VALIDATION)
        threshold, source = _accepting(validation), f"accepts {TPR_PERCENT} % of known {VALIDATION} images"
    unknown = images.unknown(predict_open_set(predictor, images.split, rejecter, title="open images"))
    return Evaluation(
        model, data, split, convention, known, Rejection(open_.method, threshold, source), unknown
    ), images


def find_split(data: TrainingData, name: str) -> Split:
    """An evaluation split by name. Raises UserError, naming those there are."""
    if name not in data.evaluation:
        known = ", ".join(data.evaluation) or "none"
        raise UserError(f"--split {name}: the configuration of this model has no such split; it has: {known}")
    return data.evaluation[name]


def _accepting(found: OpenSetPredictions) -> float:
    threshold = threshold_at_tpr(found.decision_score_N[found.label_N >= 0])
    if threshold is None:
        raise UserError(f"--threshold: no known image of the split {VALIDATION} can be read to set it by; give one")
    return threshold


def closed_set_accuracy(model: TrainedModel, split: str, convention: str, *, batch: int, workers: int) -> ShotAccuracy:
    """Accuracy on a split of the data the model's configuration names. Raises UserError where there is none."""
    data = model.config.data.open(model.config.seed)
    result = predict_all(Predictor.of(model, batch, workers), find_split(data, split), ("label", "prediction"))
    return shot_accuracy(data.train_counts, result.label_N.numpy(), result.prediction_N.numpy(), convention)
