"""Reuse of finished stages: recipes whose first stages are equal train them once per seed.

A reused stage is put into a run's folder as if that run had trained it, and training continues with the next stage.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from facelt.benchmarking.records import RESULT_FILE, ReusedStage, RunRecord, digest_of, without_neutral_keys
from facelt.benchmarking.times import stage_minutes
from facelt.config.train import StageConfig, TrainConfig, is_external_ref
from facelt.errors import UserError
from facelt.inference.model import CARD_FILE, WEIGHTS_FILE, read_card, write_card
from facelt.training.run_folder import RunFolder
from recordio_tools.atomic_io import atomic_replace, sha256_of, write_text
from recordio_tools.bounded_io import read_json, read_utf8

_REUSED_FILE = "reused.json"
_REUSED = TypeAdapter(tuple[ReusedStage, ...])
_MAX_LOG_BYTES = 1 << 30


def stage_keys(config: TrainConfig) -> list[str]:
    """Returns a digest for each stage, equal for stages of one seed that train equal weights.

    It covers every setting that affects the weights, of the stage and of those before it, but not the stages' names,
    and not `model.dim` as long as no stage has an embedding layer. The list ends before the first stage that begins
    with weights of a file outside the run, whose content may change.
    """
    shared = without_neutral_keys(config.model_dump(mode="json", exclude={"stages", "optim", "validation"}))
    dim = shared["model"].pop("dim")
    positions: dict[str, int] = {}
    stages: list[dict] = []
    keys = []
    for stage in config.stages:
        sources = (*stage.initial_stages, *stage.teachers)
        if config.model.pretrained is not None or any(map(is_external_ref, sources)):
            break
        values = stage.model_dump(mode="json", exclude={"name"})
        values["optim"] = (stage.optim or config.optim).model_dump(mode="json")
        values["init_from"] = positions.get(stage.init_from)
        values["average_with"] = {positions[name]: share for name, share in stage.average_with.items()}
        values["teachers"] = [positions[name] for name in stage.teachers]
        if stage.embedding != "none":
            shared["model"]["dim"] = dim
        positions[stage.name] = len(stages)
        stages.append(values)
        keys.append(digest_of([shared, stages]))
    return keys


@dataclass(frozen=True)
class FinishedStage:
    """A finished stage of a run: its folder OUT/SUITE/RECIPE/SETTINGS/SEED/STAGE and its model card."""

    folder: Path
    card: dict[str, Any]

    @property
    def origin(self) -> ReusedStage:
        """The run that trained it, which is another one if this run has reused the stage. Raises UserError."""
        run, stage = self.folder.parent, self.folder.name
        for reused in read_reused(run):
            if reused.stage == stage:
                return reused
        path = run / RESULT_FILE
        try:
            record = RunRecord.model_validate(read_json(path)) if path.exists() else None
        except (OSError, ValueError):
            raise UserError(f"{path}: not a benchmark record; remove it") from None
        minutes = stage_minutes(run, stage)
        if minutes is None and record is not None and len(self.card["config"]["stages"]) == 1:
            minutes = record.minutes  # of a version that recorded no stages
        *_, suite, recipe, _, _ = run.parts
        return ReusedStage(
            stage=stage, recipe=f"{suite}/{recipe}", minutes=minutes, commit=None if record is None else record.commit
        )


def finished_stages(out: Path, seed: int, echo: Callable[[str], None]) -> dict[str, FinishedStage]:
    """Returns the finished stages of all benchmark runs of a seed below `out`, by the key of their settings.

    A stage that its run has reused itself comes last. `echo` receives a line on each model card that cannot be read.
    """
    stages: list[tuple[bool, str, FinishedStage]] = []
    for path in sorted(out.glob(f"*/*/*/seed{seed}/*/{CARD_FILE}")):
        try:
            card, config, stage = read_card(path)
        except UserError as error:
            echo(f"not reused: {error}")
            continue
        keys = stage_keys(config)
        number = config.stages.index(stage)
        if number < len(keys):
            is_reused = stage.name in {reused.stage for reused in read_reused(path.parent.parent)}
            stages.append((is_reused, keys[number], FinishedStage(path.parent, card)))
    return {key: stage for _, key, stage in sorted(stages, key=lambda entry: entry[0], reverse=True)}


def adopt_stages(config: TrainConfig, out: Path, echo: Callable[[str], None]) -> None:
    """Takes over the first stages of a run that it has not begun from runs below `out` that finished equal ones.

    Each becomes a finished stage of this run, with its lines of the log. `echo` receives a line on each, and on each
    that is left out because it was trained on other images or is damaged. Raises UserError.
    """
    folder, available, fingerprint = RunFolder(config.out), None, None
    for stage, key in zip(config.stages, stage_keys(config), strict=False):
        if folder.is_finished(stage.name):
            continue
        if folder.has_begun(stage.name):
            return
        if available is None:
            available = finished_stages(out, config.seed, echo)
        source = available.get(key)
        if source is None:
            return
        if fingerprint is None:
            fingerprint = config.data.open(config.seed).fingerprint()
        origin = source.origin
        title = f"stage {stage.name} from {origin.recipe}, seed {config.seed}"
        try:
            lines = _require_usable(source, fingerprint, stage)
        except (OSError, ValueError) as error:
            echo(f"not reused: {title}: {source.folder}: {getattr(error, 'strerror', None) or error}")
            return
        RunFolder.create(config, resume=True)
        _adopt(source, origin, lines, config, stage)
        minutes = "" if origin.minutes is None else f", which took {origin.minutes:.1f} minutes"
        echo(f"reused: {title}{minutes}")


def read_reused(run: Path) -> tuple[ReusedStage, ...]:
    """Returns the stages of a run that it reused. Raises UserError if their file cannot be read."""
    path = run / _REUSED_FILE
    if not path.exists():
        return ()
    try:
        return _REUSED.validate_python(read_json(path))
    except (OSError, ValueError):
        raise UserError(f"{path}: not a list of reused stages; remove {run} and run the recipe again") from None


def drop_unfinished(run: Path) -> None:
    """Removes the entries of stages that a killed process did not take over completely."""
    reused = read_reused(run)
    kept = [stage for stage in reused if RunFolder(run).is_finished(stage.stage)]
    if not kept:
        (run / _REUSED_FILE).unlink(missing_ok=True)
    elif len(kept) < len(reused):
        _write_reused(run, kept)


def _write_reused(run: Path, stages: list[ReusedStage]) -> None:
    write_text(run / _REUSED_FILE, json.dumps([stage.model_dump() for stage in stages], indent=1) + "\n")


def _require_usable(source: FinishedStage, fingerprint: str, stage: StageConfig) -> list[str]:
    """Returns the stage's lines of its run's log, under the new name of the stage.

    Raises ValueError if it was trained on other images or its weights are damaged, OSError for a missing file.
    """
    if source.card.get("data_fingerprint") != fingerprint:
        raise ValueError("trained on other images")
    if sha256_of(source.folder / WEIGHTS_FILE) != source.card.get("weights_sha256"):
        raise ValueError(f"{WEIGHTS_FILE} does not match {CARD_FILE}")
    log = read_utf8(RunFolder(source.folder.parent).metrics, _MAX_LOG_BYTES)
    lines = _lines_of(log, source.card["stage"])
    return [json.dumps({**json.loads(line), "stage": stage.name}) for line in lines]


def _lines_of(log: str, stage: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith(_log_prefix(stage))]


def _log_prefix(stage: str) -> str:
    """Returns the beginning of the lines of a stage, each of which begins with its name."""
    return json.dumps({"stage": stage})[:-1]


def _adopt(
    source: FinishedStage, origin: ReusedStage, lines: list[str], config: TrainConfig, stage: StageConfig
) -> None:
    """Puts a stage into the run's folder. Its card comes last and marks it as finished."""
    folder = RunFolder(config.out)
    _write_reused(config.out, [*read_reused(config.out), origin.model_copy(update={"stage": stage.name})])
    try:
        log = read_utf8(folder.metrics, _MAX_LOG_BYTES) if folder.metrics.exists() else ""
        kept = [line for line in log.splitlines() if not line.startswith(_log_prefix(stage.name))]
        write_text(folder.metrics, "".join(f"{line}\n" for line in [*kept, *lines]))
        for path in RunFolder(source.folder.parent).nonfinite.glob(f"{source.folder.name}-*-*.json"):
            name = path.name.removeprefix(f"{source.folder.name}-")
            if name.removesuffix(".json").replace("-", "").isdecimal():
                step = {**read_json(path), "stage": stage.name}
                write_text(folder.nonfinite / f"{stage.name}-{name}", json.dumps(step, indent=1) + "\n")
        with atomic_replace(folder.weights(stage.name)) as temporary:
            _link_or_copy(source.folder / WEIGHTS_FILE, temporary)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from None
    card = {**source.card, "stage": stage.name, "config": config.model_dump(mode="json")}
    write_card(folder.card(stage.name), card)


def _link_or_copy(source: Path, target: Path) -> None:
    """Links the weights, which are only ever replaced as a whole, or copies them to another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
