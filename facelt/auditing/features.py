"""The embeddings to be audited, and those they are searched among, from a store or a tree of files.

N images, M chosen ones, D feature.
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
from facelt.search import Rows
from facelt.store import UNIT_KINDS, EmbeddingStore
from facelt.store.bin_tree import TreeRows, feature_path, read_feature, size_below
from facelt.store.chosen_rows import ChosenRows
from facelt.store.image_lists import probe_identity, read_image_list, read_noise_names
from facelt.whole_files import sha256_of_input

META = "meta.json"
# Features of a tree read at a time.
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Features:
    """N images with their identities, what a store says of them (`own` columns) and their rows, read when sliced.

    `reason` says of some positions why there is no embedding; `removed` counts images left out as noise.
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

    def chosen(self, kept: Sequence[int]) -> "Features":
        """Those at the positions `kept`, in that order, of a store or of features that are in memory."""
        place = {old: new for new, old in enumerate(kept)}
        return replace(
            self,
            keys=[self.keys[row] for row in kept],
            identities=[self.identities[row] for row in kept],
            own={name: [values[row] for row in kept] for name, values in self.own.items()},
            rows=ChosenRows(self.rows, np.asarray(kept, dtype=np.int64)),
            reason={place[row]: why for row, why in self.reason.items() if row in place},
        )


def open_features(config: FeaturesConfig, kind: str, noise: str, *, whole: bool = True) -> Features:
    """Open what a configuration names, without the images its noise list names unless `noise` is `raw`.

    The embeddings of a tree are all read if `whole`, and those that cannot be used are noted in `reason`; otherwise
    they are read when sliced, and the first that cannot be used is an error then.

    Raises UserError naming the file: neither store nor tree, a listed image that is absent, a kind that is not held.
    """
    noisy: frozenset[str] = frozenset()
    if config.noises is not None and noise == "drop":
        names = read_noise_names(config.noises)
        noisy = frozenset(name if "/" in name else PurePosixPath(name).stem for name in names)
    if config.path.is_dir() and not (config.path / META).is_file():
        return _open_tree(config, kind, noisy, whole)
    return _open_store(config, kind, noisy)


def is_named(key: str, noisy: frozenset[str]) -> bool:
    """Whether a noise list names an image: by its path or, in a list of bare names, by its stem."""
    return key in noisy or PurePosixPath(key).stem in noisy


def _values_hash(rows: Rows) -> str:
    """The SHA-256 of the values of a tree in order; every file of a lazy one is read, and so checked, on the way."""
    digest = hashlib.sha256()
    for start in range(0, rows.shape[0], _CHUNK):
        digest.update(np.ascontiguousarray(rows[start : start + _CHUNK], dtype="<f4").tobytes())
    return digest.hexdigest()


def _open_store(config: FeaturesConfig, kind: str, noisy: frozenset[str]) -> Features:
    store = EmbeddingStore.open(config.path)
    value_ND = store.embedding(kind)
    hashes = {name: sha256_of_input(config.path / name) for name in (META, "items.csv", f"{kind}.npy")}
    described = {"path": str(config.path), **store.meta, "sha256": hashes}
    cosine = kind in UNIT_KINDS
    everyone = Features(config.path, store.keys, store.identities, store.attributes, value_ND, cosine, {}, 0, described)
    if config.list is None and not noisy:
        return everyone
    listed = store.keys if config.list is None else read_image_list(config.list)
    place = {key: row for row, key in enumerate(store.keys)}
    if missing := [key for key in listed if key not in place]:
        raise UserError(
            f"{config.list}: {len(missing)} of {len(listed)} listed images are not in {config.path}, "
            f"such as {missing[0]!r}"
        )
    kept = [place[key] for key in listed if not is_named(key, noisy)]
    return replace(everyone.chosen(kept), removed=len(listed) - len(kept))


def _open_tree(config: FeaturesConfig, kind: str, noisy: frozenset[str], whole: bool) -> Features:
    """A tree of .bin files: one kind, `direct`, compared by cosine whatever the lengths are."""
    if config.algorithm is None or config.list is None:
        raise UserError(
            f"{config.path}: has no {META}, so it is no embedding store; for a tree of IMAGE_ALGORITHM.bin files set "
            "algorithm and list"
        )
    if kind != "direct":
        raise UserError(f"{config.path}: a tree of .bin files holds kind 'direct' only, not {kind!r}")
    listed = read_image_list(config.list)
    keys = [key for key in listed if not is_named(key, noisy)]
    reason: dict[int, str] = {}
    if whole:
        rows, reason = _read_tree(config.path, config.algorithm, keys)
        identities = [probe_identity(key, config.list) for key in keys]
    else:
        rows, identities = TreeRows(config.path, config.algorithm, keys), [""] * len(keys)
    described = {
        **{"path": str(config.path), "format": "bin", "algorithm": config.algorithm},
        "sha256": {"values in the list's order": _values_hash(rows)},
    }
    return Features(config.path, keys, identities, {}, rows, True, reason, len(listed) - len(keys), described)


def _read_tree(root: Path, algorithm: str, keys: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    """All features, float32 [N,D] with zeros where there is none, and why there is none. D is that of most files."""
    paths = [feature_path(root, key, algorithm) for key in keys]
    sizes = [size_below(path, root) for path in paths]
    found, reason = {}, {}
    for place, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        try:
            found[place] = read_feature(path)
        except UserError as error:
            reason[place] = "no such file" if size is None else str(error).removeprefix(f"{path}: ")
    common = Counter(map(len, found.values())).most_common(1)
    value_ND = np.zeros((len(keys), common[0][0] if common else 1), dtype=np.float32)
    for place, feature_D in found.items():
        if len(feature_D) == value_ND.shape[1]:
            value_ND[place] = feature_D
        else:
            reason[place] = f"holds {len(feature_D)} values, most others {value_ND.shape[1]}"
    return value_ND, reason
