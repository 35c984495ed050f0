"""Identity scores: the trained identity that a model gives an image, and an acceptance score, higher for known people.

N images, B of a batch, T training images, C classes, K classes with a training image, R rows that are searched, E
excluded identities, V values, D feature.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from facelt.config.base import EmbeddingKind
from facelt.data.kind import Split, TrainingData
from facelt.errors import UserError
from facelt.heads.memory import IdentityMemory
from facelt.inference.predict import Predictions, Predictor, predict
from facelt.search.search import Search

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# Kinds whose class means are scores: the direct embedding, and the direction of the meta-embedding.
_MEAN_KINDS = ("direct", "meta_unit")


@dataclass(frozen=True, eq=False)
class ImageOutputs:
    """Outputs of a model for the images of a split that could be read, in order; labels and indices int64 [N].

    `class_N` has the largest logit and `probability_N`, float64, its softmax probability. `reachability_N`, float64, is
    None without a memory. `embeddings` are of unit length, float32 [N,D] by kind. `own_N` is the identity that no score
    may give an image, -1 for none.
    """

    label_N: np.ndarray
    index_N: np.ndarray
    class_N: np.ndarray
    probability_N: np.ndarray
    reachability_N: np.ndarray | None
    embeddings: dict[str, np.ndarray]
    own_N: np.ndarray


def collect_outputs(predictor: Predictor, split: Split, *, without_own: bool = False, title: str = "") -> ImageOutputs:
    """Returns the outputs for a split, from one pass without mirror images; logits are reduced batch by batch.

    `without_own` leaves each image's own identity out of all candidates, so that images of known people stand for
    strangers: its logit is masked before the softmax, and the reachability is that of the nearest other centroid. The
    embeddings are unchanged: a meta-embedding is still read from the whole memory.

    Raises UserError as `predict` does, without a readable image, and for outputs that are not finite numbers.
    """
    kinds = [kind for kind in _MEAN_KINDS if kind in predictor.method.kinds]
    fields = ["label", "index", "logits", "reachability", *kinds] + ["features"] * without_own
    batches = []
    for part in predict(predictor, split, fields, flip=False, title=title):
        own_B = part.label_N if without_own else torch.full_like(part.label_N, -1)
        logit_BC, reachability_B = part.logit_NC.double(), part.reachability_N
        if without_own:
            logit_BC = logit_BC.scatter(1, own_B[:, None], -torch.inf)
        if reachability_B is not None:
            factor_B = _nearest_other(predictor.method.memory, part) if without_own else 1.0
            reachability_B = reachability_B.double() * factor_B
        probability_B, class_B = logit_BC.softmax(dim=1).max(dim=1)
        columns = (part.label_N, part.index_N, class_B, probability_B, reachability_B, own_B)
        batches.append((*columns, *(part.embeddings[kind] for kind in kinds)))
    label_N, index_N, class_N, probability_N, reachability_N, own_N, *embeddings = (
        None if column[0] is None else torch.cat(column).numpy() for column in zip(*batches, strict=True)
    )
    if not len(label_N):
        raise UserError(f"{title}: none of the {len(split.members):,} images can be read")
    by_kind = dict(zip(kinds, embeddings, strict=True))
    _check_outputs(split, index_N, [probability_N, reachability_N, *by_kind.values()])
    return ImageOutputs(label_N, index_N, class_N, probability_N, reachability_N, by_kind, own_N)


def _nearest_other(memory: IdentityMemory, part: Predictions) -> torch.Tensor:
    """Returns the distance to the nearest centroid over that to the nearest one of another identity, float64 [B]."""
    centroid_CD = memory.centroid_CD.detach().cpu()
    distance_BC = torch.cdist(part.feature_ND, centroid_CD, compute_mode="donot_use_mm_for_euclid_dist")
    distance_BC = distance_BC.double().clamp_min(memory.min_distance)
    distance_BC[:, ~memory.filled_C.cpu()] = torch.inf
    nearest_B = distance_BC.amin(dim=1)
    return nearest_B / distance_BC.scatter(1, part.label_N[:, None], torch.inf).amin(dim=1)


def _check_outputs(split: Split, index_N: np.ndarray, columns: list[np.ndarray | None]) -> None:
    """Raises UserError naming the first image with an output that is not finite, or an embedding of length zero."""
    for value in columns:
        if value is None:
            continue
        sum_N = value if value.ndim == 1 else np.einsum("nd,nd->n", value, value)
        is_valid_N = np.isfinite(sum_N) & ((value.ndim == 1) | (sum_N > 0))
        if not is_valid_N.all():
            name = split.dataset.image_name(int(index_N[np.argmin(is_valid_N)]))
            raise UserError(
                f"{name}: the model's output is not finite or has length zero; check its training log for a divergence"
            )


@dataclass(frozen=True, eq=False)
class TrainedIdentities:
    """The training images as a model sees them: labels int64 [T] and direct embeddings [T,D], float32, of unit length.

    `identity_K` are the classes with a readable training image; `means` holds their mean unit-length embedding by kind,
    float64 [K,D]. `search` is the exact search of all scores. `validation` are the outputs of held-out images of
    trained identities, as they are and with their own identity left out, for the score `calibrated`.
    """

    label_T: np.ndarray
    embedding_TD: np.ndarray
    identity_K: np.ndarray
    means: dict[str, np.ndarray]
    search: Search
    validation: tuple[ImageOutputs, ImageOutputs] | None = None

    @cached_property
    def calibration(self) -> "Pipeline":
        """Logistic regression of known people against strangers: the validation images with their own identity left
        out.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        known_NV, stranger_NV = (_known_evidence(images, self) for images in self.validation)
        is_known_N = np.repeat([True, False], [len(known_NV), len(stranger_NV)])
        return make_pipeline(StandardScaler(), LogisticRegression()).fit(
            np.concatenate([known_NV, stranger_NV]), is_known_N
        )


