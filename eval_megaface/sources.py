"""Embeddings of the evaluated models, from stores or trees of .bin files, and their coverage of the listed images.

An embedding is unusable if it is missing, truncated, of another dimension, not finite or zero. One that repeats another
image's, value by value, is reported but stays: web galleries hold some photographs twice.

N images, M selected images, D feature.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from eval_megaface.config import MegafaceConfig, ModelFiles
from eval_megaface.suite import Suite
from facelt.config.base import EmbeddingKind
from facelt.errors import UserError
from facelt.search.exact import MatrixLike
from facelt.store.duplicates import RowSource, find_equal_rows, find_repeats, scan_rows
from facelt.store.feature_tree import FeatureTree, feature_dimension, feature_path, read_feature, size_inside_root
from facelt.store.image_names import positions_of
from facelt.store.store import META_FILE, EmbeddingStore, RowSubset

_MAX_NAMES = 5
_MAX_REPEATS = 2
_PARTS = ("probes", "distractors")


class FeatureSource(Protocol):
    """Source of embeddings of listed images."""

    path: Path
    kinds: tuple[str, ...]

    def rows(self, kind: str, images: Sequence[str]) -> MatrixLike:
        """Returns the embeddings [M,D] of `images`, read when sliced. Raises UserError naming missing images."""
        ...

    def inspect(self, kind: str, images: Sequence[str]) -> "FeatureCoverage":
        """Reads the embeddings of all `images` and returns which can be used."""
        ...

    def reachability(self, images: Sequence[str]) -> np.ndarray | None:
        """Returns the reachability of `images`, float32 [M]; None if it is not recorded."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns the report's description of the source."""
        ...


def open_source(path: Path, algorithm: str | None) -> FeatureSource:
    """Opens the store or tree in folder `path`. Raises UserError if it is neither, or a tree without `algorithm`."""
    if not path.is_dir() or (path / META_FILE).is_file():
        return StoreSource(path)
    if algorithm is None:
        raise UserError(
            f"{path}: has no {META_FILE}, so it is no embedding store; for a tree of IMAGE_ALGORITHM.bin files set "
            "the model's algorithm"
        )
    return TreeSource(path, algorithm)


class StoreSource:
    """Embedding store whose keys are the lists' paths."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = EmbeddingStore.open(path)
        self.kinds = self.store.kinds
        self._positions_of: list[tuple[Sequence[str], np.ndarray]] = []

    def rows(self, kind: str, images: Sequence[str]) -> MatrixLike:
        """See FeatureSource; a store in the order of the list is returned as its memory map."""
        value_ND = self.store.embedding(kind)
        if self.store.keys[: len(images)] == list(images):
            return value_ND[: len(images)]
        position_M = self._positions(images)
        (missing,) = np.nonzero(position_M < 0)
        if len(missing):
            examples = ", ".join(repr(images[row]) for row in missing[:3])
            raise UserError(f"{self.path}: lacks {len(missing)} of {len(images)} listed images, such as {examples}")
        return RowSubset(value_ND, position_M)

    def inspect(self, kind: str, images: Sequence[str]) -> "FeatureCoverage":
        """See FeatureSource."""
        value_ND, position_M = self.store.embedding(kind), self._positions(images)
        (present,) = np.nonzero(position_M >= 0)
        names = images if len(present) == len(images) else [images[index] for index in present.tolist()]
        return _coverage(self.path, kind, images, names, value_ND, position_M[present])

    def reachability(self, images: Sequence[str]) -> np.ndarray | None:
        """See FeatureSource; all of `images` must be in the store."""
        values_N = self.store.reachability
        return None if values_N is None else np.asarray(values_N[self._positions(images)])

    def _positions(self, images: Sequence[str]) -> np.ndarray:
        """Returns the rows of `images`, -1 for a missing one; computed once per list."""
        for known_images, position_M in self._positions_of:
            if known_images is images:
                return position_M
        position_M = positions_of(images, self.store.keys)
        self._positions_of.append((images, position_M))
        return position_M

    def describe(self) -> dict[str, Any]:
        """Returns the store's meta.json."""
        return {"path": str(self.path), **self.store.meta}

    def fingerprint(self, kind: str) -> str:
        """Returns a hash of all keys, and all values of one kind."""
        _, _, hash_N = scan_rows(self.store.embedding(kind), np.arange(len(self.store)))
        return content_hash(self.store.keys, hash_N)

    @property
    def keys(self) -> list[str]:
        """All images of the store, in its order."""
        return self.store.keys


