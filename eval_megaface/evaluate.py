"""Result files as MegaFace's development kit names and writes them: cmc_facescrub_megaface_ALGORITHM_SIZE_SET.json.

A file is an object; `cmc` holds two lists, ranks counted from 0 and the rate within each rank, and `roc` false and true
positive rates. K ranks.

Measure every model and kind on one suite, and put the report together (schema facelt.megaface/1). P probes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from eval_megaface import protocol
from eval_megaface.config import MegafaceConfig
from eval_megaface.protocol import Hits, Parts, Run, measure, shot_bands
from eval_megaface.sources import (
    Measured,
    ModelSources,
    check_coverage,
    coverage_notes,
    measured_kinds,
    one_sided_kinds,
)
from eval_megaface.suite import Group, Suite, load_suite, read_names
from eval_megaface.thresholds import open_set, read_reachabilities, verification
from facelt.errors import UserError
from facelt.identification.rank import pseudo_shot_labels
from facelt.report.megaface_schema import MegafaceReport
from facelt.search.search import open_search
from facelt.store.attributes import canonical_name
from recordio_tools.atomic_io import write_text
from recordio_tools.progress import ProgressFn, no_progress, relabel


def cmc_path(folder: Path, algorithm: str, size: int, number: int) -> Path:
    """Where the result of `algorithm` among `size` distractors, set `number`, lies; odd signs of its name as %XX."""
    return folder / f"cmc_facescrub_megaface_{quote(algorithm, safe='')}_{size}_{number}.json"


def write_cmc(path: Path, rate_K: Sequence[float]) -> None:
    """Write rates within ranks 1..K. Raises UserError where the disk refuses."""
    content = {"cmc": [list(range(len(rate_K))), [float(rate) for rate in rate_K]]}
    write_text(path, json.dumps(content, allow_nan=False))


def evaluate(config: MegafaceConfig, progress: ProgressFn = no_progress) -> MegafaceReport:
    """The whole report. Everything that can be refused without searching is refused first.

    What is finished is kept below the folder `out`: the same run, interrupted, goes on from there. Under torchrun all
    processes call it and get the same report. Raises UserError naming the file, the key or the images at fault.
    """
    suite = load_suite(config)
    pairs = len(suite.probe_paths) * sum(len(gallery.paths) for gallery in suite.galleries)
    search = open_search(config.search.engine, pairs)
    sources = {name: ModelSources(files) for name, files in config.models.items()}
    kinds = {name: measured_kinds(name, source, config) for name, source in sources.items()}
    notes = [*config.notes, *suite.notes, *_overlap(config, suite), *one_sided_kinds(sources)]
    for name, source in sources.items():
        source.inspect(suite, kinds[name])
    without = check_coverage(sources, config.allow_missing)
    if any(without.values()):
        suite = load_suite(config, without)
    notes += coverage_notes(sources, without)
    for source in sources.values():
        source.check_dimensions(suite)
    run = Run(suite, search, Parts(config.out / "parts", writes=search.is_first), config.noise.seed)
    measured = [Measured(name, source, kind) for name, source in sources.items() for kind in kinds[name]]
    reachabilities, unreachable = read_reachabilities(suite, sources) if config.open_set else ({}, [])
    bands = _bands(run, config, sources, progress)
    notes += [f"{name}: no train store, so its shots are not measured." for name in sources if name not in bands]
    notes += unreachable
    identified = _identified(run, config, measured, bands, progress)
    values = {
        "title": config.title,
        "notes": notes,
        "suite": suite.summary,
        "shots": {
            "threshold": config.shots.threshold,
            "reference": _reference(config, bands),
            "bands": pseudo_shot_labels(),
        },
        "interval": {
            "level": config.interval.level,
            "method": "bootstrap over identities, percentile",
            "replicates": config.interval.replicates,
            "seed": config.interval.seed,
        },
        **identified,
        "verification": verification(run, measured, progress) if config.verification else None,
        "open_set": open_set(run, measured, config.open_set, reachabilities, progress) if config.open_set else None,
        "models": {name: source.describe() for name, source in sources.items()},
    }
    return MegafaceReport.build(values)


def _identified(
    run: Run,
    config: MegafaceConfig,
    measured: list[Measured],
    bands: dict[str, dict[str, np.ndarray]],
    progress: ProgressFn,
) -> dict[str, list[dict[str, Any]]]:
    """The report's rows, curves and CMC, an entry for each model and kind, from one search of every gallery."""
    suite, found = run.suite, {"rows": [], "curves": [], "cmc": []}
    everyone = Group("full", "all", np.ones(len(suite.probe_paths), dtype=bool))
    for one in measured:
        shots = [Group(band, "shots", mask_P) for band, mask_P in bands.get(one.model, {}).items()]
        groups = [everyone, *shots, *suite.groups]
        hits = measure(run, one, progress)
        found["rows"] += [one.which | row for row in protocol.rows(suite, groups, hits, config.ranks, config.interval)]
        found["curves"].append(one.which | protocol.curve(suite, hits, config.interval))
        found["cmc"].append(one.which | protocol.cmc(suite, hits))
        if run.search.is_first:
            _write_devkit(config, suite, f"{one.model}_{one.kind}", hits)
    return found


def _write_devkit(config: MegafaceConfig, suite: Suite, algorithm: str, hits: Hits) -> None:
    """The CMC of every list, as MegaFace's development kit names and writes it."""
    pairs = len(suite.pairs)
    for (size, number), hit_PK in zip(hits.cuts, hits.hit_CPK, strict=True):
        if pairs:
            write_cmc(cmc_path(config.out / "devkit", algorithm, size, number), hit_PK.sum(axis=0) / pairs)


def _bands(
    run: Run, config: MegafaceConfig, sources: dict[str, ModelSources], progress: ProgressFn
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
            shots = shot_bands(run, source, config.shots.threshold, relabel(progress, f"{reference}, shots"))
            counted[reference] = shots
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
    probe_names = {canonical_name(name): name for name in suite.names}
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
