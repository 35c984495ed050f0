"""How often the like of an audited image was seen in training, as a column to group by.

Everything an audit reads, opened and checked, and what the report says of it. N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from facelt.audit.audited_set import (
    AuditedSet,
    FeatureSet,
    audited_features,
    audited_scores,
    open_features,
    read_scores,
)
from facelt.config.audit import AuditConfig, FeaturesConfig
from facelt.errors import UserError
from facelt.identification.rank import pseudo_shot_bands
from facelt.search.exact import BadRow
from facelt.search.top_k import count_above
from facelt.store.attributes import AttributeColumns, attribute_columns, check_groupable
from recordio_tools.atomic_io import sha256_of

SHOTS = "shots"


def shot_column(subject: AuditedSet, train: FeatureSet, threshold: float) -> list[str]:
    """The pseudo-shot band of each image (many, few, one, zero), empty for one that is not enrolled.

    Raises UserError naming the training image that cannot be compared.
    """
    try:
        bands = pseudo_shot_bands(count_above(subject.embedded.row_ED, train.rows, threshold))
    except BadRow as error:
        raise UserError(f"{train.path}: {train.keys[error.row]!r} {error.reason}") from error
    column_N = np.full(len(subject.identities), "", dtype=object)
    for name, member_E in bands.items():
        column_N[np.flatnonzero(subject.enrolled_N)[member_E]] = name
    return column_N.tolist()


# How many failures to enrol the report names.
SHOWN_FAILURES = 100


@dataclass(frozen=True, eq=False)
class AuditInputs:
    """The audited subject with its columns, the distractors, and the other sets that were asked for.

    `groupings` are the columns to group by, each also by shots where those are known; `calibration` is the set that
    thresholds are set on where it is not the audited one; `against` the same images by another model.
    """

    subject: AuditedSet
    columns: AttributeColumns
    groupings: list[tuple[str, ...]]
    gallery: FeatureSet | None
    calibration: AuditedSet | None
    against: AuditedSet | None
    against_gallery: FeatureSet | None
    summary: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def open_inputs(config: AuditConfig) -> AuditInputs:
    """Open and check all inputs. Raises UserError naming the file, line, column, key or image at fault."""
    if config.scores is not None:
        return _of_scores(config)
    features = open_features(config.embeddings, config.kind, config.noise)
    subject = audited_features(features, config.allow_missing)
    gallery = open_features(config.gallery, config.kind, config.noise, whole=False) if config.gallery else None
    if gallery is not None:
        _check_gallery(features, gallery)
    columns = attribute_columns(config.attributes, features.keys, features.identities, config.bins, features.own)
    train = None
    if config.shots.train is not None:
        train = open_features(FeaturesConfig(path=config.shots.train), config.kind, config.noise)
        columns[SHOTS] = shot_column(subject, train, config.shots.threshold)
    groupings, notes = _groupings(config, columns)
    if config.embeddings.noises is None and config.noise == "drop":
        notes.append("No noise list was given: wrongly labelled images, if there are any, count like all others.")
    calibration = there = None
    if config.threshold.store is not None:
        there = open_features(FeaturesConfig(path=config.threshold.store), config.kind, config.noise)
        calibration = audited_features(there, config.allow_missing)
    against = _against(config, features, subject) if config.against is not None else None
    parts = {
        **{"embeddings": features, "gallery": gallery, "train": train, "thresholds": there},
        **({"against": against[1], "against_gallery": against[2]} if against else {}),
    }
    summary = {
        "source": "embeddings",
        "images": len(features),
        "identities": len(set(features.identities)),
        "enrolled": int(subject.enrolled_N.sum()),
        "failures": len(subject.failures),
        "failed": list(subject.failures[:SHOWN_FAILURES]),
        "distractors": None if gallery is None else len(gallery),
        "noise": {
            "mode": config.noise,
            "images_removed": features.removed,
            "distractors_removed": 0 if gallery is None else gallery.removed,
        },
        "kind": config.kind,
        "score": "cosine similarity" if features.cosine else "inner product",
        "shots": None if train is None else {"threshold": config.shots.threshold, "images": len(train)},
        "models": {name: part.described for name, part in parts.items() if part is not None},
        "files": _hashes(config),
    }
    return AuditInputs(
        subject,
        columns,
        groupings,
        gallery,
        calibration,
        against and against[0],
        against and against[2],
        summary,
        notes,
    )


def _of_scores(config: AuditConfig) -> AuditInputs:
    pairs = read_scores(config.scores)
    subject = audited_scores(pairs)
    columns = attribute_columns(config.attributes, None, pairs.identities, config.bins)
    groupings, notes = _groupings(config, columns)
    notes.append("Scores came as a list of pairs: no search was made, so there is no rank 1, FNIR or FPIR.")
    summary = {
        "source": "scores",
        "pairs": len(pairs.score_M),
        "identities": len(pairs.identities),
        "score": "as in the file; larger means more alike",
        "files": {str(config.scores): sha256_of(config.scores), **_hashes(config)},
    }
    return AuditInputs(subject, columns, groupings, None, None, None, None, summary, notes)


def _groupings(config: AuditConfig, columns: AttributeColumns) -> tuple[list[tuple[str, ...]], list[str]]:
    """The groupings, checked, and a note for each column that is not known of everyone."""
    groupings = list(dict.fromkeys(config.by))
    if SHOTS in columns:
        groupings += [(*by, SHOTS) for by in groupings if SHOTS not in by and (*by, SHOTS) not in groupings]
    for by in groupings:
        check_groupable(columns, by)
    used = dict.fromkeys(name for by in groupings for name in by)
    absent = {name: sum(not value for value in columns[name]) for name in used}
    notes = [
        f"{count:,} of {len(columns[name]):,} have no {name} and are a group of their own."
        for name, count in absent.items()
        if count
    ]
    return groupings, notes


def _against(
    config: AuditConfig, features: FeatureSet, subject: AuditedSet
) -> tuple[AuditedSet, FeatureSet, FeatureSet | None]:
    """The same images by another model, in the same order; its distractors are those beside it, if there are any."""
    other = open_features(config.against, config.kind, config.noise)
    place = {key: row for row, key in enumerate(other.keys)}
    if missing := [key for key in features.keys if key not in place]:
        raise UserError(
            f"{other.path}: lacks {len(missing)} of the {len(features)} images of {features.path}, such as "
            f"{missing[0]!r}; two models are compared on the same images"
        )
    other = other.chosen([place[key] for key in features.keys])
    gallery = None
    if config.gallery is not None:
        if config.against_gallery is None:
            raise UserError("against_gallery: the other model's embeddings of the distractors are needed as well")
        gallery = open_features(config.against_gallery, config.kind, config.noise, whole=False)
        _check_gallery(other, gallery)
    compared = audited_features(other, config.allow_missing)
    if (odd_N := compared.enrolled_N != subject.enrolled_N).any():
        raise UserError(
            f"{other.path}: {int(odd_N.sum())} images have a usable embedding of one model only, such as "
            f"{features.keys[int(np.argmax(odd_N))]!r}; leave them out of both (--list)"
        )
    return compared, other, gallery


def _check_gallery(features: FeatureSet, gallery: FeatureSet) -> None:
    if features.rows.shape[1] != gallery.rows.shape[1]:
        raise UserError(
            f"{gallery.path}: embeddings have {gallery.rows.shape[1]} values, those in {features.path} "
            f"{features.rows.shape[1]}; both must come from one model"
        )


def _hashes(config: AuditConfig) -> dict[str, str]:
    """The SHA-256 of each file of attributes, lists and noise lists."""
    attributes = config.attributes
    paths: Sequence[Path | None] = (
        *(*attributes.tables, attributes.actors, attributes.actresses),
        *(path for part in (config.embeddings, config.gallery) if part for path in (part.list, part.noises)),
    )
    return {str(path): sha256_of(path) for path in paths if path is not None}
