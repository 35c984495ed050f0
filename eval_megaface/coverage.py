"""Which listed images have a feature that can be measured: found before any search, named, and counted.

Unusable is what is missing, short, of another dimension, not finite or zero. A feature that repeats another's, value by
value, is named as well but stays: galleries from the web hold some photographs twice.

N images, D feature.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

SHOWN = 5
REPEATS_SHOWN = 2
CHUNK = 512
READERS = 4


class Values(Protocol):
    """Rows, float16 or float32, by an array of their positions."""

    def __getitem__(self, row_N: np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Coverage:
    """What a source holds of `listed` images: those unusable with the reason, those that repeat another with it.

    `fingerprint` changes with any value of any listed image and with their order.
    """

    path: Path
    kind: str
    listed: int
    unusable: dict[str, str]
    repeated: dict[str, str]
    fingerprint: str

    def summary(self) -> dict[str, int]:
        """Counts for the report."""
        usable = self.listed - len(self.unusable)
        return {"listed": self.listed, "usable": usable, "repeated": len(self.repeated)}

    def __str__(self) -> str:
        usable = self.listed - len(self.unusable)
        line = f"{self.path}: {self.kind} of {usable:,} of {self.listed:,} listed images ({usable / self.listed:.2%})"
        if self.repeated:
            line += f"; {len(self.repeated):,} repeat another's: {self.repeats()}"
        return line

    def repeats(self) -> str:
        """The first few that repeat another's embedding."""
        return _shown([f"{image} as {first}" for image, first in self.repeated.items()], REPEATS_SHOWN)

    def problems(self) -> str:
        """The unusable images by reason, the first few by name."""
        by_reason: dict[str, list[str]] = {}
        for image, reason in self.unusable.items():
            by_reason.setdefault(reason, []).append(image)
        reasons = [f"{len(images):,} {reason}: {_shown(images)}" for reason, images in by_reason.items()]
        more = f"; {len(reasons) - SHOWN} more reasons" if len(reasons) > SHOWN else ""
        count = f"{len(self.unusable):,} of {self.listed:,} listed images"
        return f"{self.path}: {self.kind} of {count} cannot be used ({'; '.join(reasons[:SHOWN])}{more})"


def _shown(names: Sequence[str], most: int = SHOWN) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def scan(value_ND: Values, row_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows are finite and which are not zero (bool [N]), and 64 bits that tell rows apart (uint64 [N]).

    The rows `row_N` of an array, float16 or float32, in the array's order and by a few threads.
    """
    rows = len(row_N)
    finite_N, nonzero_N, hash_N = np.empty(rows, bool), np.empty(rows, bool), np.empty(rows, np.uint64)
    order_N = np.argsort(row_N, kind="stable")

    def scan_chunk(start: int) -> None:
        place = order_N[start : start + CHUNK]
        finite_N[place], nonzero_N[place], hash_N[place] = _scan_bits(np.ascontiguousarray(value_ND[row_N[place]]))

    with ThreadPoolExecutor(READERS) as readers:
        # Consumed, so that an error shows.
        for _ in readers.map(scan_chunk, range(0, rows, CHUNK)):
            pass
    return finite_N, nonzero_N, hash_N


def _scan_bits(value_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    bits_ND = value_ND.view({2: np.uint16, 4: np.uint32}[value_ND.itemsize])
    # Without the sign, bits of floats are in the order of their magnitudes, infinity and NaN above all.
    sign = 1 << (8 * value_ND.itemsize - 1)
    greatest_N = (bits_ND & (sign - 1)).max(axis=1, initial=0)
    infinity = np.array(np.inf, dtype=value_ND.dtype).view(bits_ND.dtype)
    words, odd = divmod(value_ND.shape[1] * value_ND.itemsize, 8)
    if odd:
        padded_ND = np.zeros((len(value_ND), (words + 1) * 8 // value_ND.itemsize), dtype=bits_ND.dtype)
        padded_ND[:, : bits_ND.shape[1]] = bits_ND
        bits_ND, words = padded_ND, words + 1
    # Sums of words by odd factors modulo 2^64 (multiply-shift: Dietzfelbinger et al., J. Algorithms, 1997). Products
    # carry upwards only, and floats of few digits differ at the top alone: the top is mixed into the bottom first.
    word_NW = bits_ND.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word_NW ^= word_NW >> np.uint64(32)
    factor_W = np.random.default_rng(0).integers(0, 2**63, words, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hash_N = np.einsum("nw,w->n", word_NW, factor_W)
    return greatest_N < infinity, greatest_N > 0, hash_N


def repeats(hash_N: np.ndarray, value_ND: Values, row_N: np.ndarray) -> dict[int, int]:
    """Positions whose row equals that of an earlier position, and that position. Equal hashes are compared in full."""
    order_N = np.argsort(hash_N, kind="stable")
    same = np.flatnonzero(hash_N[order_N[1:]] == hash_N[order_N[:-1]])
    found: dict[int, int] = {}
    for first, second in zip(order_N[same].tolist(), order_N[same + 1].tolist(), strict=True):
        if np.array_equal(*value_ND[row_N[[first, second]]]):
            found[second] = found.get(first, first)
    return dict(sorted(found.items()))


def inspected(
    path: Path,
    kind: str,
    images: Sequence[str],
    names: Sequence[str],
    value_ND: Values,
    row_N: np.ndarray,
    damaged: dict[str, str] | None = None,
) -> Coverage:
    """The coverage of `images`, of which `names` have the rows `row_N` and no other has any.

    `damaged` gives the reason of rows that are stand-ins; whoever reads them may fill it as they are read.
    """
    finite_N, nonzero_N, hash_N = scan(value_ND, row_N)
    here = set(names) if len(names) < len(images) else images
    unusable = {} if here is images else {image: "missing" for image in images if image not in here}
    unusable |= {names[row]: "not finite" for row in np.flatnonzero(~finite_N).tolist()}
    unusable |= {names[row]: "of length zero" for row in np.flatnonzero(finite_N & ~nonzero_N).tolist()}
    unusable |= damaged or {}
    repeated = {names[row]: names[first] for row, first in repeats(hash_N, value_ND, row_N).items()}
    repeated = {image: first for image, first in repeated.items() if image not in unusable}
    return Coverage(path, kind, len(images), unusable, repeated, fingerprint(names, hash_N))


def fingerprint(*parts: np.ndarray | Sequence[str] | str) -> str:
    """One hash of arrays, lists of names and texts."""
    digest = hashlib.sha256()
    for part in parts:
        text = part if isinstance(part, str | np.ndarray) else "\0".join(part)
        content = text.tobytes() if isinstance(text, np.ndarray) else text.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()
