"""Known people and strangers: identification of training identities from held-out images, by their training images.

N known images, C classes, S images of strangers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from facelt.config.registry import METHODS
from facelt.config.train import StageConfig, TrainConfig
from facelt.data.kind import Split, TrainingData
from facelt.errors import UserError
from facelt.evaluation.evaluate import VALIDATION_SPLIT, find_split
from facelt.evaluation.identity_scores import (
    IDENTITY_SCORES,
    IdentityCandidates,
    available_scores,
    collect_outputs,
    collect_trained_identities,
    collect_validation_outputs,
    default_score,
)
from facelt.evaluation.known_rates import COMPARED_FAR, LEVEL, KnownRates, KnownScores
from facelt.inference.model import CARD_FILE, find_model_folder, load_model, read_card, run_stage_name
from facelt.inference.predict import Predictor
from facelt.inference.sources import ImageSource, open_image_source
from facelt.metrics.classification import known_band_limits, known_bands
from facelt.report.known_people_schema import KnownPeopleReport
from facelt.search.search import open_search
from facelt.store.attributes import canonical_name
from recordio_tools.face_set import IDENTITIES_FILE
from recordio_tools.progress import ProgressFn, no_progress

TEST_SPLIT = "test"
# The nearest class mean needs no classifier: it is the baseline to beat.
REFERENCE_SCORE = "class_mean"
# The score of a model's own classifier.
CLASSIFIER_SCORE = "softmax"
_MAX_NAMED = 5


@dataclass(frozen=True)
class KnownPeopleOptions:
    """Images of strangers and choices of the protocol.

    `roots` are the folders of the lists' paths: one for all lists, or one for each of `strangers`. Without a `split`,
    `test` is used if the data have it, else `validation`. The reference is by default the score `class_mean` of the
    first model.
    """

    strangers: Sequence[Path]
    roots: Sequence[Path] = ()
    split: str | None = None
    convention: str = "paper"
    reference: str | None = None
    reference_score: str | None = None


@dataclass(frozen=True, eq=False)
class _KnownCandidate:
    """A checkpoint that is not loaded yet: its folder, name, configuration, stage, data, and known images.

    `validation` are other known images, to fit a score to; None without any.
    """

    folder: Path
    name: str
    config: TrainConfig
    stage: StageConfig
    data: TrainingData
    known: Split
    validation: Split | None

    @property
    def scores(self) -> list[str]:
        """The scores that the model has."""
        return available_scores(METHODS[self.stage.method.name].kinds, has_validation=self.validation is not None)

    def encoded(self, position: int) -> tuple[int, bytes]:
        """Returns the label and the encoded image of a known image."""
        index = int(self.known.members[position])
        return int(self.known.dataset.labels[index]), bytes(self.known.dataset.read_encoded(index))

    def image_name(self, position: int) -> str:
        """Returns the name of a known image."""
        return self.known.dataset.image_name(int(self.known.members[position]))


def evaluate_known_people(
    checkpoints: Sequence[Path],
    options: KnownPeopleOptions,
    *,
    device: torch.device,
    batch: int,
    workers: int,
    progress: ProgressFn = no_progress,
) -> KnownPeopleReport:
    """Measures how well models name people of their training record, by training images, and keep strangers out.

    All that can be refused is refused before a model runs. Raises UserError: a model whose data are no record, no
    split to evaluate, models of different images, strangers that were trained on or cannot be read, an unknown
    reference.
    """
    split, candidates = _open_candidates(checkpoints, options.split)
    reference = _find_reference(candidates, options)
    for other in candidates[1:]:
        _check_same_images(candidates[0], other)
    sources = [_open_strangers(candidate, options) for candidate in candidates]
    results: list[KnownScores] = []
    models, readable = [], []
    for candidate, model_sources in zip(candidates, sources, strict=True):
        summary, index_parts, scores = _measure_model(candidate, model_sources, device, batch, workers, progress)
        models.append(summary)
        readable.append(index_parts)
        results += scores
    _check_same_readable(candidates, readable)
    label_N = candidates[0].known.dataset.labels[readable[0][0]]
    band_C = known_bands(candidates[0].data.train_counts, options.convention)
    rates = KnownRates(results, label_N, band_C[label_N])
    values = {
        "title": "Known people and strangers",
        "notes": _notes(candidates, split),
        "split": split,
        "convention": options.convention,
        "bands": known_band_limits(options.convention),
        "level": LEVEL,
        "compared_far": COMPARED_FAR,
        "known": rates.band_counts(),
        "strangers": [
            {"path": str(path), "images": len(index_S)}
            for path, index_S in zip(options.strangers, readable[0][1:], strict=True)
        ],
        "models": models,
        "definitions": {
            name: score.definition
            for name, score in IDENTITY_SCORES.items()
            if any(name in candidate.scores for candidate in candidates)
        },
        "scores": [rates.score_summary(result) for result in results],
        "reference": dict(zip(("model", "score"), reference, strict=True)),
        "comparisons": rates.comparisons(_compared_pairs(candidates, reference)),
    }
    return KnownPeopleReport.build(values)


def _open_candidates(checkpoints: Sequence[Path], split: str | None) -> tuple[str, list[_KnownCandidate]]:
    """Returns the split and the checkpoints, from their cards and data; no weights are read."""
    candidates: list[_KnownCandidate] = []
    for path in checkpoints:
        folder = find_model_folder(path)
        card, config, stage = read_card(folder / CARD_FILE)
        if config.data.kind != "record":
            raise UserError(
                f"{path}: is trained on data of kind {config.data.kind}; without --open, strangers are compared with "
                "the identities of a record; choose an open-set method with --open"
            )
        data = config.data.open(config.seed)
        if split is None:
            split = TEST_SPLIT if TEST_SPLIT in data.evaluation else VALIDATION_SPLIT
        if split not in data.evaluation and not data.evaluation:
            raise UserError(
                f"{path}: its record has no images held out to evaluate on; train with data.test_fraction or "
                "data.validation_fraction"
            )
        known = _known_images(data, split)
        has_validation = split != VALIDATION_SPLIT and VALIDATION_SPLIT in data.evaluation
        validation = _known_images(data, VALIDATION_SPLIT) if has_validation else None
        taken = {candidate.name for candidate in candidates}
        name = next(name for number in count(1) if (name := run_stage_name(config, card, number)) not in taken)
        candidates.append(_KnownCandidate(folder, name, config, stage, data, known, validation))
    return split, candidates


def _known_images(data: TrainingData, split: str) -> Split:
    """Returns the images of a split without those of identities that have no training image."""
    held_out = find_split(data, split)
    return Split(held_out.dataset, held_out.members[data.train_counts[held_out.labels] > 0])


def _find_reference(candidates: Sequence[_KnownCandidate], options: KnownPeopleOptions) -> tuple[str, str]:
    """Returns the model and the score that all others are compared with. Raises UserError."""
    scores = {candidate.name: candidate.scores for candidate in candidates}
    name, score = options.reference or candidates[0].name, options.reference_score or REFERENCE_SCORE
    if name not in scores:
        raise UserError(f"--reference {name}: not among the checkpoints; choose one of {', '.join(scores)}")
    if score not in scores[name]:
        raise UserError(f"--reference-score {score}: no score of {name}; choose one of {', '.join(scores[name])}")
    return name, score


def _compared_pairs(
    candidates: Sequence[_KnownCandidate], reference: tuple[str, str]
) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Returns the compared (model, score), each with its reference.

    These are the default score and the reference score of every model, compared with the reference, and the softmax of
    every other model, compared with that of the reference model: the classifiers themselves.
    """
    pairs = []
    for candidate in candidates:
        names = dict.fromkeys((default_score(candidate.scores), reference[1]))
        series = [(candidate.name, name) for name in names if name in candidate.scores]
        pairs += [(key, reference) for key in series if key != reference]
        classifier = (candidate.name, CLASSIFIER_SCORE)
        if candidate.name != reference[0] and (classifier, reference) not in pairs:
            pairs.append((classifier, (reference[0], CLASSIFIER_SCORE)))
    return pairs