def collect_trained_identities(
    predictor: Predictor, data: TrainingData, search: Search, *, title: str = ""
) -> TrainedIdentities:
    """Returns the training images and class means, from one pass without augmentation and mirror images.

    Raises UserError as `collect_outputs` does.
    """
    kinds = [kind for kind in _MEAN_KINDS if kind in predictor.method.kinds]
    sums = {kind: torch.zeros(data.num_classes, predictor.method.dim, dtype=torch.float64) for kind in kinds}
    labels, indices, direct = [], [], []
    for part in predict(predictor, data.train_plain, ("label", "index", *kinds), flip=False, title=title):
        for kind in kinds:
            sums[kind].index_add_(0, part.label_N, part.embeddings[kind].double())
        labels.append(part.label_N)
        indices.append(part.index_N)
        direct.append(part.embeddings["direct"])
    label_T, index_T, embedding_TD = (torch.cat(parts).numpy() for parts in (labels, indices, direct))
    if not len(label_T):
        raise UserError(f"{title}: none of the {len(data.train_plain.members):,} images can be read")
    _check_outputs(data.train_plain, index_T, [embedding_TD])
    count_C = np.bincount(label_T, minlength=data.num_classes)
    identity_K = np.flatnonzero(count_C)
    means = {kind: sums[kind].numpy()[identity_K] / count_C[identity_K, None] for kind in kinds}
    return TrainedIdentities(label_T, embedding_TD, identity_K, means, search)


class ScoredIdentities(NamedTuple):
    """The identity given to each image, int64 [N], and its acceptance score, float64 [N]; -1 and -inf without any."""

    identity_N: np.ndarray
    score_N: np.ndarray


def _softmax(images: ImageOutputs, trained: TrainedIdentities) -> ScoredIdentities:
    return ScoredIdentities(images.class_N, images.probability_N)


def _reachability(images: ImageOutputs, trained: TrainedIdentities) -> ScoredIdentities:
    return ScoredIdentities(images.class_N, images.reachability_N)


def _class_mean(images: ImageOutputs, trained: TrainedIdentities) -> ScoredIdentities:
    return _nearest_mean("direct", images, trained, images.own_N[:, None])


def _meta_class_mean(images: ImageOutputs, trained: TrainedIdentities) -> ScoredIdentities:
    return _nearest_mean("meta_unit", images, trained, images.own_N[:, None])


def _nearest_image(images: ImageOutputs, trained: TrainedIdentities) -> ScoredIdentities:
    return _nearest_training_image(images, trained, images.own_N[:, None])


def _calibrated(images: ImageOutputs, trained: TrainedIdentities) -> ScoredIdentities:
    score_N = trained.calibration.decision_function(_known_evidence(images, trained))
    return ScoredIdentities(_class_mean(images, trained).identity_N, score_N)


def _known_evidence(images: ImageOutputs, trained: TrainedIdentities) -> np.ndarray:
    """Returns the cosines to the nearest class mean and training image, each with that of the nearest one of another
    identity, and with a memory the logarithm of the reachability; float64 [N,V].
    """
    columns = []
    for nearest in (partial(_nearest_mean, "direct"), _nearest_training_image):
        best = nearest(images, trained, images.own_N[:, None])
        runner_up = nearest(images, trained, np.stack([images.own_N, best.identity_N], axis=1))
        columns += [best.score_N, runner_up.score_N]
    # Without another identity the runner-up is as dissimilar as possible.
    columns = [np.maximum(column_N, -1.0) for column_N in columns]
    if images.reachability_N is not None:
        columns.append(np.log(images.reachability_N))
    return np.stack(columns, axis=1)


