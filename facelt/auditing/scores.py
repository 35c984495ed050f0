"""A CSV file of compared pairs, `id1,id2,score,label`: who was compared, how alike they were, whether they are one.

M pairs, I identities.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelt.auditing.table import Rows, read_chunks
from facelt.errors import UserError

COLUMNS = ("id1", "id2", "score", "label")
_LABELS = {"0": False, "1": True}
# Pairs handed on at a time.
BLOCK = 1 << 21

# score [M], mated [M], position of the left and of the right image [M]
Block = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """Pairs of people; larger scores mean more alike. Positions are of `identities`, in the order they first come."""

    path: Path
    identities: list[str]
    score_M: np.ndarray
    left_M: np.ndarray
    right_M: np.ndarray

    def blocks(self) -> Iterator[Block]:
        """All pairs, once each."""
        for start in range(0, len(self.score_M), BLOCK):
            part = slice(start, start + BLOCK)
            left_M, right_M = self.left_M[part], self.right_M[part]
            yield self.score_M[part], left_M == right_M, left_M, right_M


def read_scores(path: Path) -> ScoredPairs:
    """Read a scores file: `id1` and `id2` are identities, `label` is 1 for a mated pair and 0 for any other.

    Raises UserError naming the line and the column: a score that is no finite number, a label that is neither 0 nor 1,
    one that contradicts the identities, an empty identity; or that there are no pairs of one kind.
    """
    place: dict[str, int] = {}
    parts = [_chunk(path, rows, place) for rows in read_chunks(path, COLUMNS)]
    score_M, left_M, right_M = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not (left_M == right_M).any() or (left_M == right_M).all():
        kind = "mated pair (label 1)" if not (left_M == right_M).any() else "non-mated pair (label 0)"
        raise UserError(f"{path}: holds no {kind}; error rates need both kinds")
    return ScoredPairs(path, list(place), score_M, left_M, right_M)


def _chunk(path: Path, rows: Rows, place: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def _numbers(path: Path, rows: Rows) -> np.ndarray:
    text = rows.columns["score"]
    try:
        score_M = np.array(list(map(float, text)), dtype=np.float64)
    except ValueError:
        bad = next(row for row, one in enumerate(text) if not _is_number(one))
        raise _wrong(path, rows, bad, "score", "is no number") from None
    if not np.isfinite(score_M).all():
        raise _wrong(path, rows, int(np.argmin(np.isfinite(score_M))), "score", "is not finite")
    return score_M


def _codes(path: Path, rows: Rows, name: str, place: dict[str, int]) -> np.ndarray:
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


def _wrong(path: Path, rows: Rows, row: int, column: str, what: str) -> UserError:
    return UserError(f"{path}: line {rows.line_N[row]}, column {column!r}: {rows.columns[column][row]!r} {what}")
