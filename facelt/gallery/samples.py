"""What is enrolled, column by column, checked at the door. N samples, D feature."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.gallery.contract import Contract

# Longer ones are a mistake in a table; Milvus has limits of its own above these.
NAME_LENGTH = 512
NOTE_LENGTH = 8192
# Shorter than this a direction is rounding noise.
LEAST_LENGTH = 1e-6
# How far float32 values rounded from a vector of length one are from that.
ROUNDED_LENGTH = 1e-6
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples: keys, people and embeddings [N,D]; `metadata` and `provenance` map texts to JSON values, each [N]."""

    keys: Sequence[str]
    people: Sequence[str]
    embedding_ND: np.ndarray
    metadata: Sequence[Mapping[str, Any]] = ()
    provenance: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        for name in ("people", "embedding_ND"):
            if len(getattr(self, name)) != len(self.keys):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {len(self.keys)} keys")
        for name in ("metadata", "provenance"):
            notes = getattr(self, name) or [{}] * len(self.keys)
            if len(notes) != len(self.keys):
                raise ValueError(f"{name} has {len(notes)} entries for {len(self.keys)} keys")

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, rows: slice) -> "Samples":
        """Some of them."""
        columns = (self.keys, self.people, self.embedding_ND, self.metadata, self.provenance)
        return Samples(*(column[rows] for column in columns))

    def notes(self) -> tuple[list[str], list[str]]:
        """Metadata and provenance as JSON texts, [N] each."""
        return tuple(
            [_note(key, value) for key, value in zip(self.keys, column or [{}] * len(self), strict=True)]
            for column in (self.metadata, self.provenance)
        )


def checked(samples: Samples, contract: Contract) -> Samples:
    """The same with float32 embeddings, of length one where the kind is compared by direction.

    Raises UserError naming the first sample whose embedding is of another dimension, not finite or of length zero,
    whose key or person is empty, overlong or no text, or whose key occurs twice.
    """
    refuse_repeated(samples.keys)
    for what, names in (("key", samples.keys), ("person", samples.people)):
        for name in names:
            check_name(name, what)
    rows_ND = checked_rows(samples.embedding_ND, contract, lambda row: f"sample {samples.keys[row]!r}")
    return Samples(samples.keys, samples.people, rows_ND, samples.metadata, samples.provenance)


def refuse_repeated(keys: Sequence[str]) -> None:
    """Raises UserError naming the first key that occurs twice."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise UserError(f"the key {key!r} occurs more than once; every sample needs its own key")
        seen.add(key)


def checked_rows(row_ND: np.ndarray, contract: Contract, name=lambda row: f"probe {row}") -> np.ndarray:
    """Contiguous float32 [N,D], of length one where the kind is compared by direction; `name(row)` is for messages.

    Raises UserError naming the first row that is not finite or of length zero, or the dimension where it is another.
    """
    row_ND = np.asarray(row_ND)
    if row_ND.ndim != 2 or row_ND.shape[1] != contract.dimension:
        shape = " x ".join(map(str, row_ND.shape))
        raise UserError(f"embeddings of {shape} values: this gallery holds {contract}")
    if row_ND.dtype.kind not in "fiu":
        raise UserError(f"embeddings of type {row_ND.dtype}: they must be numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        row_ND = np.array(row_ND, dtype=np.float32, order="C")
        length_N = np.sqrt(np.einsum("nd,nd->n", row_ND, row_ND, dtype=np.float64))
    for is_bad_N, reason in ((~np.isfinite(length_N), "is not finite"), (length_N < LEAST_LENGTH, "has length zero")):
        if is_bad_N.any():
            raise UserError(f"{name(int(np.argmax(is_bad_N)))}: its embedding {reason}; leave it out or embed it again")
    if contract.is_unit:
        # Those that have it already stay as they are, to the last bit, from one gallery to the next.
        other_N = np.abs(length_N - 1) > ROUNDED_LENGTH
        row_ND[other_N] /= length_N[other_N, None]
    return row_ND


def check_name(name: str, what: str) -> None:
    """Raises UserError unless it is a text of one to NAME_LENGTH letters that a database can hold."""
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH or _UNUSABLE.search(name):
        shown = ascii(name[:40] if isinstance(name, str) else name)
        raise UserError(f"{what} {shown}: must be a text of 1 to {NAME_LENGTH} letters without NUL or half characters")


def _note(key: str, value: Mapping[str, Any]) -> str:
    if not value:
        return "{}"
    try:
        text = json.dumps(dict(value), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"sample {key!r}: its metadata cannot be kept as JSON ({error})") from error
    if len(text) > NOTE_LENGTH:
        raise UserError(f"sample {key!r}: its metadata takes {len(text)} letters, allowed are {NOTE_LENGTH}")
    return text
