"""The MegaFace evaluation of all models and kinds on one suite, and result files in the development kit's format.

P probes, K ranks.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from eval_megaface.comparison import check_comparison, compare_with_reference
from eval_megaface.config import MegafaceConfig
from eval_megaface.protocol import (
    EvaluationContext,
    Hits,
    ResultCache,
    assign_shot_bands,
    cmc_curve,
    find_hits,
    report_rows,
    size_curve,
)
from eval_megaface.sources import (
    ModelSources,
    ModelVariant,
    coverage_notes,
    excluded_images,
    select_kinds,
    unmatched_kind_notes,
)
from eval_megaface.suite import ProbeGroup, Suite, load_suite, read_names
from eval_megaface.thresholds import measure_open_set, measure_verification, read_reachabilities
from facelt.errors import UserError
from facelt.identification.rank import pseudo_shot_labels
from facelt.report.megaface_schema import MegafaceReport
from facelt.report.write import DEVKIT_FOLDER, PARTS_FOLDER
from facelt.search.search import open_search
from facelt.store.attributes import canonical_name
from facelt.store.duplicates import duplicate_notes
from facelt.store.mixed_models import mixed_model_notes
from recordio_tools.atomic_io import write_text
from recordio_tools.progress import ProgressFn, no_progress, relabel


def evaluate_megaface(
    config: MegafaceConfig, progress: ProgressFn = no_progress, folder: Path | None = None
) -> MegafaceReport:
    """Returns the whole report. Everything that can be refused without a search is refused first.

    Finished searches are kept below the folder `out`, so that an interrupted run resumes. Files in the format of the
    development kit are written below `folder`, if it is given. Under torchrun all processes call it and get the same
    report. Raises UserError naming the file, the key or the images at fault.
    """
    suite = load_suite(config)
    pairs = len(suite.probe_paths) * sum(len(gallery.paths) for gallery in suite.galleries)
    search = open_search(config.search.engine, pairs)
    sources = {name: ModelSources(files) for name, files in config.models.items()}
    kinds = {name: select_kinds(name, source, config) for name, source in sources.items()}
    if config.compare:
        check_comparison(config, kinds)
    notes = [*config.notes, *suite.notes, *_overlap_notes(config, suite), *unmatched_kind_notes(sources)]
    for name, source in sources.items():
        model_notes = mixed_model_notes(source.describe(), allow_mixed=config.allow_mixed_models)
        notes += [f"{name}: {note}" for note in model_notes]
    for name, source in sources.items():
        source.inspect(suite, kinds[name])
    excluded = excluded_images(sources, config.allow_missing)
    if any(excluded.values()):
        suite = load_suite(config, excluded)
    notes += coverage_notes(sources, excluded)
    for source in sources.values():
        source.check_dimensions(suite)
    variants = [ModelVariant(name, source, kind) for name, source in sources.items() for kind in kinds[name]]
    notes += _duplicate_notes(config, suite, variants)
    cache = ResultCache(config.out / PARTS_FOLDER, writes=search.is_first)
    context = EvaluationContext(suite, search, cache, config.noise.seed)
    reachabilities, reachability_notes = read_reachabilities(suite, sources) if config.open_set else ({}, [])
    bands = _shot_bands(context, config, sources, progress)
    notes += [f"{name}: no train store, so its shots are not measured." for name in sources if name not in bands]
    notes += reachability_notes
    rows, curves, cmc, hits_of = [], [], [], {}
    for variant in variants:
        hits_of[variant] = hits = find_hits(context, variant, progress)
        groups = _probe_groups(suite, bands.get(variant.model, {}))
        rows += [variant.labels | row for row in report_rows(suite, groups, hits, config.ranks, config.interval.level)]
        curves.append(variant.labels | size_curve(suite, hits, config.interval.level))
        cmc.append(variant.labels | cmc_curve(suite, hits))
        if folder is not None:
            _write_devkit(folder / DEVKIT_FOLDER, suite, f"{variant.model}_{variant.kind}", hits)
    comparison = None
    if config.compare:
        groups = _probe_groups(suite, bands.get(config.compare.reference, {}))
        comparison = compare_with_reference(config, suite, groups, hits_of)
    verification = open_set = None
    if config.verification:
        verification, threshold_notes = measure_verification(context, variants, progress)
        notes += threshold_notes
    if config.open_set:
        open_set, threshold_notes = measure_open_set(context, variants, config.open_set, reachabilities, progress)
        notes += threshold_notes
    values = {
        "title": config.title,
        "notes": notes,
        "suite": suite.summary,
        "shots": {
            "threshold": config.shots.threshold,
            "reference": _shots_reference(config, bands),
            "bands": dict(pseudo_shot_labels()),
        },
        "interval": {
            "level": config.interval.level,
            "method": "jackknife over identities, Wilson limits of the effective trials",
        },
        "rows": rows,
        "curves": curves,
        "cmc": cmc,
        "comparison": comparison,
        "verification": verification,
        "open_set": open_set,
        "models": {name: source.describe() for name, source in sources.items()},
    }
    return MegafaceReport.build(values)


def _probe_groups(suite: Suite, bands: dict[str, np.ndarray]) -> list[ProbeGroup]:
    full = ProbeGroup("full", "all", np.ones(len(suite.probe_paths), dtype=bool))
    return [full, *(ProbeGroup(band, "shots", mask_P) for band, mask_P in bands.items()), *suite.groups]


def _overlap_notes(config: MegafaceConfig, suite: Suite) -> list[str]:
    """Refuses probe identities that a model was trained on; returns notes on them if `allow_overlap` is set."""
    notes = []
    probe_names = {canonical_name(name): name for name in suite.names}
    for model, files in config.models.items():
        if files.training_identities is None:
            continue
        shared = sorted(probe_names[name] for name in probe_names.keys() & read_names(files.training_identities))
        if not shared:
            continue
        overlap = f"{len(shared)} of {len(suite.names)} probe identities are in the training set: {', '.join(shared)}"
        if not config.allow_overlap:
            raise UserError(
                f"{files.training_identities}: {overlap}; identification of people seen in training does not measure "
                "identification of unseen people. Remove them from the suite, or continue with --allow-overlap"
            )
        notes.append(f"{model}: {overlap}. Its rates are not those of unseen people.")
    return notes


def _duplicate_notes(config: MegafaceConfig, suite: Suite, variants: Sequence[ModelVariant]) -> list[str]:
    """Refuses probes with the embedding of a distractor, or returns notes; see `duplicate_notes`."""
    options = {
        "noise_keys": "suite.facescrub_noises, suite.megaface_noises",
        "allow_duplicates": config.allow_duplicates,
    }
    notes = []
    for variant in variants:
        source = variant.source
        duplicates = source.find_duplicates(variant.kind, suite)
        listed = suite.noise_lists.listed(duplicates)
        paths = source.probes.path, source.distractors.path
        notes += [f"{variant}: {note}" for note in duplicate_notes(duplicates, listed, paths, **options)]
    return notes


def _shot_bands(
    context: EvaluationContext, config: MegafaceConfig, sources: dict[str, ModelSources], progress: ProgressFn
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the shot bands of each model that has any; models with the same reference share them."""
    by_reference: dict[str, dict[str, np.ndarray]] = {}
    bands = {}
    for name in sources:
        reference = config.shots_reference_model(name)
        source = sources[reference]
        if source.train is None:
            continue
        if reference not in by_reference:
            bar = relabel(progress, f"{reference}, shots")
            by_reference[reference] = assign_shot_bands(context, source, config.shots.threshold, bar)
        bands[name] = by_reference[reference]
    return bands


