"""Audit of embeddings and attributes in memory, with the report of `facelt audit`.

N images, G distractors, D feature.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facelt.audit.features import FeatureSet
from facelt.audit.run import run_audit
from facelt.config.audit import AuditConfig
from facelt.config.loading import validate_values
from facelt.errors import UserError
from facelt.report.audit_schema import AuditReport
from facelt.store.make import numbered_keys
from facelt.store.store import UNIT_KINDS, check_keys
from recordio_tools.progress import ProgressFn, no_progress

if TYPE_CHECKING:
    from pandas import DataFrame

# The name of the call in messages, and of the arrays in messages and in the report.
_CALL, _ROWS, _GALLERY = "facelt.audit", Path("embeddings"), Path("gallery")
_KEY, _IDENTITY = "key", "identity"


def audit_arrays(
    embeddings: np.ndarray,
    attributes: "Mapping[str, Sequence] | DataFrame",
    by: str | Sequence[str | Sequence[str]],
    *,
    gallery: np.ndarray | None = None,
    progress: ProgressFn = no_progress,
    **settings: Any,
) -> AuditReport:
    """Audits embeddings [N,D] by columns of attributes; returns the report that `facelt audit` writes.

    `attributes` is a mapping of columns with N values each, or a DataFrame, row by row as the embeddings: `identity`,
    `key` if the images have names, and the columns to group by. None, NaN and empty texts are unknown values. `by` is a
    column or a list of columns and, for intersections, of tuples of columns. `gallery` [G,D] are distractors. Other
    settings are the keys of an audit's configuration: kind, bins, threshold, min_identities, statistics, fail_if, ...

    Raises UserError naming the setting, column or row at fault.
    """
    config = validate_values(
        {
            **settings,
            **{"embeddings": {"path": _ROWS}, "out": Path(), "by": _groupings(by)},
            **({} if gallery is None else {"gallery": {"path": _GALLERY}}),
        },
        AuditConfig,
        _CALL,
    )
    row_ND = _rows(embeddings, _ROWS)
    columns = _columns(attributes, len(row_ND))
    if _IDENTITY not in columns:
        raise UserError(f"attributes: no column {_IDENTITY!r}; there are {', '.join(columns) or 'none'}")
    identities = columns.pop(_IDENTITY)
    if "" in identities:
        raise UserError(f"attributes: row {identities.index('')} has no identity")
    keys = columns.pop(_KEY, None) or numbered_keys(len(row_ND))
    check_keys(keys, "attributes")
    is_cosine = config.kind in UNIT_KINDS
    features = _feature_set(_ROWS, keys, identities, columns, row_ND, is_cosine)
    distractors = None
    if gallery is not None:
        row_GD = _rows(gallery, _GALLERY)
        distractors = _feature_set(_GALLERY, numbered_keys(len(row_GD)), [""] * len(row_GD), {}, row_GD, is_cosine)
    return run_audit(config, progress, features=features, gallery=distractors).report


def _groupings(by: str | Sequence[str | Sequence[str]]) -> list[list[str]]:
    groupings = [by] if isinstance(by, str) else by
    return [[columns] if isinstance(columns, str) else list(columns) for columns in groupings]


def _rows(value_ND: np.ndarray, name: Path) -> np.ndarray:
    """Returns float32 rows. Raises UserError for another shape or type."""
    value_ND = np.asarray(value_ND)
    if value_ND.ndim != 2 or not value_ND.shape[1] or value_ND.dtype.kind not in "fiu":
        raise UserError(f"{name}: an array {value_ND.dtype} {list(value_ND.shape)}; expected numbers [N,D]")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(value_ND, dtype=np.float32)


def _columns(attributes: "Mapping[str, Sequence] | DataFrame", rows: int) -> dict[str, list[str]]:
    """Returns the columns as texts. Raises UserError for one of another length."""
    if not (hasattr(attributes, "keys") and hasattr(attributes, "__getitem__")):
        raise UserError(f"attributes: expected a mapping of columns or a DataFrame, found {type(attributes).__name__}")
    columns = {str(name): _texts(attributes[name]) for name in attributes.keys()}  # noqa: SIM118
    for name, values in columns.items():
        if len(values) != rows:
            raise UserError(f"attributes: column {name!r} has {len(values):,} values for {rows:,} embeddings")
    return columns


def _texts(values: Iterable) -> list[str]:
    return ["" if _is_missing(value) else str(value).strip() for value in values]


def _is_missing(value: object) -> bool:
    # NaN and NaT differ from themselves; pandas' NA has no truth value.
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):
        return True


def _feature_set(
    path: Path,
    keys: list[str],
    identities: list[str],
    columns: dict[str, list[str]],
    row_ND: np.ndarray,
    is_cosine: bool,
) -> FeatureSet:
    digest = hashlib.sha256(row_ND.astype("<f4", copy=False).tobytes()).hexdigest()
    provenance = {"path": f"{path} in memory", "sha256": {"values as float32": digest}}
    return FeatureSet(path, keys, identities, columns, row_ND, is_cosine, {}, 0, provenance, inputs=())
