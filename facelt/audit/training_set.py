"""Composition of a training record: images and identities by group and by shot band.

C identities.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from facelt.config.audit import AttributeTablesConfig, AuditConfig
from facelt.metrics.classification import SHOT_BANDS, SHOT_CONVENTIONS, shot_bands
from facelt.stats.groups import Units
from facelt.store.attributes import attribute_columns, check_groupable, join_spellings
from recordio_tools.atomic_io import sha256_of
from recordio_tools.face_set import IDENTITIES_FILE, FaceRecord
from recordio_tools.progress import ProgressFn, no_progress


@dataclass(frozen=True, eq=False)
class _RecordIdentities:
    """Identities with images: names, image counts and shot bands (indices into SHOT_BANDS), [C] each."""

    names: list[str]
    image_C: np.ndarray
    band_C: np.ndarray


def training_section(config: AuditConfig, progress: ProgressFn = no_progress) -> tuple[dict[str, Any], list[str]]:
    """Returns the report section `training`, images and identities by grouping and shot band, and notes on it.

    Groupings whose columns the identity table lacks are skipped and listed. Raises UserError or RecordIOError naming
    the file: no record, no identity table, or none of the columns in it.
    """
    record, convention = config.training.record, config.training.convention
    with FaceRecord(record, progress=progress) as faces:
        count_C, index_path = faces.counts, faces.reader.index_path
    label_C = np.flatnonzero(count_C)
    identities = _RecordIdentities(
        [str(label) for label in label_C], count_C[label_C], shot_bands(count_C[label_C], convention)
    )
    table = config.training.identities or record.with_name(IDENTITIES_FILE)
    attributes = AttributeTablesConfig(tables=(table,), key="label")
    columns = attribute_columns(attributes, None, identities.names, {})
    groupings = [by for by in config.by if set(by) <= columns.keys()]
    if not groupings:
        check_groupable(columns, config.by[0])
    notes = join_spellings(columns, list(dict.fromkeys(name for by in groupings for name in by)))
    many_from, few_to = SHOT_CONVENTIONS[convention]
    section = {
        "record": str(record),
        "files": {str(path): sha256_of(path) for path in (record, index_path, table) if path.is_file()},
        "images": int(identities.image_C.sum()),
        "identities": len(identities.names),
        "bands": {"many": f">= {many_from}", "medium": f"{few_to + 1} to {many_from - 1}", "few": f"<= {few_to}"},
        "convention": convention,
        "not_grouped": [" & ".join(by) for by in config.by if by not in groupings],
        "groupings": [_grouping(identities, columns, by) for by in groupings],
    }
    return section, [f"Training data, {note}" for note in notes]


def _grouping(identities: _RecordIdentities, columns: dict[str, list[str]], by: tuple[str, ...]) -> dict[str, Any]:
    check_groupable(columns, by)
    units = Units.from_columns(identities.names, {name: columns[name] for name in by})
    grouping = units.grouping(by)
    group_C = grouping.group_U[units.unit_N]
    return {
        "by": list(by),
        "groups": [{"group": list(name), **_counts(identities, group_C == g)} for g, name in enumerate(grouping.names)],
    }


def _counts(identities: _RecordIdentities, member_C: np.ndarray) -> dict[str, Any]:
    image_C, band_C = identities.image_C[member_C], identities.band_C[member_C]
    return {
        "identities": int(member_C.sum()),
        "images": int(image_C.sum()),
        "share_of_images": float(image_C.sum() / identities.image_C.sum()),
        "median_images": float(np.median(image_C)),
        "bands": {
            band: {"identities": int((band_C == index).sum()), "images": int(image_C[band_C == index].sum())}
            for index, band in enumerate(SHOT_BANDS)
        },
    }
