"""The manifest of a sampled training set: which records stay, under which label.

Shapes: M rows.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facelt.errors import UserError

HEADER = "key,label,new_label"


class Manifest(NamedTuple):
    """Columns of a manifest, each int64 [M]: record key, label in the record, label to train with."""

    key_M: np.ndarray
    label_M: np.ndarray
    new_label_M: np.ndarray


def read_manifest(path: Path) -> Manifest:
    """Read and check `key,label,new_label`.

    Raises UserError naming the file, and the line where there is one: missing, another header, a value that is no whole
    number or is negative, a key twice, or an identity with two new labels (or two identities with one).
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the manifest: {error}") from error
    header, _, body = text.partition("\n")
    if header.strip() != HEADER:
        raise UserError(f"{path}, line 1: a manifest begins with the header {HEADER!r}, found {header.strip()[:80]!r}")
    if not body.strip():
        raise UserError(f"{path}: the manifest lists no images")
    try:
        table_M3 = np.loadtxt(io.StringIO(body), delimiter=",", dtype=np.int64, ndmin=2, comments=None)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}{_bad_line(body)}: expected three whole numbers {HEADER}") from error
    if table_M3.shape[1] != 3:
        raise UserError(f"{path}, line 2: expected three whole numbers {HEADER}")
    manifest = Manifest(*(np.ascontiguousarray(column) for column in table_M3.T))
    _check(path, manifest)
    return manifest


def _bad_line(body: str) -> str:
    """', line n' of the first line that is not three whole numbers."""
    for number, line in enumerate(body.split("\n"), start=2):
        try:
            values = [int(value) for value in line.split(",")] if line.strip() else [0, 0, 0]
        except ValueError:
            values = []
        if len(values) != 3 or any(abs(value) >= 2**63 for value in values):
            return f", line {number}"
    return ""


def _check(path: Path, manifest: Manifest) -> None:
    """Refuse negative values, keys listed twice and a relabelling that is not one to one."""
    if min(column.min() for column in manifest) < 0:
        raise UserError(f"{path}: a key or a label is negative")
    key_M, count_M = np.unique(manifest.key_M, return_counts=True)
    if len(key_M) < len(manifest.key_M):
        raise UserError(f"{path}: key {key_M[count_M > 1][0]} is listed twice")
    pair_I2 = np.unique(np.stack([manifest.label_M, manifest.new_label_M], 1), axis=0)
    for column, name, other in ((0, "label", "new labels"), (1, "new label", "labels")):
        value_I, count_I = np.unique(pair_I2[:, column], return_counts=True)
        if (count_I > 1).any():
            raise UserError(f"{path}: {name} {value_I[count_I > 1][0]} stands with two {other}; each identity has one")
