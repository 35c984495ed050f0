"""Verification sets: embeddings of their images, and accuracy at each validation of a training run.

U distinct images, D feature, P pairs.
"""

from pathlib import Path

import numpy as np
import torch

from facelt.config.train import TrainConfig
from facelt.data.batch import BadImageTracker
from facelt.data.kind import Split
from facelt.data.verification_set import VerificationSet
from facelt.errors import UserError
from facelt.inference.predict import EvalLoaderConfig, Predictor, iterate_split, predict_all
from facelt.methods.base import Method
from facelt.metrics.ten_fold import squared_distances, ten_fold, unmeasurable_reason

NO_BAD_IMAGES = "a verification set"
"""The setting that bad-image errors name: a verification set allows none."""


def open_verification_set(path: Path, config: TrainConfig, root: Path | None = None) -> VerificationSet:
    """Opens a set with the transform of the model's configuration. Raises UserError."""
    transform = config.data.eval_transform()
    verification_set = VerificationSet(path, transform=transform, max_pixels=config.data.max_pixels, root=root)
    if reason := unmeasurable_reason(verification_set.pairs.same_P):
        raise UserError(f"{path}: {reason}")
    verification_set.dataset.require_usable(np.arange(len(verification_set.dataset)))
    return verification_set


def embed_verification_set(
    predictor: Predictor, verification_set: VerificationSet, kind: str, *, flip: bool = True
) -> np.ndarray:
    """Embeds the distinct images of a set, float32 [U,D], on every rank; the ranks share the images.

    With `flip` the feature is the mean of image and mirror image, which has the direction of arcface_torch's sum.
    Raises UserError naming an unusable image.
    """
    return predict_all(predictor, Split.whole(verification_set.dataset), (kind,), flip=flip).embeddings[kind].numpy()


class ValidationSets:
    """The sets of `validation.sets`, which are opened before training and measured at each validation.

    All images are decoded once before training, since the first validation may be hours away. Raises UserError naming
    the key of a set that cannot be read or holds an unusable image.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._sets = {name: self._open(name, path) for name, path in config.validation.sets.items()}

    def __call__(self, method: Method) -> dict[str, float]:
        """10-fold accuracy of flip-averaged `direct` embeddings, as in arcface_torch, by `verification_<name>`.

        A pair with an embedding that is not finite, after divergence, counts as two people.
        """
        predictor = Predictor(method, self._config.data.preprocessing(), self._loader(self._device))
        accuracy = {}
        for name, verification_set in self._sets.items():
            embedding_UD, pairs = embed_verification_set(predictor, verification_set, "direct"), verification_set.pairs
            distance_P = squared_distances(embedding_UD, pairs.left_P, pairs.right_P, unit=True)
            accuracy[f"verification_{name}"] = ten_fold(np.nan_to_num(distance_P, nan=4.0), pairs.same_P).mean
        return accuracy

    def _open(self, name: str, path: Path) -> VerificationSet:
        try:
            verification_set = open_verification_set(path, self._config)
            for _ in iterate_split(Split.whole(verification_set.dataset), self._loader(torch.device("cpu"))):
                pass
        except UserError as error:
            raise UserError(f"validation.sets.{name}: {error}") from None
        return verification_set

    def _loader(self, device: torch.device) -> EvalLoaderConfig:
        config = self._config
        return EvalLoaderConfig(config.optim.batch, config.data.workers, device, BadImageTracker(0, NO_BAD_IMAGES))