def _shots_reference(config: MegafaceConfig, bands: dict[str, Any]) -> str:
    """Returns the name of the model whose similarities define the shots, for the report."""
    references = {config.shots_reference_model(name) for name in bands}
    if not references:
        return "none"
    return f"{references.pop()}, direct" if len(references) == 1 else "each model's own, direct"


def _write_devkit(folder: Path, suite: Suite, algorithm: str, hits: Hits) -> None:
    """Writes the CMC of every list in the format of MegaFace's development kit.

    A file holds an object whose `cmc` has two lists: ranks counted from 0, and the rate within each rank.
    """
    pairs = len(suite.pairs)
    for (size, number), hit_PK in zip(hits.lists, hits.hit_CPK, strict=True):
        if pairs:
            rate_K = (hit_PK.sum(axis=0) / pairs).tolist()
            content = {"cmc": [list(range(len(rate_K))), rate_K]}
            path = devkit_path(folder, algorithm, size, number)
            write_text(path, json.dumps(content, allow_nan=False))


def devkit_path(folder: Path, algorithm: str, size: int, number: int) -> Path:
    """Returns the kit's file name for `algorithm` among `size` distractors, set `number`; special characters as %XX."""
    return folder / f"cmc_facescrub_megaface_{quote(algorithm, safe='')}_{size}_{number}.json"
