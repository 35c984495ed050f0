"""What is audited: images of people, which of them could be enrolled, and how pairs of those are compared.

N images, E enrolled images, D feature, M pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from facelt.auditing.features import Features
from facelt.auditing.scores import ScoredPairs
from facelt.errors import UserError
from facelt.identification import PairHistograms, pair_errors, pair_histograms
from facelt.identification.score_grid import ScoreGrid
from facelt.metrics.groups import Grouping, Units
from facelt.metrics.pair_counts import PairCounts, UnitPairs

# Bins between 0 and the largest score of a scores file.
STEPS = 1 << 16
# False non-matches of mated and false matches of non-mated pairs at one threshold.
Errors = tuple[UnitPairs, UnitPairs]


class Comparison(Protocol):
    """All pairs of enrolled images, compared as often as asked; `units` and `grouping` are of the E enrolled images."""

    def histograms(self, units: Units, grouping: Grouping) -> PairHistograms:
        """The scores of all pairs and of those within each group."""
        ...

    def errors(self, units: Units, threshold: float) -> Errors:
        """The match errors at a threshold, by units."""
        ...


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings as they are stored, and their identities as numbers."""

    row_ED: np.ndarray
    identity_E: np.ndarray
    cosine: bool

    def histograms(self, units: Units, grouping: Grouping) -> PairHistograms:
        """See Comparison."""
        return pair_histograms(self.row_ED, units, grouping, cosine=self.cosine)

    def errors(self, units: Units, threshold: float) -> Errors:
        """See Comparison."""
        found = pair_errors(self.row_ED, units, [threshold], cosine=self.cosine)
        return found.mated[0], found.non_mated[0]


@dataclass(frozen=True, eq=False)
class Scored:
    """Pairs whose scores came in a file."""

    pairs: ScoredPairs

    def histograms(self, units: Units, grouping: Grouping) -> PairHistograms:
        """See Comparison."""
        histograms = PairHistograms(units, grouping, ScoreGrid.reaching(float(np.abs(self.pairs.score_M).max()), STEPS))
        for block in self.pairs.blocks():
            histograms.add(*block)
        return histograms

    def errors(self, units: Units, threshold: float) -> Errors:
        """See Comparison."""
        counts = PairCounts(units, [threshold])
        for block in self.pairs.blocks():
            counts.add(*block)
        return counts.mated(0), counts.non_mated(0)


@dataclass(frozen=True, eq=False)
class Subject:
    """N images with the names of their identities; `embedded` is there where searches can be made.

    Of a scores file the N are people. `failures` says of each image that is not enrolled what is wrong with it.
    """

    keys: list[str] | None
    identities: list[str]
    enrolled_N: np.ndarray
    comparison: Comparison
    embedded: Embedded | None = None
    failures: tuple[str, ...] = ()

    def enrolled(self, values: Sequence[str]) -> list[str]:
        """Of N values those of the enrolled images."""
        return [values[place] for place in np.flatnonzero(self.enrolled_N).tolist()]


def subject_of_features(features: Features, allow_missing: int) -> Subject:
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
    embedded = Embedded(row_ND[enrolled_N], code_E, features.cosine)
    return Subject(features.keys, features.identities, enrolled_N, embedded, embedded, failures)


def subject_of_scores(pairs: ScoredPairs) -> Subject:
    """The people of a scores file; everyone in it was enrolled."""
    return Subject(None, pairs.identities, np.ones(len(pairs.identities), dtype=bool), Scored(pairs))


def _unusable(row_ND: np.ndarray) -> dict[int, str]:
    """The positions of rows from which no score can be computed, and why."""
    with np.errstate(over="ignore", invalid="ignore"):
        square_N = np.einsum("nd,nd->n", row_ND, row_ND)
    reason = dict.fromkeys(np.flatnonzero(~np.isfinite(square_N)).tolist(), "its embedding is not finite")
    return reason | dict.fromkeys(np.flatnonzero(square_N == 0).tolist(), "its embedding has length zero")