def _nearest_mean(
    kind: EmbeddingKind, images: ImageOutputs, trained: TrainedIdentities, excluded_NE: np.ndarray
) -> ScoredIdentities:
    return _nearest(images.embeddings[kind], trained.means[kind], trained.identity_K, trained.search, excluded_NE)


def _nearest_training_image(
    images: ImageOutputs, trained: TrainedIdentities, excluded_NE: np.ndarray
) -> ScoredIdentities:
    query_ND = images.embeddings["direct"]
    return _nearest(query_ND, trained.embedding_TD, trained.label_T, trained.search, excluded_NE)


def _nearest(
    query_ND: np.ndarray, row_RD: np.ndarray, identity_R: np.ndarray, search: Search, excluded_NE: np.ndarray
) -> ScoredIdentities:
    """Returns the identity and cosine of the most similar row whose identity is not excluded; -1 excludes none."""
    best = ScoredIdentities(np.full(len(query_ND), -1), np.full(len(query_ND), -np.inf))
    open_U = np.arange(len(query_ND))
    # Of some images the best rows may all be of excluded identities: those are searched for more rows.
    count = 1 + int((excluded_NE >= 0).any(axis=0).sum())
    while len(open_U):
        score_UK, row_UK = (
            value[0] for value in search.top_k(query_ND[open_U], row_RD, count, [len(row_RD)], cosine=True)
        )
        identity_UK = np.where(row_UK >= 0, identity_R[row_UK], -1)
        is_excluded_UK = (identity_UK[:, :, None] == excluded_NE[open_U, None, :]).any(axis=2)
        is_other_UK = (row_UK >= 0) & ~is_excluded_UK
        is_done_U = is_other_UK.any(axis=1)
        first_U = is_other_UK.argmax(axis=1)[is_done_U]
        best.identity_N[open_U[is_done_U]] = identity_UK[is_done_U, first_U]
        best.score_N[open_U[is_done_U]] = score_UK[is_done_U, first_U]
        open_U = open_U[~is_done_U] if count < len(row_RD) else open_U[:0]
        count *= 2
    return best


@dataclass(frozen=True)
class IdentityScore:
    """An identity score; the model must make embeddings of `kind`, `meta_unit` for a score of the memory.

    With `needs_validation` it is fitted to validation images, which are then not evaluated.
    """

    definition: str
    compute: Callable[[ImageOutputs, TrainedIdentities], ScoredIdentities]
    kind: EmbeddingKind = "direct"
    needs_validation: bool = False


IDENTITY_SCORES = MappingProxyType(
    {
        "class_mean": IdentityScore(
            "cosine to the nearest class mean: the mean of an identity's unit-length training embeddings", _class_mean
        ),
        "nearest_image": IdentityScore("cosine to the nearest training image, whose identity is given", _nearest_image),
        "softmax": IdentityScore(
            "softmax probability of the model's own classifier; the identity has the largest logit", _softmax
        ),
        "reachability": IdentityScore(
            "identity of the largest logit, accepted by the reachability: scale / distance of the feature to the "
            "nearest centroid of the memory",
            _reachability,
            "meta_unit",
        ),
        "meta_class_mean": IdentityScore(
            "cosine of the meta-embedding to the nearest mean of an identity's unit-length training meta-embeddings",
            _meta_class_mean,
            "meta_unit",
        ),
        "calibrated": IdentityScore(
            "identity of the nearest class mean, accepted by the log odds of known against unknown: a logistic "
            "regression of the cosines to the nearest class mean and training image, those to the nearest ones of "
            "another identity, and with a memory the log reachability; fitted to validation images, which stand for "
            "strangers where their own identity is left out",
            _calibrated,
            needs_validation=True,
        ),
    }
)
"""All identity scores by name. Another score is one entry."""


def available_scores(kinds: Collection[str], *, has_validation: bool) -> list[str]:
    """Returns the scores of a model that makes embeddings of these kinds, with validation images or without."""
    return [
        name
        for name, score in IDENTITY_SCORES.items()
        if score.kind in kinds and (has_validation or not score.needs_validation)
    ]


def default_score(names: Collection[str]) -> str:
    """Returns the score that stands for a model with these scores: calibrated if it can be, else class_mean."""
    return "calibrated" if "calibrated" in names else "class_mean"
