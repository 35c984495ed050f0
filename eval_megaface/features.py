"""One way to ask for features, whether they lie in an embedding store or in a tree of .bin files.

N images, M chosen ones, D feature.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from eval_megaface.bin_tree import TreeRows
from facelt.errors import UserError
from facelt.search.blocks import Rows
from facelt.store import EmbeddingStore

META = "meta.json"


class FeatureSource(Protocol):
    """Where embeddings come from."""

    path: Path
    kinds: tuple[str, ...]

    def rows(self, kind: str, images: Sequence[str]) -> Rows:
        """The embeddings [M,D] of `images` in their order, read when sliced. Raises UserError naming those missing."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the report says about where these figures come from."""
        ...


class IndexedRows:
    """Chosen rows of a memory map, copied when sliced."""

    def __init__(self, value_ND: np.ndarray, position_M: np.ndarray) -> None:
        self._value_ND, self._position_M = value_ND, position_M
        self.shape = (len(position_M), value_ND.shape[1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._value_ND[self._position_M[rows]]


class StoreSource:
    """An embedding store; its keys are the lists' paths."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = EmbeddingStore.open(path)
        self.kinds = self.store.kinds
        self._found: list[tuple[Sequence[str], np.ndarray]] = []

    def rows(self, kind: str, images: Sequence[str]) -> Rows:
        """See FeatureSource; a store in the list's own order is handed on as the memory map it is."""
        position_M = self._positions(images)
        value_ND = self.store.embedding(kind)
        if isinstance(position_M, slice):
            return value_ND[position_M]
        return IndexedRows(value_ND, position_M)

    def _positions(self, images: Sequence[str]) -> np.ndarray | slice:
        """The rows of `images`; looked up once for a list that is asked for again, as it is for every kind."""
        for known, position_M in self._found:
            if known is images:
                return position_M
        keys = self.store.keys
        if keys[: len(images)] == list(images):
            return slice(len(images))
        position = dict(zip(keys, range(len(keys)), strict=True))
        absent = itertools.repeat(-1)
        position_M = np.fromiter(map(position.get, images, absent), dtype=np.int64, count=len(images))
        (missing,) = np.nonzero(position_M < 0)
        if len(missing):
            shown = ", ".join(repr(images[row]) for row in missing[:3])
            raise UserError(f"{self.path}: lacks {len(missing)} of {len(images)} listed images, such as {shown}")
        self._found.append((images, position_M))
        return position_M

    def describe(self) -> dict[str, Any]:
        """The store's meta.json."""
        return {"path": str(self.path), **self.store.meta}

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
