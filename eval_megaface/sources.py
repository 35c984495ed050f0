"""One model's opened sources: what they hold, and which listed images it covers."""

from dataclasses import dataclass
from typing import Any

from eval_megaface.config import Kind, MegafaceConfig, ModelFiles
from eval_megaface.coverage import Coverage, fingerprint
from eval_megaface.features import FeatureSource, StoreSource, open_source
from eval_megaface.suite import Suite
from facelt.errors import UserError

PARTS = ("probes", "distractors")


class ModelSources:
    """Probes, distractors, perhaps training embeddings; `coverage` is by part and kind, once `inspect` was called."""

    def __init__(self, files: ModelFiles) -> None:
        self.probes: FeatureSource = open_source(files.probes, files.algorithm)
        self.distractors: FeatureSource = open_source(files.distractors, files.algorithm)
        self.train = StoreSource(files.train) if files.train else None
        self.kinds = [kind for kind in self.probes.kinds if kind in self.distractors.kinds]
        self.coverage: dict[tuple[str, Kind], Coverage] = {}

    def inspect(self, suite: Suite, kinds: list[Kind]) -> None:
        """Read all embeddings of the suite's images once."""
        listed = {"probes": suite.probe_paths, "distractors": suite.distractor_paths}
        self.coverage = {
            (part, kind): getattr(self, part).inspect(kind, listed[part]) for part in PARTS for kind in kinds
        }

    def unusable(self, part: str) -> set[str]:
        """Images of a part that lack a usable embedding of some kind."""
        return {image for (other, _), found in self.coverage.items() if other == part for image in found.unusable}

    def fingerprint(self, kind: Kind) -> str:
        """A hash of the inspected embeddings of one kind."""
        return fingerprint(*(self.coverage[part, kind].fingerprint for part in PARTS))

    def check_dimensions(self, suite: Suite) -> None:
        """Raise UserError where probes and distractors are of different dimensions."""
        for kind in self.kinds[:1]:
            dimension = self.probes.rows(kind, suite.probe_paths).shape[1]
            other = self.distractors.rows(kind, suite.distractor_paths).shape[1]
            if suite.distractor_paths and other != dimension:
                raise UserError(
                    f"{self.distractors.path}: embeddings have {other} values, those in {self.probes.path} {dimension}"
                )

    def describe(self) -> dict[str, Any]:
        """What the report says of the model's files."""
        parts = {"probes": self.probes, "distractors": self.distractors, "train": self.train}
        described = {name: source.describe() for name, source in parts.items() if source is not None}
        for (part, kind), found in self.coverage.items():
            described[part].setdefault("coverage", {})[kind] = found.summary()
        return described


@dataclass(frozen=True, eq=False)
class Measured:
    """One kind of one model's embeddings, the unit of every measurement."""

    model: str
    source: ModelSources
    kind: Kind

    @property
    def which(self) -> dict[str, str]:
        """How the report names it."""
        return {"model": self.model, "kind": self.kind}

    def __str__(self) -> str:
        return f"{self.model}, {self.kind}"


def measured_kinds(name: str, source: ModelSources, config: MegafaceConfig) -> list[Kind]:
    """The kinds to measure of one model. Raises UserError where one that was asked for is not there."""
    if config.kinds != "all" and (lacking := [kind for kind in config.kinds if kind not in source.kinds]):
        raise UserError(
            f"kinds: model {name!r} has no {lacking[0]!r} for probes and distractors; both hold "
            f"{', '.join(source.kinds) or 'no kind in common'}"
        )
    if not source.kinds:
        raise UserError(f"models.{name}: its stores of probes and distractors have no kind of embedding in common")
    return source.kinds if config.kinds == "all" else list(dict.fromkeys(config.kinds))


def one_sided_kinds(sources: dict[str, ModelSources]) -> list[str]:
    """A note for each kind that only one of a model's two stores holds."""
    return [
        f"{name}: kind {kind} is in only one of its stores of probes and distractors and is not measured."
        for name, source in sources.items()
        for kind in sorted(set(source.probes.kinds) ^ set(source.distractors.kinds))
    ]


def check_coverage(sources: dict[str, ModelSources], allowed: int) -> dict[str, frozenset[str]]:
    """The images of each part that some model cannot be measured on, at most `allowed` in all.

    They are left out for every model, so that all are measured on the same images. Raises UserError that names the
    first of them where they are more.
    """
    without = {part: frozenset().union(*(source.unusable(part) for source in sources.values())) for part in PARTS}
    if (count := sum(map(len, without.values()))) > allowed:
        found = [one.problems() for source in sources.values() for one in source.coverage.values() if one.unusable]
        raise UserError(f"{'; '.join(found)}: repair them, or leave images out with --allow-missing {count}")
    return without


def coverage_notes(sources: dict[str, ModelSources], without: dict[str, frozenset[str]]) -> list[str]:
    """What a reader of the report must know of images that were left out or repeat each other."""
    notes = [
        f"{len(images)} listed {part} without a usable embedding are left out for every model."
        for part, images in without.items()
        if images
    ]
    # Photographs that are in a list twice repeat each other by every model.
    repeating: dict[str, list[str]] = {}
    for name, source in sources.items():
        for (part, kind), found in source.coverage.items():
            if found.repeated:
                what = f"{len(found.repeated)} {part} repeat another's embedding: {found.repeats()}."
                repeating.setdefault(what, []).append(f"{name}, {kind}")
    notes += [f"{'; '.join(models)}: {what}" for what, models in repeating.items()]
    return notes