def _check_same_images(first: _KnownCandidate, second: _KnownCandidate) -> None:
    """Raises UserError naming the first known image, or the first identity's training images, that differ."""
    images = min(len(first.known.members), len(second.known.members))
    if first.config.data.record.resolve() == second.config.data.record.resolve():
        keys = [(model.known.dataset.keys, model.known.labels, model.known.members) for model in (first, second)]
        columns = [np.stack([key_N[member_N], label_N])[:, :images] for key_N, label_N, member_N in keys]
        is_different_N = (columns[0] != columns[1]).any(axis=0)
    else:
        # A copy of the record is the same data, another record is not.
        is_different_N = np.array([first.encoded(n) != second.encoded(n) for n in range(images)])
    if is_different_N.any() or len(first.known.members) != len(second.known.members):
        position = int(np.argmax(is_different_N)) if is_different_N.any() else images
        names = [
            model.image_name(position) if position < len(model.known.members) else "no further image"
            for model in (first, second)
        ]
        raise UserError(
            f"{first.name} and {second.name} hold out different images, first {names[0]} and {names[1]}: compare "
            "models of one record with the same seed and fractions"
        )
    counts = [model.data.train_counts for model in (first, second)]
    if not np.array_equal(*counts):
        label = int(np.argmax(counts[0] != counts[1])) if len(counts[0]) == len(counts[1]) else min(map(len, counts))
        raise UserError(
            f"{first.name} and {second.name} are trained on different numbers of images, first of identity {label}: "
            "compare models of one record with the same seed and fractions"
        )


