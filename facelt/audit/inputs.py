"""Inputs of an audit: opened and validated, with their description in the report.

N images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from facelt.audit.audited_set import AuditedSet, enrol_features, read_scores
from facelt.audit.features import FeatureSet, add_absent_images, is_noisy, open_features
from facelt.config.audit import AuditConfig, FeaturesConfig
from facelt.errors import UserError
from facelt.identification.rank import pseudo_shot_bands
from facelt.search.exact import BadRow
from facelt.search.top_k import count_above
from facelt.stats.groups import UNKNOWN, Units
from facelt.store.arrays import is_array_file
from facelt.store.attributes import AttributeColumns, attribute_columns, check_groupable, join_spellings, listed_images
from facelt.store.duplicates import duplicate_notes, find_equal_rows, scan_rows
from facelt.store.mixed_models import mixed_model_notes
from facelt.utils.provenance import InputHash

# Column of pseudo-shot bands.
SHOTS = "shots"
# Failures to enrol that the report lists.
_LISTED_FAILURES = 100


@dataclass(frozen=True, eq=False)
class AuditInputs:
    """Audited set with its attribute columns (N values each), distractors, and the optional other sets.

    `groupings` are the columns to group by, each also crossed with shots if those are known; `calibration` is the set
    to set thresholds on if it is not the audited one; `against` has the same images by another model. `hashes` are
    those of all files.
    """

    audited: AuditedSet
    columns: AttributeColumns
    groupings: list[tuple[str, ...]]
    summary: dict[str, Any]
    notes: list[str]
    hashes: list[InputHash]
    gallery: FeatureSet | None = None
    calibration: AuditedSet | None = None
    against: AuditedSet | None = None
    against_gallery: FeatureSet | None = None

    def enrolled_units(self, by: tuple[str, ...]) -> Units:
        """Returns the units of the enrolled images by these columns."""
        return self.audited.enrolled_units({name: self.columns[name] for name in by})


def open_inputs(
    config: AuditConfig, features: FeatureSet | None = None, gallery: FeatureSet | None = None
) -> AuditInputs:
    """Opens and validates all inputs, except features and gallery that are in memory already.

    Raises UserError naming the file, line, column, key or image at fault.
    """
    if config.scores is not None:
        return _open_scores(config)
    if features is None:
        features = open_features(config.embeddings, config.kind, config.noise)
    features, absent_notes = _count_absent(features, config)
    audited = enrol_features(features, config.allow_missing)
    if gallery is None:
        gallery = _open_comparable(config.gallery, features, config, lazy=True)
    else:
        _refuse_other_dimension(gallery, features)
    sets: dict[str, FeatureSet | None] = {
        "embeddings": features,
        "gallery": gallery,
        "train": _open_comparable(_store_config(config.shots.train), features, config),
        "thresholds": _open_comparable(_store_config(config.threshold.store), features, config),
    }
    train, calibration_features = sets["train"], sets["thresholds"]
    set_notes = _mixed_model_notes(sets, config)
    columns = attribute_columns(config.attributes, features.keys, features.identities, config.bins, features.columns)
    searched, calibration = [(features, audited)], None
    if calibration_features is not None:
        calibration = enrol_features(calibration_features, config.allow_missing)
        searched += [(calibration_features, calibration)] if config.threshold.wanted.fpir else []
    set_notes += _duplicate_notes(searched, gallery, config)
    against = other_gallery = None
    if config.against is not None:
        against, other_features, other_gallery = _open_against(config, features, audited)
        others = {"against": other_features, "against_gallery": other_gallery}
        set_notes += _mixed_model_notes(others, config)
        set_notes += _duplicate_notes([(other_features, against)], other_gallery, config)
        sets |= others
    if train is not None:
        columns[SHOTS] = _shot_column(audited, train, config.shots.threshold)
    groupings, notes = _groupings(config, columns)
    notes += absent_notes + set_notes
    if config.embeddings.noises is None and config.noise == "drop":
        notes.append("No noise list was given; mislabelled images, if any, are included.")
    files = _file_hashes(config)
    summary = {
        "source": "embeddings",
        "images": len(features),
        "identities": len(set(features.identities)),
        "enrolled": int(audited.enrolled_N.sum()),
        "failures": len(audited.failures),
        "failed": list(audited.failures[:_LISTED_FAILURES]),
        "distractors": None if gallery is None else len(gallery),
        "noise": {
            "mode": config.noise,
            "images_removed": features.removed,
            "distractors_removed": 0 if gallery is None else gallery.removed,
        },
        "kind": config.kind,
        "score": "cosine similarity" if features.cosine else "inner product",
        "shots": None if train is None else {"threshold": config.shots.threshold, "images": len(train)},
        "models": {name: feature_set.provenance for name, feature_set in sets.items() if feature_set is not None},
        "files": {item.path: item.sha256 for item in files},
    }
    hashes = [item for feature_set in sets.values() if feature_set is not None for item in feature_set.inputs] + files
    return AuditInputs(
        audited, columns, groupings, summary, notes, hashes, gallery, calibration, against, other_gallery
    )


def _open_scores(config: AuditConfig) -> AuditInputs:
    scores = read_scores(config.scores, config.higher_is)
    audited = AuditedSet(scores.identities, np.ones(len(scores.identities), dtype=bool), scores)
    columns = attribute_columns(config.attributes, None, scores.identities, config.bins)
    groupings, notes = _groupings(config, columns)
    notes.append("The input is a list of scored pairs: no search was made, so there is no rank 1, FNIR or FPIR.")
    mated, non_mated = scores.mean_scores()
    if mated < non_mated:
        notes.append(
            f"Mated pairs are less similar on average ({mated:.4g}) than non-mated pairs ({non_mated:.4g}), although "
            f"higher_is is {config.higher_is}: check which way the scores run."
        )
    unit = "minus the score of the file, a distance" if config.higher_is == "different" else "as in the file"
    files = [InputHash.of_file(config.scores), *_file_hashes(config)]
    summary = {
        "source": "scores",
        "pairs": len(scores.score_M),
        "identities": len(scores.identities),
        "score": f"{unit}; larger means more similar",
        "files": {item.path: item.sha256 for item in files},
    }
    return AuditInputs(audited, columns, groupings, summary, notes, files)


def _count_absent(features: FeatureSet, config: AuditConfig) -> tuple[FeatureSet, list[str]]:
    """Returns the images, with those that only an attribute table lists if these are failures, and notes on them."""
    if config.embeddings.list is not None or config.embeddings.noises is not None:
        return features, []
    notes = []
    for path in config.attributes.tables:
        images = listed_images(path, config.attributes.key)
        absent = len(images.keys() - set(features.keys))
        if not absent or len(images) == absent:
            continue
        if config.attributes.absent == "failure":
            features = add_absent_images(features, images, path)
            notes.append(f"{absent:,} images of {path} without an embedding are failures to enrol.")
        else:
            notes.append(
                f"{path} lists {absent:,} images without an embedding, which are ignored; --absent-as-failures counts "
                "them as failures to enrol."
            )
    return features, notes


def _store_config(path: Path | None) -> FeaturesConfig | None:
    return None if path is None else FeaturesConfig(path=path)


def _open_comparable(
    features_config: FeaturesConfig | None, features: FeatureSet, config: AuditConfig, *, lazy: bool = False
) -> FeatureSet | None:
    """Opens embeddings to compare with `features`, if any; raises UserError if their dimensions differ."""
    if features_config is None:
        return None
    others = open_features(features_config, config.kind, config.noise, lazy=lazy)
    _refuse_other_dimension(others, features)
    return others


def _refuse_other_dimension(others: FeatureSet, features: FeatureSet) -> None:
    if features.rows.shape[1] != others.rows.shape[1]:
        raise UserError(
            f"{others.path}: embeddings have {others.rows.shape[1]} values, those in {features.path} "
            f"{features.rows.shape[1]}; both must come from one model"
        )


def _mixed_model_notes(sets: Mapping[str, FeatureSet | None], config: AuditConfig) -> list[str]:
    descriptions = {role: None if part is None else part.provenance for role, part in sets.items()}
    return mixed_model_notes(descriptions, allow_mixed=config.allow_mixed_models)


def _open_against(
    config: AuditConfig, features: FeatureSet, audited: AuditedSet
) -> tuple[AuditedSet, FeatureSet, FeatureSet | None]:
    """Opens the same images by another model, in the same order, and that model's distractors.

    An array without `items` has the rows of the audited embeddings.
    """
    against = config.against
    if is_array_file(against.path) and against.items is None:
        against = against.model_copy(update={"items": config.embeddings.items})
    other_features = open_features(against, config.kind, config.noise)
    position = {key: row for row, key in enumerate(other_features.keys)}
    if missing := [key for key in features.keys if key not in position]:
        raise UserError(
            f"{other_features.path}: lacks {len(missing)} of the {len(features)} images of {features.path}, such as "
            f"{missing[0]!r}; two models are compared on the same images"
        )
    other_features = other_features.subset([position[key] for key in features.keys])
    gallery = None
    if config.gallery is not None:
        if config.against_gallery is None:
            raise UserError("against_gallery: this key is required, the other model's embeddings of the distractors")
        gallery = _open_comparable(config.against_gallery, other_features, config, lazy=True)
    against = enrol_features(other_features, config.allow_missing)
    if (differs_N := against.enrolled_N != audited.enrolled_N).any():
        raise UserError(
            f"{other_features.path}: {int(differs_N.sum())} images have a usable embedding of one model only, such as "
            f"{features.keys[int(np.argmax(differs_N))]!r}; leave them out of both (--list)"
        )
    return against, other_features, gallery


def _duplicate_notes(
    searched: Sequence[tuple[FeatureSet, AuditedSet]], gallery: FeatureSet | None, config: AuditConfig
) -> list[str]:
    """Refuses enrolled images with the embedding of a distractor, or returns notes; see `duplicate_notes`."""
    if gallery is None:
        return []
    _, _, hash_G = scan_rows(gallery.rows, np.arange(len(gallery)))
    notes = []
    for features, enrolled in searched:
        equal = find_equal_rows(enrolled.embeddings.row_ED, gallery.rows, hash_G)
        keys_E = list(compress(features.keys, enrolled.enrolled_N))
        duplicates = {keys_E[e]: gallery.keys[g] for e, g in equal.items()}
        listed = [
            image
            for image, distractor in duplicates.items()
            if is_noisy(image, features.noisy) or is_noisy(distractor, gallery.noisy)
        ]
        options = {"noise_keys": "--noises, --gallery-noises", "allow_duplicates": config.allow_duplicates}
        notes += duplicate_notes(duplicates, listed, (features.path, gallery.path), **options)
    return notes


def _shot_column(audited: AuditedSet, train: FeatureSet, threshold: float) -> list[str]:
    """Returns the pseudo-shot band of each image (many, few, one, zero), empty for images not enrolled.

    Raises UserError naming a training image that cannot be compared.
    """
    try:
        bands = pseudo_shot_bands(count_above(audited.embeddings.row_ED, train.rows, threshold))
    except BadRow as error:
        raise UserError(f"{train.path}: {train.keys[error.row]!r} {error.reason}") from error
    column_N = np.full(len(audited.identities), "", dtype=object)
    for name, member_E in bands.items():
        column_N[np.flatnonzero(audited.enrolled_N)[member_E]] = name
    return column_N.tolist()


def _groupings(config: AuditConfig, columns: AttributeColumns) -> tuple[list[tuple[str, ...]], list[str]]:
    """Returns the validated groupings, with notes on missing values and joined spellings; joins them in `columns`."""
    groupings = list(dict.fromkeys(config.by))
    if SHOTS in columns:
        groupings += [(*by, SHOTS) for by in groupings if SHOTS not in by and (*by, SHOTS) not in groupings]
    used = list(dict.fromkeys(name for by in groupings for name in by))
    joined = join_spellings(columns, [name for name in used if name in columns])
    for by in groupings:
        check_groupable(columns, by)
    missing = {name: sum(not value for value in columns[name]) for name in used}
    notes = [
        f"{count:,} of {len(columns[name]):,} have no {name} and form the group {UNKNOWN}."
        for name, count in missing.items()
        if count
    ]
    return groupings, joined + notes


def _file_hashes(config: AuditConfig) -> list[InputHash]:
    """Returns the hash of each attribute table, image list, noise list and list of an array's rows."""
    attributes, features = config.attributes, (config.embeddings, config.gallery, config.against)
    paths: Sequence[Path | None] = (
        *(*attributes.tables, attributes.actors, attributes.actresses),
        *(path for part in features if part for path in (part.list, part.noises, part.items)),
    )
    return [InputHash.of_file(path) for path in dict.fromkeys(paths) if path is not None]