class TreeSource:
    """Tree of .bin files: one kind, `direct`, compared by cosine regardless of lengths."""

    kinds = ("direct",)

    def __init__(self, path: Path, algorithm: str) -> None:
        self.path, self.algorithm = path, algorithm

    def rows(self, kind: str, images: Sequence[str]) -> MatrixLike:
        """See FeatureSource."""
        if kind != "direct":
            raise UserError(f"{self.path}: a tree of .bin files holds kind 'direct' only, not {kind!r}")
        return FeatureTree(self.path, self.algorithm, images)

    def inspect(self, kind: str, images: Sequence[str]) -> "FeatureCoverage":
        """See FeatureSource. The dimension is that of most files, by their sizes.

        Raises UserError if a name or a link leads out of the tree.
        """
        paths = {image: feature_path(self.path, image, self.algorithm) for image in images}
        sizes = {
            image: size for image, path in paths.items() if (size := size_inside_root(path, self.path)) is not None
        }
        common = Counter(sizes.values()).most_common(1)
        dimension = max(1, feature_dimension(common[0][0])) if common else 1
        names = list(sizes)
        files = _TreeFeatures([paths[image] for image in names], names, dimension)
        return _coverage(self.path, kind, images, names, files, np.arange(len(names)), files.damaged)

    def reachability(self, images: Sequence[str]) -> None:
        """See FeatureSource: trees record none."""

    def describe(self) -> dict[str, Any]:
        """Returns the path and format; the files do not describe the model."""
        return {"path": str(self.path), "format": "bin", "algorithm": self.algorithm, "kinds": list(self.kinds)}


class _TreeFeatures:
    """Features by position: NaN for a file that cannot be read, and the reason in `damaged`."""

    def __init__(self, paths: list[Path], names: list[str], dimension: int) -> None:
        self._paths, self._names, self._dimension = paths, names, dimension
        self.damaged: dict[str, str] = {}

    def __getitem__(self, row_N: np.ndarray) -> np.ndarray:
        value_ND = np.full((len(row_N), self._dimension), np.nan, dtype=np.float32)
        for index, row in enumerate(row_N.tolist()):
            try:
                value_ND[index] = read_feature(self._paths[row], self._dimension)
            except UserError as error:
                self.damaged[self._names[row]] = str(error).removeprefix(f"{self._paths[row]}: ")
        return value_ND


@dataclass(frozen=True, eq=False)
class FeatureCoverage:
    """Coverage of `listed` images by a source: `unusable` images with the reason, `repeated` ones with their original.

    `hash_N` are the hashes of the rows of `names`, the listed images that have one. `fingerprint` depends on every
    value of every listed image and on their order.
    """

    path: Path
    kind: str
    listed: int
    unusable: dict[str, str]
    repeated: dict[str, str]
    names: Sequence[str]
    hash_N: np.ndarray
    fingerprint: str

    def summary(self) -> dict[str, int]:
        """Returns the counts for the report."""
        usable = self.listed - len(self.unusable)
        return {"listed": self.listed, "usable": usable, "repeated": len(self.repeated)}

    def hashes(self, images: Sequence[str]) -> np.ndarray:
        """Returns the hashes of the rows of `images`, which are all or some of `names`, in the same order."""
        if len(images) == len(self.names):
            return self.hash_N
        kept = set(images)
        return self.hash_N[[name in kept for name in self.names]]

    def repeats_text(self) -> str:
        """Returns the first images that repeat another's embedding."""
        return _examples([f"{image} as {first}" for image, first in self.repeated.items()], _MAX_REPEATS)

    def problems_text(self) -> str:
        """Returns the unusable images by reason, the first of each by name."""
        by_reason: dict[str, list[str]] = {}
        for image, reason in self.unusable.items():
            by_reason.setdefault(reason, []).append(image)
        reasons = [f"{len(images):,} {reason}: {_examples(images)}" for reason, images in by_reason.items()]
        more = f"; {len(reasons) - _MAX_NAMES} more reasons" if len(reasons) > _MAX_NAMES else ""
        count = f"{len(self.unusable):,} of {self.listed:,} listed images"
        return f"{self.path}: {self.kind} of {count} cannot be used ({'; '.join(reasons[:_MAX_NAMES])}{more})"


