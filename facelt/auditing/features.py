"""The embeddings to be audited, and those they are searched among, from a store or a tree of files.

N images, D feature.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from facelt.auditing.lists import read_image_list, read_noises
from facelt.config.audit import FeaturesConfig
from facelt.errors import UserError
from facelt.search import Rows
from facelt.store import UNIT_KINDS, EmbeddingStore

META = "meta.json"


@dataclass(frozen=True, eq=False)
class Features:
    """N images with their identities, what a store says of them (`own` columns) and their rows, read when sliced.

    `reason` names for some positions why there is no row to be read; `removed` counts images left out as noise.
    """

    path: Path
    keys: list[str]
    identities: list[str]
    own: dict[str, list[str]]
    rows: Rows
    cosine: bool
    reason: dict[int, str]
    removed: int
    described: dict[str, Any]

    def __len__(self) -> int:
        return len(self.keys)

    def chosen(self, kept: Sequence[int], removed: int = 0) -> "Features":
        """Those at the positions `kept`, in that order; `removed` more are counted as left out."""
        place = {old: new for new, old in enumerate(kept)}
        rows = self.rows.chosen(kept) if hasattr(self.rows, "chosen") else ChosenRows(self.rows, kept)
        return replace(
            self,
            keys=[self.keys[row] for row in kept],
            identities=[self.identities[row] for row in kept],
            own={name: [values[row] for row in kept] for name, values in self.own.items()},
            rows=rows,
            reason={place[row]: why for row, why in self.reason.items() if row in place},
            removed=self.removed + removed,
        )


class ChosenRows:
    """Chosen rows of a memory map, copied when sliced."""

    def __init__(self, value_ND: np.ndarray, positions: Sequence[int]) -> None:
        self._value_ND, self._position_M = value_ND, np.asarray(positions, dtype=np.int64)
        self.shape = (len(self._position_M), value_ND.shape[1])

    def chosen(self, positions: Sequence[int]) -> "ChosenRows":
        """Some of these."""
        return ChosenRows(self._value_ND, self._position_M[np.asarray(positions, dtype=np.int64)])

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._value_ND[self._position_M[rows]]


def open_features(config: FeaturesConfig, kind: str, noise: str) -> Features:
    """Open what a configuration names, without the images its noise list names unless `noise` is `raw`.

    Raises UserError naming the file: neither store nor tree, a listed image that is absent, a kind that is not held.
    """
    if config.path.is_dir() and not (config.path / META).is_file():
        from facelt.auditing.tree import open_tree

        features = open_tree(config, kind)
    else:
        features = _open_store(config, kind)
    noisy = read_noises(config.noises) if config.noises and noise == "drop" else frozenset()
    if not noisy:
        return features
    kept = [place for place, key in enumerate(features.keys) if not is_named(key, noisy)]
    return features.chosen(kept, removed=len(features) - len(kept))


def is_named(key: str, noisy: frozenset[str]) -> bool:
    """Whether a noise list names an image: by its path, or by its bare name, whatever the ending."""
    return key in noisy or PurePosixPath(key).stem in noisy


def _open_store(config: FeaturesConfig, kind: str) -> Features:
    store = EmbeddingStore.open(config.path)
    value_ND = store.embedding(kind)
    described = {
        "path": str(config.path),
        **store.meta,
        "sha256": _hashes(config.path, (META, "items.csv", f"{kind}.npy")),
    }
    features = Features(
        config.path, store.keys, store.identities, store.attributes, value_ND, kind in UNIT_KINDS, {}, 0, described
    )
    if config.list is None:
        return features
    listed = read_image_list(config.list)
    described["list"] = {str(config.list): file_hash(config.list)}
    place = {key: row for row, key in enumerate(store.keys)}
    if missing := [key for key in listed if key not in place]:
        raise UserError(
            f"{config.list}: {len(missing)} of {len(listed)} listed images are not in {config.path}, "
            f"such as {missing[0]!r}"
        )
    return features.chosen([place[key] for key in listed])


def file_hash(path: Path) -> str:
    """The SHA-256 of a file. Raises UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: file_hash(folder / name) for name in names}
