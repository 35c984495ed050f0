"""One way to ask for features, whether they lie in an embedding store or in a tree of .bin files.

N images, M chosen ones, D feature.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from eval_megaface.coverage import Coverage, fingerprint, inspected, scan
from eval_megaface.tree_coverage import inspect_tree
from facelt.errors import UserError
from facelt.search.blocks import Rows
from facelt.store import EmbeddingStore
from facelt.store.bin_tree import TreeRows
from facelt.store.chosen_rows import ChosenRows

META = "meta.json"


class FeatureSource(Protocol):
    """Where embeddings come from."""

    path: Path
    kinds: tuple[str, ...]

    def rows(self, kind: str, images: Sequence[str]) -> Rows:
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

    def rows(self, kind: str, images: Sequence[str]) -> Rows:
        """See FeatureSource; a store in the list's own order is handed on as the memory map it is."""
        value_ND = self.store.embedding(kind)
        if self.store.keys[: len(images)] == list(images):
            return value_ND[: len(images)]
        position_M = self._positions(images)
        (missing,) = np.nonzero(position_M < 0)
        if len(missing):
            shown = ", ".join(repr(images[row]) for row in missing[:3])
            raise UserError(f"{self.path}: lacks {len(missing)} of {len(images)} listed images, such as {shown}")
        return ChosenRows(value_ND, position_M)

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

    def rows(self, kind: str, images: Sequence[str]) -> Rows:
        """See FeatureSource."""
        if kind != "direct":
            raise UserError(f"{self.path}: a tree of .bin files holds kind 'direct' only, not {kind!r}")
        return TreeRows(self.path, self.algorithm, images)

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
