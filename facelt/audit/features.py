"""Embeddings of an audit, of the audited images or of distractors, from a store or a tree of .bin files.

N images, D feature.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from facelt.config.audit import FeaturesConfig
from facelt.errors import UserError
from facelt.search.exact import MatrixLike
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
from recordio_tools.atomic_io import sha256_of

_STORE_META = "meta.json"
# Features of a tree read at a time.
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """N images with their identities, the store's attribute columns of them, and their embeddings, read when sliced.

    `defects` has, by position, the reason why an image has no embedding; `removed` counts images left out as noise;
    `provenance` is the description in the report; `noisy` are the names on the noise list, kept or not.
    """

    path: Path
    keys: list[str]
    identities: list[str]
    columns: dict[str, list[str]]
    rows: MatrixLike
    cosine: bool
    defects: dict[int, str]
    removed: int
    provenance: dict[str, Any]
    noisy: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.keys)

    def subset(self, indices: Sequence[int]) -> "FeatureSet":
        """Returns the images at these positions, in that order, of a store or of a tree in memory."""
        new_position = {old: new for new, old in enumerate(indices)}
        return replace(
            self,
            keys=[self.keys[row] for row in indices],
            identities=[self.identities[row] for row in indices],
            columns={name: [values[row] for row in indices] for name, values in self.columns.items()},
            rows=RowSubset(self.rows, np.asarray(indices, dtype=np.int64)),
            defects={new_position[row]: reason for row, reason in self.defects.items() if row in new_position},
        )


def open_features(config: FeaturesConfig, kind: str, noise: str, *, lazy: bool = False) -> FeatureSet:
    """Opens the configured embeddings, without the images on the noise list unless `noise` is `raw`.

    All embeddings of a tree are read and unusable ones are listed in `defects`. With `lazy` they are read when sliced,
    and the first unusable one raises an error.

    Raises UserError naming the file: neither store nor tree, a listed image that is absent, a kind that is not there.
    """
    names = [] if config.noises is None else read_noise_names(config.noises)
    noisy = frozenset(name if "/" in name else PurePosixPath(name).stem for name in names)
    dropped = noisy if noise == "drop" else frozenset()
    if config.path.is_dir() and not (config.path / _STORE_META).is_file():
        features = _open_tree(config, kind, dropped, lazy)
    else:
        features = _open_store(config, kind, dropped)
    return replace(features, noisy=noisy)


def _open_store(config: FeaturesConfig, kind: str, noisy: frozenset[str]) -> FeatureSet:
    store = EmbeddingStore.open(config.path)
    value_ND = store.embedding(kind)
    hashes = {name: sha256_of(config.path / name) for name in (_STORE_META, "items.csv", f"{kind}.npy")}
    provenance = {"path": str(config.path), **store.meta, "sha256": hashes}
    is_cosine = kind in UNIT_KINDS
    columns = store.keys, store.identities, store.attributes
    features = FeatureSet(config.path, *columns, value_ND, is_cosine, {}, 0, provenance)
    if config.list is None and not noisy:
        return features
    listed = store.keys if config.list is None else read_image_list(config.list)
    position = {key: row for row, key in enumerate(store.keys)}
    if missing := [key for key in listed if key not in position]:
        raise UserError(
            f"{config.list}: {len(missing)} of {len(listed)} listed images are not in {config.path}, "
            f"such as {missing[0]!r}"
        )
    indices = [position[key] for key in listed if not is_noisy(key, noisy)]
    return replace(features.subset(indices), removed=len(listed) - len(indices))


def _open_tree(config: FeaturesConfig, kind: str, noisy: frozenset[str], lazy: bool) -> FeatureSet:
    """Opens a tree of .bin files: kind `direct` only, compared by cosine."""
    if config.algorithm is None or config.list is None:
        raise UserError(
            f"{config.path}: not an embedding store (no {_STORE_META}); for a tree of IMAGE_ALGORITHM.bin files set "
            "algorithm and list"
        )
    if kind != "direct":
        raise UserError(f"{config.path}: a tree of .bin files holds kind 'direct' only, not {kind!r}")
    listed = read_image_list(config.list)
    keys = [key for key in listed if not is_noisy(key, noisy)]
    defects: dict[int, str] = {}
    if lazy:
        rows, identities = FeatureTree(config.path, config.algorithm, keys), [""] * len(keys)
    else:
        rows, defects = _read_tree(config.path, config.algorithm, keys)
        identities = [probe_identity(key, config.list) for key in keys]
    provenance = {
        **{"path": str(config.path), "format": "bin", "algorithm": config.algorithm},
        "sha256": {"values in the list's order": _hash_values(rows)},
    }
    return FeatureSet(config.path, keys, identities, {}, rows, True, defects, len(listed) - len(keys), provenance)


def is_noisy(key: str, noisy: frozenset[str]) -> bool:
    """Returns whether an image is on a noise list, by its path or, for lists of bare names, by its stem."""
    return key in noisy or PurePosixPath(key).stem in noisy


def _read_tree(root: Path, algorithm: str, keys: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Reads all features, float32 [N,D], zeros for defective ones, and the defects. D is the most common size."""
    paths = [feature_path(root, key, algorithm) for key in keys]
    sizes = [size_inside_root(path, root) for path in paths]
    features, defects = {}, {}
    for index, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        try:
            features[index] = read_feature(path)
        except UserError as error:
            defects[index] = "no such file" if size is None else str(error).removeprefix(f"{path}: ")
    common = Counter(map(len, features.values())).most_common(1)
    value_ND = np.zeros((len(keys), common[0][0] if common else 1), dtype=np.float32)
    for index, feature_D in features.items():
        if len(feature_D) == value_ND.shape[1]:
            value_ND[index] = feature_D
        else:
            defects[index] = f"holds {len(feature_D)} values, most others {value_ND.shape[1]}"
    return value_ND, defects


def _hash_values(rows: MatrixLike) -> str:
    """Returns the SHA-256 of the values in order, which reads, and so validates, every file of a tree."""
    digest = hashlib.sha256()
    for start in range(0, rows.shape[0], _CHUNK):
        digest.update(np.ascontiguousarray(rows[start : start + _CHUNK], dtype="<f4").tobytes())
    return digest.hexdigest()