def _open_strangers(candidate: _KnownCandidate, options: KnownPeopleOptions) -> list[Split]:
    """Returns the images of strangers, with the model's transform. Raises UserError if any was trained on."""
    paths, roots = options.strangers, list(options.roots)
    if len(roots) > 1 and len(roots) != len(paths):
        raise UserError(
            f"--open-root: {len(roots)} folders for {len(paths)} --open-images; give one for all, or one for each"
        )
    roots = (roots or [None]) * (len(paths) if len(roots) < 2 else 1)
    data = candidate.config.data
    trained = {
        canonical_name(name): name
        for label, name in data.known_class_names(candidate.data).items()
        if candidate.data.train_counts[label] > 0
    }
    splits = []
    for path, root in zip(paths, roots, strict=True):
        if path.resolve() == data.record.resolve():
            raise UserError(
                f"--open-images {path}: {candidate.name} is trained on this record; name images of strangers"
            )
        source = open_image_source(path, candidate.config, root=root)
        names = set(map(canonical_name, _identity_names(path, source)))
        if shared := sorted(trained[name] for name in names & trained.keys()):
            named = ", ".join(shared[:_MAX_NAMED]) + (", ..." if len(shared) > _MAX_NAMED else "")
            raise UserError(
                f"--open-images {path}: has people that {candidate.name} is trained on, {len(shared)} in all: {named}; "
                "leave their images out"
            )
        splits.append(Split(source.dataset, source.members))
    return splits


def _identity_names(path: Path, source: ImageSource) -> set[str]:
    """Returns the names by which a source may identify people: those of a record's table, or of folders."""
    if path.suffix == ".rec":
        return set(source.identities) if path.with_name(IDENTITIES_FILE).is_file() else set()
    folders = {PurePosixPath(key).parent for key in source.keys}
    return {path.name, *(part for folder in folders for part in folder.parts)}


def _measure_model(
    candidate: _KnownCandidate,
    sources: Sequence[Split],
    device: torch.device,
    batch: int,
    workers: int,
    progress: ProgressFn,
) -> tuple[dict[str, Any], list[np.ndarray], list[KnownScores]]:
    """Returns the model's summary, the indices of the readable images of each split, and its scores."""
    model = load_model(candidate.folder, device)
    predictor = Predictor.of(model, batch, workers, progress=progress)
    trained = collect_trained_identities(
        predictor, candidate.data, open_search(), title=f"{candidate.name}, training images"
    )
    if candidate.validation is not None:
        title = f"{candidate.name}, validation images"
        validation = collect_validation_outputs(predictor, candidate.validation, title=title)
        trained = replace(trained, validation=validation)
    splits = {"known images": candidate.known, **{f"strangers {n}": split for n, split in enumerate(sources, start=1)}}
    indices, scored = [], []
    for title, split in splits.items():
        outputs = collect_outputs(predictor, split, title=f"{candidate.name}, {title}")
        indices.append(outputs.index_N)
        nearest = IdentityCandidates(outputs, trained)
        scored.append({name: IDENTITY_SCORES[name].compute(nearest) for name in candidate.scores})
    label_N = candidate.known.dataset.labels[indices[0]]
    results = []
    for name in candidate.scores:
        known, *strangers = (part[name] for part in scored)
        stranger_score_S = np.concatenate([part.score_N for part in strangers])
        is_right_N = known.identity_N == label_N
        results.append(KnownScores(candidate.name, name, is_right_N, known.score_N, stranger_score_S))
    summary = {
        "name": candidate.name,
        "weights_sha256": model.weights_sha256,
        "classes": candidate.data.num_classes,
        "default_score": default_score(candidate.scores),
    }
    return summary, indices, results


def _check_same_readable(candidates: Sequence[_KnownCandidate], readable: Sequence[Sequence[np.ndarray]]) -> None:
    """Raises UserError if an image could be read for one model and not for another."""
    for candidate, indices in zip(candidates[1:], readable[1:], strict=True):
        if not all(np.array_equal(first, second) for first, second in zip(readable[0], indices, strict=True)):
            raise UserError(
                f"{candidates[0].name} and {candidate.name} could not read the same images: repair the images, or use "
                "models with the same data.image_size and data.max_pixels"
            )


def _notes(candidates: Sequence[_KnownCandidate], split: str) -> list[str]:
    notes = []
    selected = [candidate.name for candidate in candidates if candidate.stage.keep == "best"]
    if split == VALIDATION_SPLIT and selected:
        notes.append(
            f"Measured on the split validation, on which the epoch of {', '.join(selected)} was selected: rates of "
            "known people are optimistic. data.test_fraction holds out images that nothing was selected on."
        )
    for candidate in candidates:
        if not candidate.config.data.known_class_names(candidate.data):
            notes.append(
                f"{candidate.name}: its record has no {IDENTITIES_FILE}, so strangers were not compared with its "
                "training identities."
            )
    return notes
