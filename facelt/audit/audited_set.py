"""The embeddings to be audited, and those they are searched among, from a store or a tree of files.

N images, M chosen ones, D feature.

A CSV file of compared pairs, `id1,id2,score,label`: who was compared, how alike they were, whether they are one.

M pairs, I identities.

What is audited: images of people, which of them could be enrolled, and how pairs of those are compared.

N images, E enrolled images, D feature, M pairs.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from facelt.config.audit import FeaturesConfig
from facelt.errors import UserError
from facelt.identification.all_pairs import PairHistograms, pair_errors, pair_histograms
from facelt.identification.error_rates import ScoreGrid
from facelt.search.exact import MatrixLike
from facelt.stats.groups import Grouping, PairCounter, UnitPairCounts, Units
from facelt.store.feature_tree import (
    FeatureTree,
    feature_path,
    probe_identity,
    read_feature,
    read_image_list,
    read_noise_names,
    size_inside_root,
)
from facelt.store.store import UNIT_KINDS, EmbeddingStore, RowSubset
from facelt.utils.tables import CsvRows, read_chunks
from recordio_tools.atomic_io import sha256_of

_STORE_META = "meta.json"
# Features of a tree read at a time.
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """N images with their identities, what a store says of them (`own` columns) and their rows, read when sliced.

    `reason` says of some positions why there is no embedding; `removed` counts images left out as noise.
    """

    path: Path
    keys: list[str]
    identities: list[str]
    own: dict[str, list[str]]
    rows: MatrixLike
    cosine: bool
    reason: dict[int, str]
    removed: int
    described: dict[str, Any]

    def __len__(self) -> int:
        return len(self.keys)

    def chosen(self, kept: Sequence[int]) -> "FeatureSet":
        """Those at the positions `kept`, in that order, of a store or of features that are in memory."""
        place = {old: new for new, old in enumerate(kept)}
        return replace(
            self,
            keys=[self.keys[row] for row in kept],
            identities=[self.identities[row] for row in kept],
            own={name: [values[row] for row in kept] for name, values in self.own.items()},
            rows=RowSubset(self.rows, np.asarray(kept, dtype=np.int64)),
            reason={place[row]: why for row, why in self.reason.items() if row in place},
        )


def open_features(config: FeaturesConfig, kind: str, noise: str, *, whole: bool = True) -> FeatureSet:
    """Open what a configuration names, without the images its noise list names unless `noise` is `raw`.

    The embeddings of a tree are all read if `whole`, and those that cannot be used are noted in `reason`; otherwise
    they are read when sliced, and the first that cannot be used is an error then.

    Raises UserError naming the file: neither store nor tree, a listed image that is absent, a kind that is not held.
    """
    noisy: frozenset[str] = frozenset()
    if config.noises is not None and noise == "drop":
        names = read_noise_names(config.noises)
        noisy = frozenset(name if "/" in name else PurePosixPath(name).stem for name in names)
    if config.path.is_dir() and not (config.path / _STORE_META).is_file():
        return _open_tree(config, kind, noisy, whole)
    return _open_store(config, kind, noisy)


def is_named(key: str, noisy: frozenset[str]) -> bool:
    """Whether a noise list names an image: by its path or, in a list of bare names, by its stem."""
    return key in noisy or PurePosixPath(key).stem in noisy


def _values_hash(rows: MatrixLike) -> str:
    """The SHA-256 of the values of a tree in order; every file of a lazy one is read, and so checked, on the way."""
    digest = hashlib.sha256()
    for start in range(0, rows.shape[0], _CHUNK):
        digest.update(np.ascontiguousarray(rows[start : start + _CHUNK], dtype="<f4").tobytes())
    return digest.hexdigest()


def _open_store(config: FeaturesConfig, kind: str, noisy: frozenset[str]) -> FeatureSet:
    store = EmbeddingStore.open(config.path)
    value_ND = store.embedding(kind)
    hashes = {name: sha256_of(config.path / name) for name in (_STORE_META, "items.csv", f"{kind}.npy")}
    described = {"path": str(config.path), **store.meta, "sha256": hashes}
    cosine = kind in UNIT_KINDS
    everyone = FeatureSet(
        config.path, store.keys, store.identities, store.attributes, value_ND, cosine, {}, 0, described
    )
    if config.list is None and not noisy:
        return everyone
    listed = store.keys if config.list is None else read_image_list(config.list)
    place = {key: row for row, key in enumerate(store.keys)}
    if missing := [key for key in listed if key not in place]:
        raise UserError(
            f"{config.list}: {len(missing)} of {len(listed)} listed images are not in {config.path}, "
            f"such as {missing[0]!r}"
        )
    kept = [place[key] for key in listed if not is_named(key, noisy)]
    return replace(everyone.chosen(kept), removed=len(listed) - len(kept))


def _open_tree(config: FeaturesConfig, kind: str, noisy: frozenset[str], whole: bool) -> FeatureSet:
    """A tree of .bin files: one kind, `direct`, compared by cosine whatever the lengths are."""
    if config.algorithm is None or config.list is None:
        raise UserError(
            f"{config.path}: has no {_STORE_META}, so it is no embedding store; "
            "for a tree of IMAGE_ALGORITHM.bin files set algorithm and list"
        )
    if kind != "direct":
        raise UserError(f"{config.path}: a tree of .bin files holds kind 'direct' only, not {kind!r}")
    listed = read_image_list(config.list)
    keys = [key for key in listed if not is_named(key, noisy)]
    reason: dict[int, str] = {}
    if whole:
        rows, reason = _read_tree(config.path, config.algorithm, keys)
        identities = [probe_identity(key, config.list) for key in keys]
    else:
        rows, identities = FeatureTree(config.path, config.algorithm, keys), [""] * len(keys)
    described = {
        **{"path": str(config.path), "format": "bin", "algorithm": config.algorithm},
        "sha256": {"values in the list's order": _values_hash(rows)},
    }
    return FeatureSet(config.path, keys, identities, {}, rows, True, reason, len(listed) - len(keys), described)


def _read_tree(root: Path, algorithm: str, keys: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    """All features, float32 [N,D] with zeros where there is none, and why there is none. D is that of most files."""
    paths = [feature_path(root, key, algorithm) for key in keys]
    sizes = [size_inside_root(path, root) for path in paths]
    found, reason = {}, {}
    for place, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        try:
            found[place] = read_feature(path)
        except UserError as error:
            reason[place] = "no such file" if size is None else str(error).removeprefix(f"{path}: ")
    common = Counter(map(len, found.values())).most_common(1)
    value_ND = np.zeros((len(keys), common[0][0] if common else 1), dtype=np.float32)
    for place, feature_D in found.items():
        if len(feature_D) == value_ND.shape[1]:
            value_ND[place] = feature_D
        else:
            reason[place] = f"holds {len(feature_D)} values, most others {value_ND.shape[1]}"
    return value_ND, reason


_SCORE_COLUMNS = ("id1", "id2", "score", "label")
_LABELS = {"0": False, "1": True}
# Pairs handed on at a time.
PAIR_BLOCK = 1 << 21

# score [M], mated [M], position of the left and of the right image [M]
PairBlock = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """Pairs of people; larger scores mean more alike. Positions are of `identities`, in the order they first come."""

    path: Path
    identities: list[str]
    score_M: np.ndarray
    left_M: np.ndarray
    right_M: np.ndarray

    def blocks(self) -> Iterator[PairBlock]:
        """All pairs, once each."""
        for start in range(0, len(self.score_M), PAIR_BLOCK):
            part = slice(start, start + PAIR_BLOCK)
            left_M, right_M = self.left_M[part], self.right_M[part]
            yield self.score_M[part], left_M == right_M, left_M, right_M


def read_scores(path: Path) -> ScoredPairs:
    """Read a scores file: `id1` and `id2` are identities, `label` is 1 for a mated pair and 0 for any other.

    Raises UserError naming the line and the column: a score that is no finite number, a label that is neither 0 nor 1,
    one that contradicts the identities, an empty identity; or that there are no pairs of one kind.
    """
    place: dict[str, int] = {}
    parts = [_chunk(path, rows, place) for rows in read_chunks(path, _SCORE_COLUMNS)]
    score_M, left_M, right_M = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not (left_M == right_M).any() or (left_M == right_M).all():
        kind = "mated pair (label 1)" if not (left_M == right_M).any() else "non-mated pair (label 0)"
        raise UserError(f"{path}: holds no {kind}; error rates need both kinds")
    return ScoredPairs(path, list(place), score_M, left_M, right_M)


def _chunk(path: Path, rows: CsvRows, place: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    score_M = _numbers(path, rows)
    mated = [_LABELS.get(text.strip()) for text in rows.columns["label"]]
    if None in mated:
        bad = mated.index(None)
        raise _wrong(path, rows, bad, "label", "is neither 1 (one person) nor 0 (two)")
    left_M, right_M = (_codes(path, rows, name, place) for name in ("id1", "id2"))
    if (odd_M := (left_M == right_M) != np.array(mated, dtype=bool)).any():
        bad = int(np.argmax(odd_M))
        same = "one identity" if left_M[bad] == right_M[bad] else "two identities"
        raise _wrong(path, rows, bad, "label", f"contradicts id1 and id2, which are {same}")
    return score_M, left_M, right_M


def _numbers(path: Path, rows: CsvRows) -> np.ndarray:
    text = rows.columns["score"]
    try:
        score_M = np.array(list(map(float, text)), dtype=np.float64)
    except ValueError:
        bad = next(row for row, one in enumerate(text) if not _is_number(one))
        raise _wrong(path, rows, bad, "score", "is no number") from None
    if not np.isfinite(score_M).all():
        raise _wrong(path, rows, int(np.argmin(np.isfinite(score_M))), "score", "is not finite")
    return score_M


def _codes(path: Path, rows: CsvRows, name: str, place: dict[str, int]) -> np.ndarray:
    people: Sequence[str] = [one.strip() for one in rows.columns[name]]
    if "" in people:
        raise _wrong(path, rows, people.index(""), name, "names nobody")
    return np.array([place.setdefault(one, len(place)) for one in people], dtype=np.int64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _wrong(path: Path, rows: CsvRows, row: int, column: str, what: str) -> UserError:
    return UserError(f"{path}: line {rows.line_N[row]}, column {column!r}: {rows.columns[column][row]!r} {what}")


# Bins between 0 and the largest score of a scores file.
_SCORE_BINS = 1 << 16
# False non-matches of mated and false matches of non-mated pairs at one threshold.
MatchErrors = tuple[UnitPairCounts, UnitPairCounts]


class Comparisons(Protocol):
    """All pairs of enrolled images, compared as often as asked; `units` and `grouping` are of the E enrolled images."""

    def histograms(self, units: Units, grouping: Grouping) -> PairHistograms:
        """The scores of all pairs and of those within each group."""
        ...

    def errors(self, units: Units, threshold: float) -> MatchErrors:
        """The match errors at a threshold, by units."""
        ...


@dataclass(frozen=True, eq=False)
class EmbeddingComparisons:
    """Embeddings as they are stored, and their identities as numbers."""

    row_ED: np.ndarray
    identity_E: np.ndarray
    cosine: bool

    def histograms(self, units: Units, grouping: Grouping) -> PairHistograms:
        """See Comparisons."""
        return pair_histograms(self.row_ED, units, grouping, cosine=self.cosine)

    def errors(self, units: Units, threshold: float) -> MatchErrors:
        """See Comparisons."""
        found = pair_errors(self.row_ED, units, [threshold], cosine=self.cosine)
        return found.mated[0], found.non_mated[0]


@dataclass(frozen=True, eq=False)
class ScoredComparisons:
    """Pairs whose scores came in a file."""

    pairs: ScoredPairs

    def histograms(self, units: Units, grouping: Grouping) -> PairHistograms:
        """See Comparisons."""
        histograms = PairHistograms(
            units, grouping, ScoreGrid.for_bound(float(np.abs(self.pairs.score_M).max()), _SCORE_BINS)
        )
        for block in self.pairs.blocks():
            histograms.add(*block)
        return histograms

    def errors(self, units: Units, threshold: float) -> MatchErrors:
        """See Comparisons."""
        counts = PairCounter(units, [threshold])
        for block in self.pairs.blocks():
            counts.add(*block)
        return counts.mated(0), counts.non_mated(0)


@dataclass(frozen=True, eq=False)
class AuditedSet:
    """N images with the names of their identities; `embedded` is there where searches can be made.

    Of a scores file the N are people. `failures` says of each image that is not enrolled what is wrong with it.
    """

    keys: list[str] | None
    identities: list[str]
    enrolled_N: np.ndarray
    comparison: Comparisons
    embedded: EmbeddingComparisons | None = None
    failures: tuple[str, ...] = ()

    def enrolled(self, values: Sequence[str]) -> list[str]:
        """Of N values those of the enrolled images."""
        return [values[place] for place in np.flatnonzero(self.enrolled_N).tolist()]


def audited_features(features: FeatureSet, allow_missing: int) -> AuditedSet:
    """The audited images of a store or tree.

    Raises UserError where more than `allow_missing` images have no usable embedding, naming the first, and where the
    rest make no mated or no non-mated pair.
    """
    row_ND = np.array(features.rows[0 : len(features)], dtype=np.float32)
    reason = _unusable(row_ND) | features.reason
    failures = tuple(f"{features.keys[place]}: {why}" for place, why in sorted(reason.items()))
    if len(failures) > allow_missing:
        raise UserError(
            f"{features.path}: {len(failures)} of {len(features)} images have no usable embedding, allowed are "
            f"{allow_missing} (--allow-missing), such as {failures[0]}"
        )
    enrolled_N = np.ones(len(features), dtype=bool)
    enrolled_N[list(reason)] = False
    names, code_E = np.unique(np.array(features.identities, dtype=str)[enrolled_N], return_inverse=True)
    if len(names) < 2 or len(names) == len(code_E):
        raise UserError(
            f"{features.path}: {len(code_E)} usable images of {len(names)} identities make no mated or no non-mated "
            "pair; an audit needs several identities, some with two images or more"
        )
    embedded = EmbeddingComparisons(row_ND[enrolled_N], code_E, features.cosine)
    return AuditedSet(features.keys, features.identities, enrolled_N, embedded, embedded, failures)


def audited_scores(pairs: ScoredPairs) -> AuditedSet:
    """The people of a scores file; everyone in it was enrolled."""
    return AuditedSet(None, pairs.identities, np.ones(len(pairs.identities), dtype=bool), ScoredComparisons(pairs))


def _unusable(row_ND: np.ndarray) -> dict[int, str]:
    """The positions of rows from which no score can be computed, and why."""
    with np.errstate(over="ignore", invalid="ignore"):
        square_N = np.einsum("nd,nd->n", row_ND, row_ND)
    reason = dict.fromkeys(np.flatnonzero(~np.isfinite(square_N)).tolist(), "its embedding is not finite")
    return reason | dict.fromkeys(np.flatnonzero(square_N == 0).tolist(), "its embedding has length zero")
