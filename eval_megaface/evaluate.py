"""Measure every model and kind on one suite, and put the report together (schema facelt.megaface/1). P probes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from eval_megaface import figures
from eval_megaface.config import Kind, MegafaceConfig, ModelFiles
from eval_megaface.features import FeatureSource, StoreSource, open_source
from eval_megaface.groups import Group, canonical, read_names
from eval_megaface.protocol import Advance, measure, shot_bands
from eval_megaface.suite import Suite, load_suite
from facelt.errors import UserError
from facelt.metrics.shots import PSEUDO_SHOT_MEANINGS
from facelt.search import Search, open_search

SCHEMA = "facelt.megaface/1"
# Begins a piece of work of so many rows and says how to report them done.
Begin = Callable[[str, int], Advance]


def evaluate(config: MegafaceConfig, begin: Begin = lambda label, total: lambda rows: None) -> dict[str, Any]:
    """The whole report. Everything that can be refused without searching is refused first.

    Raises UserError naming the file, the key or the image at fault.
    """
    search = open_search(config.search.engine)
    suite = load_suite(config)
    sources = {name: ModelSources(files, suite) for name, files in config.models.items()}
    kinds = {name: _kinds(name, source, config) for name, source in sources.items()}
    notes = [*config.notes, *suite.notes, *_overlap(config, suite)]
    notes += _left_out(sources)
    bands = _bands(search, config, suite, sources, begin)
    notes += [f"{name}: no train store, so its shots are not measured." for name in sources if name not in bands]
    report_rows, curves, cmcs = [], [], []
    everyone = Group("full", "all", np.ones(len(suite.probe_paths), dtype=bool))
    for name, source in sources.items():
        shots = [Group(band, "shots", mask_P) for band, mask_P in bands.get(name, {}).items()]
        groups = [everyone, *shots, *suite.groups]
        for kind in kinds[name]:
            advance = begin(f"{name}, {kind}", sum(len(gallery.paths) for gallery in suite.galleries))
            hits = measure(search, suite, source.probes, source.distractors, kind, config.noise.seed, advance)
            which = {"model": name, "kind": kind}
            report_rows += [which | row for row in figures.rows(suite, groups, hits, config.ranks, config.interval)]
            curves.append(which | figures.curve(suite, hits, config.interval))
            cmcs.append(which | figures.cmc(suite, hits))
    return {
        "schema": SCHEMA,
        "title": config.title,
        "notes": notes,
        "suite": suite.summary,
        "shots": {
            "threshold": config.shots.threshold,
            "reference": _reference(config, bands),
            "bands": dict(PSEUDO_SHOT_MEANINGS),
        },
        "interval": {
            "level": config.interval.level,
            "method": "bootstrap over identities, percentile",
            "replicates": config.interval.replicates,
            "seed": config.interval.seed,
        },
        "rows": report_rows,
        "curves": curves,
        "cmc": cmcs,
        "models": {name: source.describe() for name, source in sources.items()},
    }


class ModelSources:
    """One model's opened sources; all listed images are looked up at once, so that a missing one shows at the start."""

    def __init__(self, files: ModelFiles, suite: Suite) -> None:
        self.probes: FeatureSource = open_source(files.probes, files.algorithm)
        self.distractors: FeatureSource = open_source(files.distractors, files.algorithm)
        self.train = StoreSource(files.train) if files.train else None
        self.kinds = [kind for kind in self.probes.kinds if kind in self.distractors.kinds]
        for kind in self.kinds[:1]:
            dimension = self.probes.rows(kind, suite.probe_paths).shape[1]
            for gallery in suite.galleries:
                other = self.distractors.rows(kind, gallery.paths).shape[1]
                if gallery.paths and other != dimension:
                    raise UserError(
                        f"{self.distractors.path}: embeddings have {other} values, "
                        f"those in {self.probes.path} {dimension}"
                    )

    def describe(self) -> dict[str, Any]:
        """What the report says of the model's files."""
        parts = {"probes": self.probes, "distractors": self.distractors, "train": self.train}
        return {name: source.describe() for name, source in parts.items() if source is not None}


def _kinds(name: str, source: ModelSources, config: MegafaceConfig) -> list[Kind]:
    if config.kinds != "all" and (lacking := [kind for kind in config.kinds if kind not in source.kinds]):
        raise UserError(
            f"kinds: model {name!r} has no {lacking[0]!r} for probes and distractors; both hold "
            f"{', '.join(source.kinds) or 'no kind in common'}"
        )
    if not source.kinds:
        raise UserError(f"models.{name}: its stores of probes and distractors have no kind of embedding in common")
    return source.kinds if config.kinds == "all" else list(dict.fromkeys(config.kinds))


def _left_out(sources: dict[str, ModelSources]) -> list[str]:
    """A note for each kind that only one of a model's two stores holds."""
    return [
        f"{name}: kind {kind} is in only one of its stores of probes and distractors and is not measured."
        for name, source in sources.items()
        for kind in sorted(set(source.probes.kinds) ^ set(source.distractors.kinds))
    ]


def _bands(
    search: Search, config: MegafaceConfig, suite: Suite, sources: dict[str, ModelSources], begin: Begin
) -> dict[str, dict[str, np.ndarray]]:
    """The shot bands of each model that has any; models with one reference share them."""
    counted: dict[str, dict[str, np.ndarray]] = {}
    bands = {}
    for name in sources:
        reference = config.reference_model(name)
        source = sources[reference]
        if source.train is None:
            continue
        if reference not in counted:
            advance = begin(f"{reference}, shots", len(source.train.keys))
            counted[reference] = shot_bands(
                search, suite, source.probes, source.train, config.shots.threshold, config.noise.seed, advance
            )
        bands[name] = counted[reference]
    return bands


def _reference(config: MegafaceConfig, bands: dict[str, Any]) -> str:
    """Who decided the shots."""
    deciding = {config.reference_model(name) for name in bands}
    if not deciding:
        return "none"
    return f"{deciding.pop()}, direct" if len(deciding) == 1 else "each model's own, direct"


def _overlap(config: MegafaceConfig, suite: Suite) -> list[str]:
    """Refuse probe identities that a model was trained on, or with `allow_overlap` note that there are some."""
    notes = []
    probe_names = {canonical(name): name for name in suite.names}
    for model, files in config.models.items():
        if files.training_identities is None:
            continue
        both = sorted(probe_names[name] for name in probe_names.keys() & read_names(files.training_identities))
        if not both:
            continue
        who = f"{len(both)} of {len(suite.names)} probe identities are in the training set: {', '.join(both)}"
        if not config.allow_overlap:
            raise UserError(
                f"{files.training_identities}: {who}; identification of people the model knows says nothing about "
                "unseen ones. Remove them from the suite, or go on with --allow-overlap"
            )
        notes.append(f"{model}: {who}. Its figures are not those of unseen people.")
    return notes
