"""Audited set: the images, or the people of a scores file, with their enrolment and their comparisons.

N images, E enrolled images, D feature, M pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facelt.audit.features import FeatureSet
from facelt.config.audit import HigherIs
from facelt.errors import UserError
from facelt.identification.all_pairs import PairHistograms, pair_errors, pair_histograms
from facelt.identification.error_rates import ScoreGrid
from facelt.stats.groups import Grouping, PairCounter, UnitPairCounts, Units
from facelt.utils.tables import CsvRows, read_chunks
from recordio_tools.lists import is_number

_SCORE_COLUMNS = ("id1", "id2", "score", "label")
_LABELS = {"0": False, "1": True}
# Bins between 0 and the largest score of a scores file.
_SCORE_BINS = 1 << 16
# Pairs per block.
PAIR_BLOCK = 1 << 21

# score [M], mated [M], positions of the left and of the right image [M]
PairBlock = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
# False non-matches of mated and false matches of non-mated pairs at one threshold.
MatchErrors = tuple[UnitPairCounts, UnitPairCounts]


@dataclass(frozen=True, eq=False)
class EmbeddingComparisons:
    """All pairs of E embeddings, which searches use as well; identities are numbered."""

    row_ED: np.ndarray
    identity_E: np.ndarray
    cosine: bool

    def histograms(self, units: Units, grouping: Grouping) -> PairHistograms:
        """Returns the score histograms of all pairs and of those within each group."""
        return pair_histograms(self.row_ED, units, grouping, cosine=self.cosine)

    def errors(self, units: Units, threshold: float) -> MatchErrors:
        """Returns the match errors at a threshold, by units."""
        errors = pair_errors(self.row_ED, units, [threshold], cosine=self.cosine)
        return errors.mated[0], errors.non_mated[0]


@dataclass(frozen=True, eq=False)
class ScoredComparisons:
    """Pairs of people from a scores file; larger scores are more similar.

    Positions refer to `identities`, in order of first occurrence.
    """

    path: Path
    identities: list[str]
    score_M: np.ndarray
    left_M: np.ndarray
    right_M: np.ndarray

    def histograms(self, units: Units, grouping: Grouping) -> PairHistograms:
        """Returns the score histograms of all pairs and of those within each group."""
        grid = ScoreGrid.for_bound(float(np.abs(self.score_M).max()), _SCORE_BINS)
        histograms = PairHistograms(units, grouping, grid)
        for block in self.blocks():
            histograms.add(*block)
        return histograms

    def errors(self, units: Units, threshold: float) -> MatchErrors:
        """Returns the match errors at a threshold, by units."""
        counter = PairCounter(units, [threshold])
        for block in self.blocks():
            counter.add(*block)
        return counter.mated(0), counter.non_mated(0)

    def mean_scores(self) -> tuple[float, float]:
        """Returns the mean scores of mated and of non-mated pairs."""
        mated_M = self.left_M == self.right_M
        return float(self.score_M[mated_M].mean()), float(self.score_M[~mated_M].mean())

    def blocks(self) -> Iterator[PairBlock]:
        """Yields all pairs, once each."""
        for start in range(0, len(self.score_M), PAIR_BLOCK):
            part = slice(start, start + PAIR_BLOCK)
            left_M, right_M = self.left_M[part], self.right_M[part]
            yield self.score_M[part], left_M == right_M, left_M, right_M


@dataclass(frozen=True, eq=False)
class AuditedSet:
    """N images (of a scores file: people) with the names of their identities, and the comparisons of the enrolled ones.

    `failures` has one line for each image that could not be enrolled.
    """

    identities: list[str]
    enrolled_N: np.ndarray
    comparisons: EmbeddingComparisons | ScoredComparisons
    failures: tuple[str, ...] = ()

    @property
    def embeddings(self) -> EmbeddingComparisons | None:
        """Embeddings to search with; None for a scores file."""
        return self.comparisons if isinstance(self.comparisons, EmbeddingComparisons) else None

    def enrolled_units(self, columns: Mapping[str, Sequence[str]]) -> Units:
        """Returns the units of the enrolled images by columns of N values each."""
        enrolled = np.flatnonzero(self.enrolled_N).tolist()
        identities, *values = ([column[index] for index in enrolled] for column in (self.identities, *columns.values()))
        return Units.from_columns(identities, dict(zip(columns, values, strict=True)))


def enrol_features(features: FeatureSet, allow_missing: int) -> AuditedSet:
    """Returns the audited set of a store or tree, with every image that has a usable embedding enrolled.

    Raises UserError if more than `allow_missing` images have no usable embedding, naming the first, or if the others
    form no mated or no non-mated pair.
    """
    row_ND = np.array(features.rows[0 : len(features)], dtype=np.float32)
    defects = _embedding_defects(row_ND) | features.defects
    failures = tuple(f"{features.keys[index]}: {reason}" for index, reason in sorted(defects.items()))
    if len(failures) > allow_missing:
        raise UserError(
            f"{features.path}: {len(failures)} of {len(features)} images have no usable embedding, allowed are "
            f"{allow_missing} (--allow-missing), such as {failures[0]}"
        )
    enrolled_N = np.ones(len(features), dtype=bool)
    enrolled_N[list(defects)] = False
    names, code_E = np.unique(np.array(features.identities, dtype=str)[enrolled_N], return_inverse=True)
    if len(names) < 2 or len(names) == len(code_E):
        raise UserError(
            f"{features.path}: {len(code_E)} usable images of {len(names)} identities form no mated or no non-mated "
            "pair; an audit needs several identities, some with two images or more"
        )
    comparisons = EmbeddingComparisons(row_ND[enrolled_N], code_E, features.cosine)
    return AuditedSet(features.identities, enrolled_N, comparisons, failures)


def _embedding_defects(row_ND: np.ndarray) -> dict[int, str]:
    """Returns, by position, why no score can be computed from a row."""
    with np.errstate(over="ignore", invalid="ignore"):
        square_N = np.einsum("nd,nd->n", row_ND, row_ND)
    defects = dict.fromkeys(np.flatnonzero(~np.isfinite(square_N)).tolist(), "its embedding is not finite")
    return defects | dict.fromkeys(np.flatnonzero(square_N == 0).tolist(), "its embedding has length zero")


def similarity(score: Any, higher_is: HigherIs | None) -> Any:
    """Returns a score, or an array of scores, as similarity: negated if a higher one means different people."""
    return -score if higher_is == "different" else score


def read_scores(path: Path, higher_is: HigherIs | None = None) -> ScoredComparisons:
    """Reads a scores file: `id1` and `id2` are identities, `label` is 1 for a mated pair and 0 for a non-mated one.

    Raises UserError naming line and column: a score that is not a finite number, a label that is neither 0 nor 1 or
    contradicts the identities, an empty identity; or a file without mated or without non-mated pairs, or whose scores
    look like distances while `higher_is` is None.
    """
    code: dict[str, int] = {}
    chunks = [_parse_chunk(path, rows, code) for rows in read_chunks(path, _SCORE_COLUMNS)]
    score_M, left_M, right_M = (np.concatenate(column) for column in zip(*chunks, strict=True))
    if not (left_M == right_M).any() or (left_M == right_M).all():
        kind = "mated pair (label 1)" if not (left_M == right_M).any() else "non-mated pair (label 0)"
        raise UserError(f"{path}: has no {kind}; error rates need both kinds")
    scores = ScoredComparisons(path, list(code), similarity(score_M, higher_is), left_M, right_M)
    mated, non_mated = scores.mean_scores()
    if higher_is is None and mated < non_mated:
        raise UserError(
            f"{path}: mated pairs score {mated:.4g} on average, non-mated pairs {non_mated:.4g}, as distances do; set "
            "--higher-is different if a higher score means different people, --higher-is same if not"
        )
    return scores


def _parse_chunk(path: Path, rows: CsvRows, code: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    score_M = _parse_scores(path, rows)
    mated = [_LABELS.get(text.strip()) for text in rows.columns["label"]]
    if None in mated:
        raise _row_error(path, rows, mated.index(None), "label", "is neither 1 (mated) nor 0 (non-mated)")
    left_M, right_M = (_encode_identities(path, rows, name, code) for name in ("id1", "id2"))
    if (contradicts_M := (left_M == right_M) != np.array(mated, dtype=bool)).any():
        row = int(np.argmax(contradicts_M))
        identities = "one identity" if left_M[row] == right_M[row] else "two identities"
        raise _row_error(path, rows, row, "label", f"contradicts id1 and id2, which are {identities}")
    return score_M, left_M, right_M


def _parse_scores(path: Path, rows: CsvRows) -> np.ndarray:
    texts = rows.columns["score"]
    try:
        score_M = np.array(list(map(float, texts)), dtype=np.float64)
    except ValueError:
        row = next(row for row, text in enumerate(texts) if not is_number(text))
        raise _row_error(path, rows, row, "score", "is not a number") from None
    if not np.isfinite(score_M).all():
        raise _row_error(path, rows, int(np.argmin(np.isfinite(score_M))), "score", "is not finite")
    return score_M


def _encode_identities(path: Path, rows: CsvRows, name: str, code: dict[str, int]) -> np.ndarray:
    identities = [text.strip() for text in rows.columns[name]]
    if "" in identities:
        raise _row_error(path, rows, identities.index(""), name, "is empty; expected an identity")
    return np.array([code.setdefault(identity, len(code)) for identity in identities], dtype=np.int64)


def _row_error(path: Path, rows: CsvRows, row: int, column: str, problem: str) -> UserError:
    return UserError(f"{path}: line {rows.line_N[row]}, column {column!r}: {rows.columns[column][row]!r} {problem}")
