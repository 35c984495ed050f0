"""Which listed images have a feature that can be measured: found before any search, named, and counted.

Unusable is what is missing, short, of another dimension, not finite or zero. A feature that repeats another's, value by
value, is named as well but stays: galleries from the web hold some photographs twice.

N images, D feature.

The coverage of a tree of .bin files. N images, D feature.

One way to ask for features, whether they lie in an embedding store or in a tree of .bin files.

N images, M chosen ones, D feature.

One model's opened sources: what they hold, and which listed images it covers.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from eval_megaface.config import MegafaceConfig, ModelFiles
from eval_megaface.suite import Suite
from facelt.config.base import EmbeddingKind
from facelt.errors import UserError
from facelt.search.exact import MatrixLike
from facelt.store.feature_tree import (
    _HEADER_BYTES,
    _VALUE_DTYPE,
    FeatureTree,
    feature_path,
    read_feature,
    size_inside_root,
)
from facelt.store.store import EmbeddingStore, RowSubset

SHOWN = 5
REPEATS_SHOWN = 2
CHUNK = 512
READERS = 4


class Values(Protocol):
    """MatrixLike, float16 or float32, by an array of their positions."""

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


def inspect_tree(root: Path, algorithm: str, kind: str, images: Sequence[str]) -> Coverage:
    """Which of `images` have a feature file that can be used: each is read once, nothing is kept.

    The dimension is that of most files, by their sizes. Raises UserError where a name or a link leads out of the root.
    """
    paths = {image: feature_path(root, image, algorithm) for image in images}
    sizes = {image: size for image, path in paths.items() if (size := size_inside_root(path, root)) is not None}
    common = Counter(sizes.values()).most_common(1)
    dimension = max(1, (common[0][0] - _HEADER_BYTES) // _VALUE_DTYPE.itemsize) if common else 1
    names = list(sizes)
    files = _Files([paths[image] for image in names], names, dimension)
    return inspected(root, kind, images, names, files, np.arange(len(names)), files.damaged)


class _Files:
    """Features by position; for a file that cannot be read NaN, and the reason in `damaged`."""

    def __init__(self, paths: list[Path], names: list[str], dimension: int) -> None:
        self._paths, self._names, self._dimension = paths, names, dimension
        self.damaged: dict[str, str] = {}

    def __getitem__(self, row_N: np.ndarray) -> np.ndarray:
        value_ND = np.full((len(row_N), self._dimension), np.nan, dtype=np.float32)
        for place, row in enumerate(row_N.tolist()):
            try:
                value_ND[place] = read_feature(self._paths[row], self._dimension)
            except UserError as error:
                self.damaged[self._names[row]] = str(error).removeprefix(f"{self._paths[row]}: ")
        return value_ND


META = "meta.json"


class FeatureSource(Protocol):
    """Where embeddings come from."""

    path: Path
    kinds: tuple[str, ...]

    def rows(self, kind: str, images: Sequence[str]) -> MatrixLike:
        """The embeddings [M,D] of `images` in their order, read when sliced. Raises UserError naming those missing."""
        ...

    def inspect(self, kind: str, images: Sequence[str]) -> Coverage:
        """Which of `images` can be used: all of them are read."""
        ...

    def reachability(self, images: Sequence[str]) -> np.ndarray | None:
        """How familiar each of `images` looked to the model, float32 [M]; None where that is not recorded."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the report says about where these figures come from."""
        ...


