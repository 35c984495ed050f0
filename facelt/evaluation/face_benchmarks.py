"""Face benchmarks from image features: the template protocol of IJB-B and IJB-C, and TinyFace.

N images, D feature, T templates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.identification.open_set import OpenSetPoint, OpenSetSearches, gallery_searches, open_set_rates
from facelt.identification.pair_verification import pair_rates
from facelt.identification.templates import SEARCH_LEVEL, miss_rate, rank_rates, template_features
from facelt.identification.verification import FARS
from facelt.report.schema import IjbReport, TinyfaceReport
from facelt.search.exact import BadRow, similarities
from facelt.store.arrays import is_array_file, read_embedding_array
from facelt.store.ijb import IjbLists
from facelt.store.input_hashes import store_inputs
from facelt.store.store import UNIT_KINDS, EmbeddingStore, RowSubset
from facelt.store.tinyface import DISTRACTOR, DISTRACTOR_FOLDER, TinyfaceLists
from facelt.utils.provenance import InputHash
from recordio_tools.progress import ProgressFn, no_progress

IJB_RANKS = (1, 5, 10)
TINYFACE_RANKS = (1, 5, 10, 20)
TEMPLATE_FPIRS = (0.1, 0.01, 0.001)
# A probe is identified if its mate is the best candidate of all.
_FNIR_RANK = 1
_ENROLMENT = "the templates of the gallery's list"


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of images, row by row, from a store or an array; `source` and `inputs` are for the report.

    `keys` are those of a store, None for an array, whose rows have no names. `cosine` if they are compared by cosine.
    """

    path: Path
    value_ND: np.ndarray
    keys: list[str] | None
    cosine: bool
    source: dict[str, Any]
    inputs: list[InputHash]

    @classmethod
    def open(cls, path: Path, kind: str, arrays: Sequence[str] = ()) -> "ImageFeatures":
        """Opens the embeddings of a kind in a store, without reading them, or an array in a .npy or .npz file.

        `arrays` names the array of a .npz file (default: `embeddings`, or the only one); several are added. Raises
        UserError.
        """
        if not is_array_file(path):
            store, model = EmbeddingStore.open(path), {}
            recorded = store.meta.get("model")
            if isinstance(recorded, dict) and isinstance(recorded.get("weights_sha256"), str):
                model = {"weights_sha256": recorded["weights_sha256"]}
            preprocessing = store.meta.get("preprocessing")
            is_flipped = preprocessing.get("flip_averaged") is True if isinstance(preprocessing, dict) else None
            source = {"name": str(path), **model, "kind": kind, "flip_averaged": is_flipped}
            value_ND = store.embedding(kind)
            return cls(path, value_ND, store.keys, kind in UNIT_KINDS, source, store_inputs(path, [kind]))
        value_ND = read_embedding_array(path, arrays[0] if arrays else None, default="embeddings")
        for name in arrays[1:]:
            other_ND = read_embedding_array(path, name, rows=len(value_ND))
            if other_ND.shape != value_ND.shape:
                raise UserError(f"{path}: {name} is {list(other_ND.shape)}, {arrays[0]} is {list(value_ND.shape)}")
            value_ND = np.asarray(value_ND, dtype=np.float32) + other_ND
        source = {"name": str(path), "kind": None, "flip_averaged": None}
        return cls(path, value_ND, None, True, source, [InputHash.of_file(path)])

    def rows(self, keys: list[str], where: Path) -> "np.ndarray | RowSubset":
        """Returns the features of the images that `where` lists, in its order.

        Raises UserError for an array of another number of rows, and naming an image that the store lacks.
        """
        if self.keys is None:
            if len(self.value_ND) != len(keys):
                raise UserError(
                    f"{self.path}: has {len(self.value_ND):,} rows, {where} lists {len(keys):,} images; give one row "
                    "for each image, in the order of the list"
                )
            return self.value_ND
        if self.keys == keys:
            return self.value_ND
        position = {key: row for row, key in enumerate(self.keys)}
        if absent := [key for key in keys if key not in position]:
            raise UserError(
                f"{self.path}: has no embedding of {absent[0][:120]}, which {where} lists; {len(absent):,} of "
                f"{len(keys):,} images are missing"
            )
        return RowSubset(self.value_ND, np.array([position[key] for key in keys], dtype=np.int64))

    def bad_row(self, error: BadRow, key: str) -> UserError:
        """Returns the error that names the image of a row that cannot be used."""
        return UserError(f"{self.path}: the embedding of {key} {error.reason}; embed the image again")