def _examples(names: Sequence[str], most: int = _MAX_NAMES) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _coverage(
    path: Path,
    kind: str,
    images: Sequence[str],
    names: Sequence[str],
    value_ND: RowSource,
    row_N: np.ndarray,
    damaged: Mapping[str, str] | None = None,
) -> FeatureCoverage:
    """Returns the coverage of `images`, of which only `names` have rows, `row_N` of `value_ND`.

    `damaged` holds the reasons for rows that could not be read; reading the rows may fill it.
    """
    finite_N, nonzero_N, hash_N = scan_rows(value_ND, row_N)
    present = set(names) if len(names) < len(images) else images
    unusable = {} if present is images else {image: "missing" for image in images if image not in present}
    unusable |= {names[row]: "not finite" for row in np.flatnonzero(~finite_N).tolist()}
    unusable |= {names[row]: "of length zero" for row in np.flatnonzero(finite_N & ~nonzero_N).tolist()}
    unusable |= damaged or {}
    repeated = {names[row]: names[first] for row, first in find_repeats(hash_N, value_ND, row_N).items()}
    repeated = {image: first for image, first in repeated.items() if image not in unusable}
    return FeatureCoverage(path, kind, len(images), unusable, repeated, names, hash_N, content_hash(names, hash_N))


def content_hash(*parts: np.ndarray | Sequence[str] | str) -> str:
    """Returns one SHA-256 of arrays, lists of names and texts."""
    digest = hashlib.sha256()
    for part in parts:
        text = part if isinstance(part, str | np.ndarray) else "\0".join(part)
        content = text.tobytes() if isinstance(text, np.ndarray) else text.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


class ModelSources:
    """Sources of one model: probes, distractors, optionally training embeddings.

    `coverage` is by part and kind, and empty before `inspect`.
    """

    def __init__(self, files: ModelFiles) -> None:
        self.probes: FeatureSource = open_source(files.probes, files.algorithm)
        self.distractors: FeatureSource = open_source(files.distractors, files.algorithm)
        self.train = StoreSource(files.train) if files.train else None
        self.kinds = [kind for kind in self.probes.kinds if kind in self.distractors.kinds]
        self.coverage: dict[tuple[str, EmbeddingKind], FeatureCoverage] = {}

    def inspect(self, suite: Suite, kinds: list[EmbeddingKind]) -> None:
        """Reads all embeddings of the suite's images once."""
        listed = {"probes": suite.probe_paths, "distractors": suite.distractor_paths}
        self.coverage = {
            (part, kind): getattr(self, part).inspect(kind, listed[part]) for part in _PARTS for kind in kinds
        }

    def unusable(self, part: str) -> set[str]:
        """Returns the images of a part that lack a usable embedding of some kind."""
        return {image for (name, _), coverage in self.coverage.items() if name == part for image in coverage.unusable}

    def fingerprint(self, kind: EmbeddingKind) -> str:
        """Returns a hash of the inspected embeddings of one kind."""
        return content_hash(*(self.coverage[part, kind].fingerprint for part in _PARTS))

    def check_dimensions(self, suite: Suite) -> None:
        """Raises UserError if probes and distractors have different dimensions."""
        for kind in self.kinds[:1]:
            probe_dimension = self.probes.rows(kind, suite.probe_paths).shape[1]
            dimension = self.distractors.rows(kind, suite.distractor_paths).shape[1]
            if suite.distractor_paths and dimension != probe_dimension:
                raise UserError(
                    f"{self.distractors.path}: embeddings have {dimension} values, those in {self.probes.path} "
                    f"have {probe_dimension}"
                )

    def find_duplicates(self, kind: EmbeddingKind, suite: Suite) -> dict[str, str]:
        """Returns the probes whose inspected embedding a distractor has as well, with the first such distractor.

        Probes that are replaced by noise mode `insightface` are not compared.
        """
        probes = [path for path, noisy in zip(suite.probe_paths, suite.noisy_P, strict=True) if not noisy]
        probe_PD = self.probes.rows(kind, probes)[: len(probes)]
        rows_GD = self.distractors.rows(kind, suite.distractor_paths)
        hash_G = self.coverage["distractors", kind].hashes(suite.distractor_paths)
        equal = find_equal_rows(probe_PD, rows_GD, hash_G)
        return {probes[p]: suite.distractor_paths[g] for p, g in equal.items()}

    def describe(self) -> dict[str, Any]:
        """Returns the report's description of the model's files."""
        parts = {"probes": self.probes, "distractors": self.distractors, "train": self.train}
        described = {name: source.describe() for name, source in parts.items() if source is not None}
        for (part, kind), coverage in self.coverage.items():
            described[part].setdefault("coverage", {})[kind] = coverage.summary()
        return described