class StoreSource:
    """An embedding store; its keys are the lists' paths."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = EmbeddingStore.open(path)
        self.kinds = self.store.kinds
        self._found: list[tuple[Sequence[str], np.ndarray]] = []

    def rows(self, kind: str, images: Sequence[str]) -> MatrixLike:
        """See FeatureSource; a store in the list's own order is handed on as the memory map it is."""
        value_ND = self.store.embedding(kind)
        if self.store.keys[: len(images)] == list(images):
            return value_ND[: len(images)]
        position_M = self._positions(images)
        (missing,) = np.nonzero(position_M < 0)
        if len(missing):
            shown = ", ".join(repr(images[row]) for row in missing[:3])
            raise UserError(f"{self.path}: lacks {len(missing)} of {len(images)} listed images, such as {shown}")
        return RowSubset(value_ND, position_M)

    def inspect(self, kind: str, images: Sequence[str]) -> Coverage:
        """See FeatureSource."""
        value_ND, position_M = self.store.embedding(kind), self._positions(images)
        (there,) = np.nonzero(position_M >= 0)
        names = images if len(there) == len(images) else [images[place] for place in there.tolist()]
        return inspected(self.path, kind, images, names, value_ND, position_M[there])

    def reachability(self, images: Sequence[str]) -> np.ndarray | None:
        """See FeatureSource; for images that `inspect` found."""
        values_N = self.store.reachability
        return None if values_N is None else np.asarray(values_N[self._positions(images)])

    def _positions(self, images: Sequence[str]) -> np.ndarray:
        """The rows of `images`, -1 where there is none; once for a list that is asked for again, as for every kind."""
        for known, position_M in self._found:
            if known is images:
                return position_M
        position = dict(zip(self.store.keys, range(len(self.store)), strict=True))
        absent = itertools.repeat(-1)
        position_M = np.fromiter(map(position.get, images, absent), dtype=np.int64, count=len(images))
        self._found.append((images, position_M))
        return position_M

    def describe(self) -> dict[str, Any]:
        """The store's meta.json."""
        return {"path": str(self.path), **self.store.meta}

    def fingerprint(self, kind: str) -> str:
        """A hash of all of the store's keys and values of one kind."""
        _, _, hash_N = scan(self.store.embedding(kind), np.arange(len(self.store)))
        return fingerprint(self.store.keys, hash_N)

    @property
    def keys(self) -> list[str]:
        """All images of the store, in its order."""
        return self.store.keys


class TreeSource:
    """A tree of .bin files: one kind, `direct`, compared by cosine whatever the lengths are."""

    kinds = ("direct",)

    def __init__(self, path: Path, algorithm: str) -> None:
        self.path, self.algorithm = path, algorithm

    def rows(self, kind: str, images: Sequence[str]) -> MatrixLike:
        """See FeatureSource."""
        if kind != "direct":
            raise UserError(f"{self.path}: a tree of .bin files holds kind 'direct' only, not {kind!r}")
        return FeatureTree(self.path, self.algorithm, images)

    def inspect(self, kind: str, images: Sequence[str]) -> Coverage:
        """See FeatureSource. The dimension is what most files have by their sizes."""
        return inspect_tree(self.path, self.algorithm, kind, images)

    def reachability(self, images: Sequence[str]) -> None:
        """See FeatureSource: trees have none."""

    def describe(self) -> dict[str, Any]:
        """Where the tree lies; its files say nothing about the model."""
        return {"path": str(self.path), "format": "bin", "algorithm": self.algorithm, "kinds": list(self.kinds)}


def open_source(path: Path, algorithm: str | None) -> FeatureSource:
    """The store or tree in folder `path`. Raises UserError where it is neither or a tree has no `algorithm`."""
    if not path.is_dir() or (path / META).is_file():
        return StoreSource(path)
    if algorithm is None:
        raise UserError(
            f"{path}: has no {META}, so it is no embedding store; for a tree of IMAGE_ALGORITHM.bin files set "
            "the model's algorithm"
        )
    return TreeSource(path, algorithm)


PARTS = ("probes", "distractors")