def evaluate_ijb(
    lists: IjbLists,
    features: ImageFeatures,
    *,
    detector_score: bool = True,
    normalize: bool = False,
    progress: ProgressFn = no_progress,
) -> IjbReport:
    """Measures 1:1 verification and, if its lists are there, 1:N identification of templates.

    `detector_score` weighs each image by its detection score, `normalize` scales image features to unit length first.
    Raises UserError naming the image, or the template, at fault.
    """
    folder, images, media, pairs = lists.folder, lists.images, lists.media, lists.pairs
    feature_ND = features.rows(images.names, folder.landmark_list)
    try:
        feature_TD = template_features(
            feature_ND,
            media.image_M,
            media.row_M,
            media.medium_M,
            images.score_N if detector_score else None,
            normalize=normalize,
            progress=progress,
        )
    except BadRow as error:
        if error.side == "templates":
            template = media.template_T[error.row]
            raise UserError(f"{folder.media_list}: the template {template} {error.reason}, so it has none") from None
        raise features.bad_row(error, images.names[error.row]) from None
    progress("comparing pairs", 0, len(pairs.same_P))
    score_P = similarities(feature_TD, pairs.left_P, feature_TD, pairs.right_P, cosine=False)
    progress("comparing pairs", len(pairs.same_P), len(pairs.same_P))
    rates = pair_rates(score_P, pairs.left_P, pairs.right_P, pairs.same_P, FARS, unit=True)
    return IjbReport.build(
        {
            "dataset": folder.title,
            "source": features.source,
            "weighting": {"detector_score": detector_score, "normalized": normalize},
            "level": SEARCH_LEVEL,
            "images": len(images.names),
            "media": media.media,
            "templates": len(media.template_T),
            "verification": rates.report(),
            "identification": _identification(feature_TD, lists, progress) if lists.galleries else None,
        }
    )


def _identification(feature_TD: np.ndarray, lists: IjbLists, progress: ProgressFn) -> dict[str, Any]:
    galleries, subject_T = lists.galleries, lists.subject_T
    halves = tuple(
        gallery_searches(
            feature_TD, subject_T, lists.probes.row_K, gallery.row_K, rank=max(IJB_RANKS), progress=progress
        )
        for gallery in galleries
    )
    searches = OpenSetSearches(halves, _FNIR_RANK, None, _ENROLMENT, "gallery")
    ranks = rank_rates(halves, subject_T, IJB_RANKS)
    return {
        "subjects": ranks.identities,
        "galleries": [
            {
                "name": gallery.name,
                "templates": len(gallery.row_K),
                "subjects": len(np.unique(gallery.subject_K)),
                "mated": len(half.mated_M),
                "nonmated": len(half.nonmated_N),
            }
            for gallery, half in zip(galleries, halves, strict=True)
        ],
        "ranks": _rank_values(ranks, IJB_RANKS),
        "rank": _FNIR_RANK,
        "points": [
            _point_values(point, searches, subject_T) for point in open_set_rates(searches, TEMPLATE_FPIRS).points
        ],
    }


def _rank_values(rates, ranks: Sequence[int]) -> list[dict[str, Any]]:
    return [{"rank": rank, "rate": rates.rate_K[k], "limits": rates.limits(k)} for k, rank in enumerate(ranks)]


def _point_values(point: OpenSetPoint, searches: OpenSetSearches, subject_T: np.ndarray) -> dict[str, Any]:
    values = point.report()
    limits = None
    if point.halves:
        thresholds = [half.threshold for half in point.halves]
        limits = miss_rate(searches.halves, thresholds, searches.rank, subject_T).limits(0)
    return values | {"fnir_limits": limits, "galleries": values.pop("halves")}


def evaluate_tinyface(
    lists: TinyfaceLists, features: ImageFeatures, *, progress: ProgressFn = no_progress
) -> TinyfaceReport:
    """Measures rank-k identification of the probes among matches and distractors.

    The distractors are the images of a store in the folder Gallery_Distractor; the rows of an array are the probes and
    the matches, both in the order of their lists, and then the distractors. Raises UserError naming the image at fault.
    """
    listed = len(lists.keys)
    if features.keys is None:
        distractors = len(features.value_ND) - listed
        if distractors < 0:
            raise UserError(
                f"{features.path}: has {len(features.value_ND):,} rows, the lists have {lists.probes:,} probes and "
                f"{listed - lists.probes:,} images of the gallery; distractors follow these"
            )
        keys = lists.keys + [f"{DISTRACTOR_FOLDER} {number}" for number in range(1, distractors + 1)]
    else:
        keys = lists.keys + [key for key in features.keys if key.startswith(f"{DISTRACTOR_FOLDER}/")]
    rows = features.rows(keys, lists.folder)
    feature_ND = np.asarray(rows[0 : len(keys)], dtype=np.float32)
    identity_N = np.append(lists.identity_N, np.full(len(keys) - listed, DISTRACTOR))
    probe_S, enrolled_E = np.arange(lists.probes), np.arange(lists.probes, len(keys))
    try:
        searches = gallery_searches(
            feature_ND,
            identity_N,
            probe_S,
            enrolled_E,
            rank=max(TINYFACE_RANKS),
            cosine=features.cosine,
            progress=progress,
        )
    except BadRow as error:
        position = error.row + (lists.probes if error.side == "database" else 0)
        raise features.bad_row(error, keys[position]) from None
    if not len(searches.mated_M):
        raise UserError(f"{lists.folder}: no probe has its identity in the gallery; are both lists of one set?")
    rates = rank_rates([searches], identity_N, TINYFACE_RANKS)
    return TinyfaceReport.build(
        {
            "source": features.source,
            "level": SEARCH_LEVEL,
            "identities": rates.identities,
            "probes": lists.probes,
            "probes_without_mate": len(searches.nonmated_N),
            "gallery_matches": listed - lists.probes,
            "distractors": len(keys) - listed,
            "ranks": _rank_values(rates, TINYFACE_RANKS),
        }
    )
