"""Verification sets through a network: embeddings of their images, and accuracies at each validation of a training.

U different images, D feature, b this rank's images of a batch, P pairs.
"""

from pathlib import Path

import numpy as np
import torch

from facelt.config.train import TrainConfig
from facelt.data.batch import BadImageTracker
from facelt.data.kind import Split
from facelt.data.verification_set import VerificationSet
from facelt.errors import UserError
from facelt.inference.model import TrainedModel
from facelt.inference.predict import EvalLoaderConfig, Predictor, iterate_split, predict_all
from facelt.methods.base import Method
from facelt.metrics.ten_fold import squared_distances, ten_fold, unmeasurable_reason

TRAINED_KIND = "direct"
"""What a training is watched by: every method makes it, and it is what arcface_torch measures."""


def open_verification_set(path: Path, config: TrainConfig, root: Path | None = None) -> VerificationSet:
    """A set whose images are prepared as the model's configuration says. Raises UserError."""
    found = VerificationSet(path, transform=config.data.eval_transform(), max_pixels=config.data.max_pixels, root=root)
    if reason := unmeasurable_reason(found.pairs.same_P):
        raise UserError(f"{path}: {reason}")
    return found


def require_kind(model: TrainedModel, kind: str) -> None:
    """Raises UserError, naming what there is, where a model does not make embeddings of that kind."""
    if kind not in model.method.kinds:
        made = ", ".join(model.method.kinds)
        raise UserError(f"--kind {kind}: the stage {model.card['stage']} of {model.weights.parent} makes {made} alone")


def embed_verification_set(
    method: Method,
    found: VerificationSet,
    config: TrainConfig,
    *,
    kind: str,
    mirrored: bool,
    batch: int,
    workers: int,
    device: torch.device,
) -> np.ndarray:
    """Embeddings of one kind of the set's different images, float32 [U,D], on every rank; each embeds a share.

    Where `mirrored` the feature is the mean of image and mirror image, of the same direction as arcface_torch's sum of
    both. Raises UserError naming an image that cannot be used.
    """
    loader = EvalLoaderConfig(batch, workers, device, _no_bad_image())
    predictor = Predictor(method, config.data.preprocessing(), loader)
    return predict_all(predictor, _split(found), (kind,), flip=mirrored).embeddings[kind].numpy()


class ValidationSets:
    """The sets of `validation.sets`, opened before a training begins and asked at each of its validations.

    Raises UserError, naming the key, where one cannot be read or holds an image that cannot be used: all are decoded
    once, for the first validation may be hours away.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._sets = {name: self._opened(name, path) for name, path in config.validation.sets.items()}

    def __call__(self, method: Method) -> dict[str, float]:
        """10-fold accuracy, flip-averaged, as `verification_<name>`.

        A pair with an embedding that is no direction, as those of a network that diverges, is taken for two people.
        """
        figures = {}
        for name, found in self._sets.items():
            embedding_UD = embed_verification_set(
                method, found, self._config, kind=TRAINED_KIND, mirrored=True, **self._reading(self._device)
            )
            distance_P = squared_distances(embedding_UD, found.pairs.left_P, found.pairs.right_P, unit=True)
            figures[f"verification_{name}"] = ten_fold(np.nan_to_num(distance_P, nan=4.0), found.pairs.same_P).mean
        return figures

    def _opened(self, name: str, path: Path) -> VerificationSet:
        try:
            found = open_verification_set(path, self._config)
            loader = EvalLoaderConfig(**self._reading(torch.device("cpu")), bad=_no_bad_image())
            for _ in iterate_split(_split(found), loader):
                pass
        except UserError as error:
            raise UserError(f"validation.sets.{name}: {error}") from None
        return found

    def _reading(self, device: torch.device) -> dict:
        return {"batch": self._config.optim.batch, "workers": self._config.data.workers, "device": device}


def _split(found: VerificationSet) -> Split:
    return Split(found.dataset, np.arange(len(found.dataset)))


def _no_bad_image() -> BadImageTracker:
    return BadImageTracker(0, "a verification set")
