"""Identity scores: the trained identity that a model gives an image, and an acceptance score, higher for known people.

N images, B of a batch, T training images, C classes, K classes with a training image, R rows that are searched, E
excluded identities, V values, D feature.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from facelt.config.base import EmbeddingKind
from facelt.data.kind import Split, TrainingData
from facelt.distributed.class_shards import ClassRange
from facelt.distributed.logits import GatheredFeatures
from facelt.errors import UserError
from facelt.heads.memory import ClassMeans, IdentityMemory
from facelt.inference.predict import Predictions, Predictor, predict
from facelt.methods.base import Method
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


def image_outputs(method: Method, part: Predictions, *, without_own: bool = False) -> ImageOutputs:
    """Returns the outputs for a batch from its labels, indices, logits, reachabilities and embeddings.

    `without_own` leaves each image's own identity out of all candidates, so that images of known people stand for
    strangers: its logit is masked before the softmax, and the reachability is that of the nearest other centroid, for
    which the features are needed. The embeddings are unchanged: a meta-embedding is still read from the whole memory.
    """
    own_N = part.label_N if without_own else torch.full_like(part.label_N, -1)
    logit_NC, reachability_N = part.logit_NC.double(), part.reachability_N
    if without_own:
        logit_NC = logit_NC.scatter(1, own_N[:, None], -torch.inf)
    if reachability_N is not None:
        factor_N = _nearest_other(method.memory, part) if without_own else 1.0
        reachability_N = reachability_N.double() * factor_N
    probability_N, class_N = logit_NC.softmax(dim=1).max(dim=1)
    columns = (part.label_N, part.index_N, class_N, probability_N, reachability_N)
    return ImageOutputs(
        *(None if column_N is None else column_N.numpy() for column_N in columns),
        {kind: part.embeddings[kind].numpy() for kind in _mean_kinds(method)},
        own_N.numpy(),
    )


def collect_outputs(predictor: Predictor, split: Split, *, title: str = "") -> ImageOutputs:
    """Returns the outputs for a split, from one pass without mirror images; logits are reduced batch by batch.

    Raises UserError as `predict` does, without a readable image, and for outputs that are not finite numbers.
    """
    (outputs,) = _collect(predictor, split, (False,), title)
    return outputs


def collect_validation_outputs(
    predictor: Predictor, split: Split, *, title: str = ""
) -> tuple[ImageOutputs, ImageOutputs]:
    """Returns the outputs as they are and `without_own`, see `image_outputs`, from one pass; as `collect_outputs`."""
    outputs, without_own = _collect(predictor, split, (False, True), title)
    return outputs, without_own


def _collect(predictor: Predictor, split: Split, variants: Sequence[bool], title: str) -> list[ImageOutputs]:
    """Returns the outputs of a split for each value of `without_own`."""
    method = predictor.method
    requested = ["label", "index", "logits", "reachability", *_mean_kinds(method)] + ["features"] * any(variants)
    batches = [
        [image_outputs(method, part, without_own=without_own) for without_own in variants]
        for part in predict(predictor, split, requested, flip=False, title=title)
    ]
    collected = [_concatenate(parts) for parts in zip(*batches, strict=True)]
    for outputs in collected:
        if not len(outputs.label_N):
            raise UserError(f"{title}: none of the {len(split.members):,} images can be read")
        columns = [outputs.probability_N, outputs.reachability_N, *outputs.embeddings.values()]
        _check_outputs(split, outputs.index_N, columns)
    return collected


def _concatenate(parts: Sequence[ImageOutputs]) -> ImageOutputs:
    def joined(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
        return None if arrays[0] is None else np.concatenate(arrays)

    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(ImageOutputs)}
    by_part = columns.pop("embeddings")
    embeddings = {kind: joined([embeddings[kind] for embeddings in by_part]) for kind in by_part[0]}
    return ImageOutputs(**{name: joined(arrays) for name, arrays in columns.items()}, embeddings=embeddings)


def _mean_kinds(method: Method) -> list[EmbeddingKind]:
    return [kind for kind in _MEAN_KINDS if kind in method.kinds]


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

        known_NV, stranger_NV = (IdentityCandidates(images, self).evidence_NV for images in self.validation)
        is_known_N = np.repeat([True, False], [len(known_NV), len(stranger_NV)])
        return make_pipeline(StandardScaler(), LogisticRegression()).fit(
            np.concatenate([known_NV, stranger_NV]), is_known_N
        )


def trained_identities(parts: Iterable[Predictions], num_classes: int, search: Search) -> TrainedIdentities:
    """Returns the training images and class means from batches of labels and embeddings."""
    labels, direct, class_means = [], [], {}
    for part in parts:
        for kind in part.embeddings:
            if kind not in class_means:
                class_means[kind] = ClassMeans(ClassRange.local(num_classes), part.embeddings[kind].shape[1])
            class_means[kind].add(GatheredFeatures.gather(part.embeddings[kind]), part.label_N)
        labels.append(part.label_N)
        direct.append(part.embeddings["direct"])
    means = {kind: of_kind.finish() for kind, of_kind in class_means.items()}
    _, filled_C = means["direct"]
    return TrainedIdentities(
        torch.cat(labels).numpy(),
        torch.cat(direct).numpy(),
        filled_C.nonzero()[:, 0].numpy(),
        {kind: mean_CD[filled_C].numpy() for kind, (mean_CD, _) in means.items()},
        search,
    )


def collect_trained_identities(
    predictor: Predictor, data: TrainingData, search: Search, *, title: str = ""
) -> TrainedIdentities:
    """Returns the training images and class means, from one pass without augmentation and mirror images.

    Raises UserError as `collect_outputs` does.
    """
    split = data.train_plain

    def checked() -> Iterator[Predictions]:
        requested = ("label", "index", *_mean_kinds(predictor.method))
        for part in predict(predictor, split, requested, flip=False, title=title):
            _check_outputs(split, part.index_N.numpy(), [part.embeddings["direct"].numpy()])
            yield part

    trained = trained_identities(checked(), data.num_classes, search)
    if not len(trained.label_T):
        raise UserError(f"{title}: none of the {len(split.members):,} images can be read")
    return trained


class ScoredIdentities(NamedTuple):
    """The identity given to each image, int64 [N], and its acceptance score, float64 [N]; -1 and -inf without any."""

    identity_N: np.ndarray
    score_N: np.ndarray


@dataclass(frozen=True, eq=False)
class IdentityCandidates:
    """The nearest trained identities of some images, each searched once for all scores."""

    images: ImageOutputs
    trained: TrainedIdentities

    @cached_property
    def class_mean(self) -> ScoredIdentities:
        """The nearest class mean of the direct embeddings."""
        return self.nearest_mean("direct")

    @cached_property
    def nearest_image(self) -> ScoredIdentities:
        """The nearest training image."""
        return self._nearest_image()

    @cached_property
    def evidence_NV(self) -> np.ndarray:
        """The cosines to the nearest class mean and training image, each with that of the nearest one of another
        identity, and with a memory the logarithm of the reachability; float64 [N,V].
        """
        runners_up = self.nearest_mean("direct", self.class_mean), self._nearest_image(self.nearest_image)
        columns = [self.class_mean.score_N, runners_up[0].score_N, self.nearest_image.score_N, runners_up[1].score_N]
        # Without another identity the runner-up is as dissimilar as possible.
        columns = [np.maximum(column_N, -1.0) for column_N in columns]
        if self.images.reachability_N is not None:
            columns.append(np.log(self.images.reachability_N))
        return np.stack(columns, axis=1)

    def nearest_mean(self, kind: EmbeddingKind, excluded: ScoredIdentities | None = None) -> ScoredIdentities:
        """Returns the nearest class mean of a kind, of another identity than those excluded."""
        return self._nearest(kind, self.trained.means[kind], self.trained.identity_K, excluded)

    def _nearest_image(self, excluded: ScoredIdentities | None = None) -> ScoredIdentities:
        return self._nearest("direct", self.trained.embedding_TD, self.trained.label_T, excluded)

    def _nearest(
        self, kind: EmbeddingKind, row_RD: np.ndarray, identity_R: np.ndarray, excluded: ScoredIdentities | None
    ) -> ScoredIdentities:
        columns = [self.images.own_N] + ([] if excluded is None else [excluded.identity_N])
        query_ND, search = self.images.embeddings[kind], self.trained.search
        return _nearest(query_ND, row_RD, identity_R, search, np.stack(columns, axis=1))


def _softmax(candidates: IdentityCandidates) -> ScoredIdentities:
    return ScoredIdentities(candidates.images.class_N, candidates.images.probability_N)


def _reachability(candidates: IdentityCandidates) -> ScoredIdentities:
    return ScoredIdentities(candidates.images.class_N, candidates.images.reachability_N)


def _calibrated(candidates: IdentityCandidates) -> ScoredIdentities:
    score_N = candidates.trained.calibration.decision_function(candidates.evidence_NV)
    return ScoredIdentities(candidates.class_mean.identity_N, score_N)


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
    compute: Callable[[IdentityCandidates], ScoredIdentities]
    kind: EmbeddingKind = "direct"
    needs_validation: bool = False


IDENTITY_SCORES = MappingProxyType(
    {
        "class_mean": IdentityScore(
            "cosine to the nearest class mean: the mean of an identity's unit-length training embeddings",
            lambda candidates: candidates.class_mean,
        ),
        "nearest_image": IdentityScore(
            "cosine to the nearest training image, whose identity is given", lambda candidates: candidates.nearest_image
        ),
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
            lambda candidates: candidates.nearest_mean("meta_unit"),
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