@dataclass(frozen=True, eq=False)
class ModelVariant:
    """One kind of embedding of one model, the unit of every measurement."""

    model: str
    source: ModelSources
    kind: EmbeddingKind

    @property
    def labels(self) -> dict[str, str]:
        """Keys that identify it in the report."""
        return {"model": self.model, "kind": self.kind}

    def __str__(self) -> str:
        return f"{self.model}, {self.kind}"


def select_kinds(name: str, source: ModelSources, config: MegafaceConfig) -> list[EmbeddingKind]:
    """Returns the kinds to measure for one model. Raises UserError if a configured kind is missing."""
    if config.kinds != "all" and (missing := [kind for kind in config.kinds if kind not in source.kinds]):
        raise UserError(
            f"kinds: model {name!r} has no {missing[0]!r} for both probes and distractors; they have "
            f"{', '.join(source.kinds) or 'no kind'} in common"
        )
    if not source.kinds:
        raise UserError(f"models.{name}: its stores of probes and distractors have no kind of embedding in common")
    return source.kinds if config.kinds == "all" else list(dict.fromkeys(config.kinds))


def unmatched_kind_notes(sources: dict[str, ModelSources]) -> list[str]:
    """Returns a note for each kind that only one of a model's two stores holds."""
    return [
        f"{name}: kind {kind} is in only one of its stores of probes and distractors and is not measured."
        for name, source in sources.items()
        for kind in sorted(set(source.probes.kinds) ^ set(source.distractors.kinds))
    ]


def excluded_images(sources: dict[str, ModelSources], allowed: int) -> dict[str, frozenset[str]]:
    """Returns the images of each part that are unusable for some model, at most `allowed` in all.

    They are excluded for every model, so that all are measured on the same images. Raises UserError naming the first of
    them if there are more.
    """
    excluded = {part: frozenset().union(*(source.unusable(part) for source in sources.values())) for part in _PARTS}
    if (count := sum(map(len, excluded.values()))) > allowed:
        problems = [
            coverage.problems_text()
            for source in sources.values()
            for coverage in source.coverage.values()
            if coverage.unusable
        ]
        raise UserError(f"{'; '.join(problems)}: repair them, or leave images out with --allow-missing {count}")
    return excluded


def coverage_notes(sources: dict[str, ModelSources], excluded: dict[str, frozenset[str]]) -> list[str]:
    """Returns the report's notes on images that were excluded or repeat each other."""
    notes = [
        f"{len(images)} listed {part} without a usable embedding are excluded for every model."
        for part, images in excluded.items()
        if images
    ]
    # Photographs that are listed twice repeat each other for every model.
    repeating: dict[str, list[str]] = {}
    for name, source in sources.items():
        for (part, kind), coverage in source.coverage.items():
            if coverage.repeated:
                note = f"{len(coverage.repeated)} {part} repeat another's embedding: {coverage.repeats_text()}."
                repeating.setdefault(note, []).append(f"{name}, {kind}")
    notes += [f"{'; '.join(variants)}: {note}" for note, variants in repeating.items()]
    return notes
