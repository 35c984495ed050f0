"""Asking a trained model everything an evaluation is made of."""

from dataclasses import dataclass
from pathlib import Path

from facelt.data.bad_images import BadImageCount
from facelt.engine.answers import Answers, Respondent, answers, fit_rejecter
from facelt.engine.data import Split, TrainingData, open_data
from facelt.engine.evaluation import Evaluation, Rejection
from facelt.engine.experts import expert_predictions
from facelt.engine.handed_on import TrainedModel
from facelt.engine.open_images import OpenImages, find_open_images
from facelt.engine.reading import Reading
from facelt.errors import UserError
from facelt.metrics.detection import WANTED, accepting_threshold
from facelt.metrics.experts import expert_counts
from facelt.openset import OPENSET

VALIDATION = "validation"


@dataclass(frozen=True)
class OpenQuestion:
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
    open_: OpenQuestion | None,
    *,
    batch: int,
    workers: int,
    experts: bool = False,
) -> tuple[Evaluation, OpenImages | None]:
    """The evaluation, and the open images it is of; with `experts` also what each of the model's experts says alone.

    Raises UserError where the data have no such split, no open images, or nothing to set a threshold by, and where a
    model without experts is asked for them.
    """
    data = open_data(model.config.data, model.config.seed)
    bad = BadImageCount(model.config.data.max_bad_images)
    device = next(model.method.parameters()).device
    asked = Respondent(model.method, data.preparation, Reading(batch, workers, device, bad))
    known_split = find_split(data, split)
    apart = None
    if experts:
        apart = expert_counts(*expert_predictions(model.method, known_split, asked.preparation, asked.reading))
    if open_ is None:
        known = answers(asked, known_split, OPENSET["threshold"](), split)
        return Evaluation(model, data, split, convention, known, experts=apart), None
    images = find_open_images(data, model.config, open_.images, open_.root)
    rejecter = OPENSET[open_.method]()
    if open_.threshold is None and rejecter.threshold is None and VALIDATION not in data.evaluation:
        raise UserError(
            f"--threshold: {open_.method} has none of its own and there is no split {VALIDATION} to set it by; give one"
        )
    fit_rejecter(rejecter, asked, data)
    known = answers(asked, known_split, rejecter, split)

    def held_out() -> Answers:
        return known if split == VALIDATION else answers(asked, data.evaluation[VALIDATION], rejecter, VALIDATION)

    threshold, source = open_.threshold, "given"
    if threshold is None:
        threshold, source = rejecter.threshold, "the method's own"
    if threshold is None:
        threshold, source = _accepting(held_out()), f"accepts {WANTED} % of known {VALIDATION} images"
    unknown = images.unknown(answers(asked, images.split, rejecter, "open images"))
    rejection = Rejection(open_.method, threshold, source)
    return Evaluation(model, data, split, convention, known, rejection, unknown, experts=apart), images


def find_split(data: TrainingData, name: str) -> Split:
    """An evaluation split by name. Raises UserError, naming those there are."""
    if name not in data.evaluation:
        known = ", ".join(data.evaluation) or "none"
        raise UserError(f"--split {name}: the configuration of this model has no such split; it has: {known}")
    return data.evaluation[name]


def _accepting(found: Answers) -> float:
    threshold = accepting_threshold(found.held_N[found.label_N >= 0])
    if threshold is None:
        raise UserError(f"--threshold: no known image of the split {VALIDATION} can be read to set it by; give one")
    return threshold
