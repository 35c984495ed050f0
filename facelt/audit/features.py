"""Embeddings of an audit, of the audited images or of distractors, from a store, a tree of .bin files or an array.

N images, D feature.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from facelt.config.audit import FeaturesConfig
from facelt.errors import UserError
from facelt.search.exact import MatrixLike
from facelt.store.arrays import is_array_file, read_embedding_array
from facelt.store.feature_tree import (
    FeatureTree,
    feature_path,
    probe_identity,
    read_feature,
    read_image_list,
    read_noise_names,
    size_inside_root,
)
from facelt.store.input_hashes import store_inputs, tree_input
from facelt.store.make import numbered_keys, read_row_names
from facelt.store.store import UNIT_KINDS, EmbeddingStore, RowSubset
from facelt.utils.provenance import InputHash

_STORE_META = "meta.json"
# Features of a tree read at a time.
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """N images with their identities, the store's attribute columns of them, and their embeddings, read when sliced.

    `defects` has, by position, the reason why an image has no embedding; `removed` counts images left out as noise;
    `provenance` is the description in the report, `inputs` are the hashes of the files;
    `noisy` are the names on the noise list, kept or not.
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
    inputs: tuple[InputHash, ...]
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


def add_absent_images(features: FeatureSet, identity_of: Mapping[str, str], where: Path) -> FeatureSet:
    """Returns the images with those of `identity_of`, identities by key, that lack an embedding, as defects.

    Reads the embeddings of the others. Raises UserError naming an image without an identity.
    """
    present = set(features.keys)
    absent = [key for key in identity_of if key not in present]
    if unnamed := next((key for key in absent if not identity_of[key]), None):
        raise UserError(f"{where}: {unnamed!r} has no embedding and no identity in a column identity, name or label")
    rows, values = len(features), features.rows[0 : len(features)]
    empty_ND = np.zeros((len(absent), values.shape[1]), dtype=np.float32)
    return replace(
        features,
        keys=features.keys + absent,
        identities=features.identities + [identity_of[key] for key in absent],
        columns={name: [*column, *([""] * len(absent))] for name, column in features.columns.items()},
        rows=np.concatenate([np.asarray(values, dtype=np.float32), empty_ND]),
        defects=features.defects | {rows + index: f"listed in {where}, no embedding" for index in range(len(absent))},
    )


def open_features(config: FeaturesConfig, kind: str, noise: str, *, lazy: bool = False) -> FeatureSet:
    """Opens the configured embeddings, without the images on the noise list unless `noise` is `raw`.

    All embeddings of a tree are read and unusable ones are listed in `defects`. With `lazy` they are read when sliced,
    the first unusable one raises an error, and the rows of an array need no names.

    Raises UserError naming the file: neither store nor tree, a listed image that is absent, a kind that is not there.
    """
    names = [] if config.noises is None else read_noise_names(config.noises)
    noisy = frozenset(name if "/" in name else PurePosixPath(name).stem for name in names)
    dropped = noisy if noise == "drop" else frozenset()
    if config.path.is_dir() and not (config.path / _STORE_META).is_file():
        features = _open_tree(config, kind, dropped, lazy)
    elif is_array_file(config.path):
        features = _select(_open_array(config, kind, lazy), config.list, dropped)
    elif config.items is not None or config.array is not None:
        raise UserError(f"{config.path}: items and array only apply to .npy and .npz files")
    else:
        features = _select(_open_store(config.path, kind), config.list, dropped)
    return replace(features, noisy=noisy)


def _open_store(path: Path, kind: str) -> FeatureSet:
    store = EmbeddingStore.open(path)
    value_ND = store.embedding(kind)
    inputs = store_inputs(path, [kind])
    provenance = {"path": str(path), **store.meta, "sha256": {Path(item.path).name: item.sha256 for item in inputs}}
    columns = store.keys, store.identities, store.attributes
    return FeatureSet(path, *columns, value_ND, kind in UNIT_KINDS, {}, 0, provenance, tuple(inputs))


def _open_array(config: FeaturesConfig, kind: str, lazy: bool) -> FeatureSet:
    path = config.path
    if config.items is not None:
        names = read_row_names(config.items)
        value_ND = read_embedding_array(path, config.array, default=kind, rows=len(names.keys))
        columns = names.keys, names.identities, names.columns
    elif lazy:
        value_ND = read_embedding_array(path, config.array, default=kind)
        columns = numbered_keys(len(value_ND)), [""] * len(value_ND), {}
    else:
        raise UserError(
            f"{path}: the rows of an array have no names; list them in their order in a CSV file (--items), or write a "
            "store with `facelt store make`"
        )
    inputs = (InputHash.of_file(path),)
    provenance = {"path": str(path), "format": path.suffix[1:], "sha256": {path.name: inputs[0].sha256}}
    return FeatureSet(path, *columns, value_ND, kind in UNIT_KINDS, {}, 0, provenance, inputs)


def _select(features: FeatureSet, image_list: Path | None, noisy: frozenset[str]) -> FeatureSet:
    """Returns the listed images, default all, without the noisy ones."""
    if image_list is None and not noisy:
        return features
    listed = features.keys if image_list is None else read_image_list(image_list)
    position = {key: row for row, key in enumerate(features.keys)}
    if missing := [key for key in listed if key not in position]:
        raise UserError(
            f"{image_list}: {len(missing)} of {len(listed)} listed images are not in {features.path}, "
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
    for start in range(0, len(keys), _CHUNK) if lazy else ():
        rows[start : start + _CHUNK]  # refuses an unusable file before any search
    features = tree_input(config.path, config.algorithm, [config.list])
    provenance = {
        **{"path": str(config.path), "format": "bin", "algorithm": config.algorithm},
        "sha256": {"files in the list's order": features.sha256},
    }
    removed = len(listed) - len(keys)
    return FeatureSet(config.path, keys, identities, {}, rows, True, defects, removed, provenance, (features,))


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
            is_absent = size is None and not path.exists()
            defects[index] = "no such file" if is_absent else str(error).removeprefix(f"{path}: ")
    common = Counter(map(len, features.values())).most_common(1)
    value_ND = np.zeros((len(keys), common[0][0] if common else 1), dtype=np.float32)
    for index, feature_D in features.items():
        if len(feature_D) == value_ND.shape[1]:
            value_ND[index] = feature_D
        else:
            defects[index] = f"holds {len(feature_D)} values, most others {value_ND.shape[1]}"
    return value_ND, defects