class ModelSources:
    """Probes, distractors, perhaps training embeddings; `coverage` is by part and kind, once `inspect` was called."""

    def __init__(self, files: ModelFiles) -> None:
        self.probes: FeatureSource = open_source(files.probes, files.algorithm)
        self.distractors: FeatureSource = open_source(files.distractors, files.algorithm)
        self.train = StoreSource(files.train) if files.train else None
        self.kinds = [kind for kind in self.probes.kinds if kind in self.distractors.kinds]
        self.coverage: dict[tuple[str, EmbeddingKind], Coverage] = {}

    def inspect(self, suite: Suite, kinds: list[EmbeddingKind]) -> None:
        """Read all embeddings of the suite's images once."""
        listed = {"probes": suite.probe_paths, "distractors": suite.distractor_paths}
        self.coverage = {
            (part, kind): getattr(self, part).inspect(kind, listed[part]) for part in PARTS for kind in kinds
        }

    def unusable(self, part: str) -> set[str]:
        """Images of a part that lack a usable embedding of some kind."""
        return {image for (other, _), found in self.coverage.items() if other == part for image in found.unusable}

    def fingerprint(self, kind: EmbeddingKind) -> str:
        """A hash of the inspected embeddings of one kind."""
        return fingerprint(*(self.coverage[part, kind].fingerprint for part in PARTS))

    def check_dimensions(self, suite: Suite) -> None:
        """Raise UserError where probes and distractors are of different dimensions."""
        for kind in self.kinds[:1]:
            dimension = self.probes.rows(kind, suite.probe_paths).shape[1]
            other = self.distractors.rows(kind, suite.distractor_paths).shape[1]
            if suite.distractor_paths and other != dimension:
                raise UserError(
                    f"{self.distractors.path}: embeddings have {other} values, those in {self.probes.path} {dimension}"
                )

    def describe(self) -> dict[str, Any]:
        """What the report says of the model's files."""
        parts = {"probes": self.probes, "distractors": self.distractors, "train": self.train}
        described = {name: source.describe() for name, source in parts.items() if source is not None}
        for (part, kind), found in self.coverage.items():
            described[part].setdefault("coverage", {})[kind] = found.summary()
        return described


@dataclass(frozen=True, eq=False)
class Measured:
    """One kind of one model's embeddings, the unit of every measurement."""

    model: str
    source: ModelSources
    kind: EmbeddingKind

    @property
    def which(self) -> dict[str, str]:
        """How the report names it."""
        return {"model": self.model, "kind": self.kind}

    def __str__(self) -> str:
        return f"{self.model}, {self.kind}"


def measured_kinds(name: str, source: ModelSources, config: MegafaceConfig) -> list[EmbeddingKind]:
    """The kinds to measure of one model. Raises UserError where one that was asked for is not there."""
    if config.kinds != "all" and (lacking := [kind for kind in config.kinds if kind not in source.kinds]):
        raise UserError(
            f"kinds: model {name!r} has no {lacking[0]!r} for probes and distractors; both hold "
            f"{', '.join(source.kinds) or 'no kind in common'}"
        )
    if not source.kinds:
        raise UserError(f"models.{name}: its stores of probes and distractors have no kind of embedding in common")
    return source.kinds if config.kinds == "all" else list(dict.fromkeys(config.kinds))


def one_sided_kinds(sources: dict[str, ModelSources]) -> list[str]:
    """A note for each kind that only one of a model's two stores holds."""
    return [
        f"{name}: kind {kind} is in only one of its stores of probes and distractors and is not measured."
        for name, source in sources.items()
        for kind in sorted(set(source.probes.kinds) ^ set(source.distractors.kinds))
    ]


def check_coverage(sources: dict[str, ModelSources], allowed: int) -> dict[str, frozenset[str]]:
    """The images of each part that some model cannot be measured on, at most `allowed` in all.

    They are left out for every model, so that all are measured on the same images. Raises UserError that names the
    first of them where they are more.
    """
    without = {part: frozenset().union(*(source.unusable(part) for source in sources.values())) for part in PARTS}
    if (count := sum(map(len, without.values()))) > allowed:
        found = [one.problems() for source in sources.values() for one in source.coverage.values() if one.unusable]
        raise UserError(f"{'; '.join(found)}: repair them, or leave images out with --allow-missing {count}")
    return without


def coverage_notes(sources: dict[str, ModelSources], without: dict[str, frozenset[str]]) -> list[str]:
    """What a reader of the report must know of images that were left out or repeat each other."""
    notes = [
        f"{len(images)} listed {part} without a usable embedding are left out for every model."
        for part, images in without.items()
        if images
    ]
    # Photographs that are in a list twice repeat each other by every model.
    repeating: dict[str, list[str]] = {}
    for name, source in sources.items():
        for (part, kind), found in source.coverage.items():
            if found.repeated:
                what = f"{len(found.repeated)} {part} repeat another's embedding: {found.repeats()}."
                repeating.setdefault(what, []).append(f"{name}, {kind}")
    notes += [f"{'; '.join(models)}: {what}" for what, models in repeating.items()]
    return notes
