"""Embedding stores made from arrays of other programs, and the names of the rows of an array.

N rows, D values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelt.errors import UserError
from facelt.store.arrays import read_embedding_array
from facelt.store.attributes import IDENTITY_COLUMNS, IMAGE_COLUMN
from facelt.store.feature_tree import probe_identity, read_image_list
from facelt.store.store import UNIT_KINDS, check_keys
from facelt.store.writer import StoreWriter
from facelt.utils.tables import read_table
from recordio_tools.atomic_io import sha256_of

# Largest deviation from length one of a row that is called a unit vector, of rounding to float16 for instance.
_UNIT_TOLERANCE = 0.01
_BLOCK_ROWS = 65536


@dataclass(frozen=True, eq=False)
class RowNames:
    """Names of the rows of an array: key and identity of each, and any attribute columns, N values each."""

    keys: list[str]
    identities: list[str]
    columns: dict[str, list[str]]


def read_row_names(path: Path) -> RowNames:
    """Reads the names of an array's rows, in the order of the array.

    A .csv file needs a column `identity`, `name` or `label`; a column `key` names the images (default: `row 0`, ...),
    and the others are attributes. Any other file is a list of image paths, whose folders are the identities.

    Raises UserError naming the file, and the line or column at fault.
    """
    if path.suffix.lower() != ".csv":
        keys = read_image_list(path)
        return RowNames(keys, [probe_identity(key, path) for key in keys], {})
    rows = read_table(path)
    identity = next((name for name in IDENTITY_COLUMNS if name in rows.columns), None)
    if identity is None:
        raise UserError(
            f"{path}: has no column {' or '.join(IDENTITY_COLUMNS)} for the identities; its columns are "
            f"{', '.join(rows.columns)}"
        )
    identities = [text.strip() for text in rows.columns[identity]]
    if "" in identities:
        raise UserError(f"{path}: line {rows.line_N[identities.index('')]}, column {identity!r}: an identity is empty")
    if IMAGE_COLUMN in rows.columns:
        keys = [key.strip() for key in rows.columns[IMAGE_COLUMN]]
        check_keys(keys, str(path))
    else:
        keys = numbered_keys(len(identities))
    columns = {name: list(values) for name, values in rows.columns.items() if name not in (IMAGE_COLUMN, identity)}
    return RowNames(keys, identities, columns)


def numbered_keys(rows: int) -> list[str]:
    """Returns keys for rows without names: `row 0`, `row 1`, ..."""
    return [f"row {row}" for row in range(rows)]


def make_store(
    arrays: Mapping[str, Path],
    items: Path,
    out: Path,
    *,
    array: str | None = None,
    normalize: bool = False,
    dtype: str = "float16",
    model: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes an embedding store of the arrays, by kind, and returns its folder.

    `items` names the rows as `read_row_names` reads them. In a .npz file the array is that named `array`, else that
    named as the kind, else the only one. `normalize` scales the rows of kinds of unit length to it. `overwrite`
    replaces a store at `out`, once the new one is complete.

    Raises UserError, before anything is written, on arrays of other sizes, a value that is not finite, and a row
    that is not of length one although its kind is, or cannot be scaled to it.
    """
    names = read_row_names(items)
    values = {
        kind: read_embedding_array(path, array, default=kind, rows=len(names.keys)) for kind, path in arrays.items()
    }
    for kind, value_ND in values.items():
        for start in range(0, len(value_ND), _BLOCK_ROWS):
            _check_block(arrays[kind], kind, value_ND[start : start + _BLOCK_ROWS], names.keys[start:], normalize)
    files = {str(path): sha256_of(path) for path in (*arrays.values(), items)}
    meta = {"model": {"name": model} if model else {}, "source": {"files": files, "normalized": normalize}}
    dimensions = {kind: value_ND.shape[1] for kind, value_ND in values.items()}
    options = {"attributes": names.columns, "dtype": dtype, "overwrite": overwrite}
    writer = StoreWriter(out, names.keys, names.identities, dimensions, meta, **options)
    while (start := writer.rows_done) < len(names.keys):
        blocks = {
            kind: np.asarray(value_ND[start : start + _BLOCK_ROWS], np.float32) for kind, value_ND in values.items()
        }
        if normalize:
            blocks |= {kind: _unit_rows(block_ND) for kind, block_ND in blocks.items() if kind in UNIT_KINDS}
        writer.write(start, blocks)
    return writer.finish()


def _check_block(path: Path, kind: str, block_ND: np.ndarray, keys: list[str], normalize: bool) -> None:
    """Raises UserError naming the first row that cannot be stored as an embedding of its kind."""
    with np.errstate(over="ignore", invalid="ignore"):
        length_N = np.linalg.norm(np.asarray(block_ND, dtype=np.float64), axis=1)
    if not (finite_N := np.isfinite(length_N)).all():
        raise UserError(f"{path}: {keys[int(np.argmin(finite_N))]!r} holds a value that is not finite")
    if kind not in UNIT_KINDS:
        return
    wrong_N = length_N == 0 if normalize else np.abs(length_N - 1) > _UNIT_TOLERANCE
    if wrong_N.any():
        row = int(np.argmax(wrong_N))
        advice = "it has no direction" if normalize else "scale the rows with --normalize, or name another kind"
        raise UserError(
            f"{path}: {keys[row]!r} has length {length_N[row]:.4g}, embeddings of kind {kind} have length one; {advice}"
        )


def _unit_rows(block_ND: np.ndarray) -> np.ndarray:
    return block_ND / np.linalg.norm(block_ND.astype(np.float64), axis=1, keepdims=True)
