"""Open an embedding store: everything checked but the values, nothing copied. N images, D feature."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.store.layout import DTYPES, ITEMS, META, REACHABILITY, read_items, read_meta


@dataclass(frozen=True, eq=False)
class EmbeddingStore:
    """One opened store; use `EmbeddingStore.open`.

    `keys` and `identities` are lists of N strings, `attributes` maps a column to such a list, `meta` is meta.json.
    """

    path: Path
    keys: list[str]
    identities: list[str]
    attributes: dict[str, list[str]]
    meta: dict[str, Any]
    _embeddings: dict[str, np.ndarray] = field(repr=False)
    reachability: np.ndarray | None = field(repr=False, default=None)

    @classmethod
    def open(cls, path: str | Path) -> "EmbeddingStore":
        """Open the store in folder `path`. Raises UserError naming the file at fault.

        Values are not read here: whoever streams the rows refuses those that are not finite.
        """
        path = Path(path)
        if not path.is_dir():
            partial = path.with_name(path.name + ".partial")
            hint = f"; {partial.name} is unfinished: run the embedding again to go on" if partial.is_dir() else ""
            raise UserError(f"{path}: there is no such embedding store{hint}")
        meta = read_meta(path / META)
        items = read_items(path / ITEMS)
        rows = meta["rows"]
        if len(items["key"]) != rows:
            raise UserError(f"{path / ITEMS}: lists {len(items['key'])} items, {META} says {rows}")
        embeddings = {
            kind: _map_array(path / f"{kind}.npy", (rows, dimension), DTYPES)
            for kind, dimension in meta["kinds"].items()
        }
        reachability = _map_array(path / REACHABILITY, (rows,), ("float32",)) if meta["reachability"] else None
        keys, identities = items.pop("key"), items.pop("identity")
        return cls(path, keys, identities, items, meta, embeddings, reachability)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of embedding this store holds, in the order of `KINDS`."""
        return tuple(self._embeddings)

    def embedding(self, kind: str) -> np.ndarray:
        """The memory-mapped, read-only array [N,D] of one kind. Raises UserError if the store does not hold it."""
        if kind not in self._embeddings:
            raise UserError(f"{self.path}: holds no embedding of kind {kind!r}, only {', '.join(self.kinds)}")
        return self._embeddings[kind]


def _map_array(path: Path, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> np.ndarray:
    """Memory-map a .npy file after checking its header against what meta.json promised."""
    try:
        # An empty array has no bytes to map.
        array = np.load(path, mmap_mode="r" if 0 not in shape else None, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {META} says it is there") from error
    except ValueError as error:
        raise UserError(f"{path}: is truncated or no .npy file ({error})") from error
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.name not in dtypes:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{path}: holds {found}, {META} says {' or '.join(dtypes)} {list(shape)}")
    return array
