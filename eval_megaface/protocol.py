"""MegaFace's identification protocol: cached distractor searches, hits of probe-mate pairs, rates by group, CMC.

P probes, S sizes, C lists (a size and a set each), K ranks, M pairs, G groups, I identities, D feature.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval_megaface.config import MAX_RANK
from eval_megaface.sources import FeatureSource, ModelSources, ModelVariant, content_hash
from eval_megaface.suite import ProbeGroup, Suite, all_probes_position, replace_noisy
from facelt.errors import UserError
from facelt.identification.rank import hit_ranks, probe_hits, pseudo_shot_bands
from facelt.search.exact import BadRow
from facelt.search.search import Search
from facelt.stats.intervals import ClusteredCounts, rate_intervals
from facelt.store.store import UNIT_KINDS
from recordio_tools.atomic_io import atomic_replace
from recordio_tools.progress import ProgressFn, no_progress, relabel

Arrays = dict[str, np.ndarray]
# Part of every file name: raise it when the content of a result, or its computation, changes.
_CACHE_VERSION = 1


class ResultCache:
    """Results in a folder, named by a hash of everything they depend on, so that a cached result is never stale.

    Existing files are listed once, on construction: processes that share a run must agree on them. Only the process
    that `writes` adds files.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self._folder, self._writes = folder, writes
        self._existing = {path.name for path in folder.glob("*.npz")}

    def load(self, dependencies: Mapping[str, Any]) -> Arrays | None:
        """Returns the arrays with these dependencies (JSON), None if there are none. Raises UserError if damaged."""
        path = self._path(dependencies)
        if path.name not in self._existing:
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:
            # zip and numpy raise many types of errors on damaged bytes.
            raise UserError(f"{path}: is damaged ({error}); remove it and run again") from error

    def save(self, dependencies: Mapping[str, Any], arrays: Arrays) -> Arrays:
        """Saves the arrays, if this process writes, and returns them. Raises UserError if they cannot be written."""
        if self._writes:
            with atomic_replace(self._path(dependencies)) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
        return arrays

    def _path(self, dependencies: Mapping[str, Any]) -> Path:
        text = json.dumps({"version": _CACHE_VERSION, **dependencies}, sort_keys=True)
        return self._folder / f"{content_hash(text)[:32]}.npz"


@dataclass(frozen=True, eq=False)
class EvaluationContext:
    """State shared by all measurements of a run; `seed` is that of the noise mode."""

    suite: Suite
    search: Search
    cache: ResultCache
    seed: int

    def probe_dependencies(self) -> dict[str, Any]:
        """Returns the dependencies of a result on the probes, other than their embeddings."""
        replaced = content_hash(self.suite.noisy_P, str(self.seed)) if self.suite.noisy_P.any() else None
        return {"probes": content_hash(self.suite.probe_paths), "replaced": replaced}


@dataclass(frozen=True, eq=False)
class Hits:
    """Pairs of each probe that are hits at ranks 1..20, for every list: int64 [C,P,K]; `lists` are (size, set)."""

    hit_CPK: np.ndarray
    lists: list[tuple[int, int]]

    @property
    def sizes_S(self) -> list[int]:
        """Sizes, ascending."""
        return sorted({size for size, _ in self.lists})

    @property
    def sets_S(self) -> np.ndarray:
        """Number of sets of each size: a rate at size s divides by sets_S[s] times the pairs."""
        sizes = [size for size, _ in self.lists]
        return np.array([sizes.count(size) for size in self.sizes_S])

    @property
    def hit_SPK(self) -> np.ndarray:
        """Hits summed over the sets of a size, int64 [S,P,K]."""
        sizes = np.array([size for size, _ in self.lists])
        return np.stack([self.hit_CPK[sizes == size].sum(axis=0) for size in self.sizes_S])

    def mean_hit_P(self, rank: int) -> np.ndarray:
        """Returns the hits of each probe at `rank` among the most distractors, averaged over the sets, [P]."""
        return self.hit_SPK[-1, :, rank - 1] / self.sets_S[-1]


def find_hits(context: EvaluationContext, variant: ModelVariant, progress: ProgressFn = no_progress) -> Hits:
    """Returns the hits of all pairs, from one search of every gallery with every probe; finished searches are cached.

    Unit-length kinds are compared by cosine, which does not depend on the rounding of lengths in float16; `meta` by
    inner product. Raises UserError naming the source and the images that are missing, not finite or zero.
    """
    suite, source, kind = context.suite, variant.source, variant.kind
    cosine, probe_M, probes = kind in UNIT_KINDS, suite.pairs.probe_M, len(suite.probe_paths)
    hits, lists = [], []
    for number, gallery in enumerate(suite.galleries, start=1):
        rows = [rows for _, _, rows in gallery.prefixes]
        dependencies = {
            "what": "hits", "ranks": MAX_RANK, "kind": kind, "embeddings": source.fingerprint(kind),
            **context.probe_dependencies(), "gallery": content_hash(gallery.paths), "cuts": rows,
        }  # fmt: skip
        if (arrays := context.cache.load(dependencies)) is None:
            probe_PD = probe_rows(context, source.probes, kind)
            rows_GD = source.distractors.rows(kind, gallery.paths)
            bars = relabel(progress, f"{variant}, gallery {number} of {len(suite.galleries)}")
            with name_bad_rows(kind, (source.probes, suite.probe_paths), (source.distractors, gallery.paths)):
                top_CPK, _ = context.search.top_k(probe_PD, rows_GD, MAX_RANK, rows, cosine=cosine, progress=bars)
                score_M = suite.pairs.scores(probe_PD, cosine=cosine)
            rank_CM = [hit_ranks(score_M, probe_M, top_PK) for top_PK in top_CPK]
            hit_CPK = np.stack([probe_hits(rank_M, probe_M, probes, MAX_RANK) for rank_M in rank_CM])
            arrays = context.cache.save(dependencies, {"hit_CPK": hit_CPK})
        hits.append(arrays["hit_CPK"])
        lists += [(size, set_number) for size, set_number, _ in gallery.prefixes]
    return Hits(np.concatenate(hits), lists)


def assign_shot_bands(
    context: EvaluationContext, source: ModelSources, threshold: float, progress: ProgressFn = no_progress
) -> dict[str, np.ndarray]:
    """Returns the probes of each pseudo-shot band (bool [P]), by `direct` similarity to a model's train store.

    Raises UserError as `find_hits` does.
    """
    suite, train = context.suite, source.train
    probe_PD = probe_rows(context, source.probes, "direct")
    dependencies = {
        "what": "shots", "threshold": threshold, "values": content_hash(probe_PD), **context.probe_dependencies(),
        "train": train.fingerprint("direct"),
    }  # fmt: skip
    if (arrays := context.cache.load(dependencies)) is None:
        with name_bad_rows("direct", (source.probes, suite.probe_paths), (train, train.keys)):
            rows_GD = train.rows("direct", train.keys)
            count_P = context.search.count_above(probe_PD, rows_GD, threshold, progress=progress)
        arrays = context.cache.save(dependencies, {"count_P": count_P})
    return pseudo_shot_bands(arrays["count_P"])


def probe_rows(context: EvaluationContext, source: FeatureSource, kind: str) -> np.ndarray:
    """Returns the probes' embeddings, float32 [P,D]; noisy ones are replaced in noise mode `insightface`."""
    suite = context.suite
    rows_PD = np.asarray(source.rows(kind, suite.probe_paths)[: len(suite.probe_paths)])
    return replace_noisy(rows_PD, suite.identity_P, suite.noisy_P, unit=kind in UNIT_KINDS, seed=context.seed)


@contextmanager
def name_bad_rows(
    kind: str, query: tuple[FeatureSource, Sequence[str]], database: tuple[FeatureSource, Sequence[str]]
) -> Iterator[None]:
    """Converts a BadRow error to a UserError that names the file and the image of the row."""
    try:
        yield
    except BadRow as error:
        source, images = query if error.side == "query" else database
        raise UserError(f"{source.path}: {kind} of {images[error.row]!r} {error.reason}") from error


def report_rows(
    suite: Suite, groups: Sequence[ProbeGroup], hits: Hits, ranks: Sequence[int], level: float
) -> list[dict[str, Any]]:
    """Returns the report's rows: the rates of all groups among the most distractors, at each of `ranks`."""
    return [
        {
            "rank": rank,
            "distractors": hits.sizes_S[-1],
            "figures": _group_rates(suite, groups, hits.mean_hit_P(rank), level),
        }
        for rank in sorted(set(ranks))
    ]


def _group_rates(suite: Suite, groups: Sequence[ProbeGroup], hit_P: np.ndarray, level: float) -> list[dict[str, Any]]:
    """Returns rate, interval and counts of each group; `hit_P` are the hits of each probe, averaged over sets.

    A group without pairs has the rate None; one with pairs of fewer than two identities has no interval. One whose
    pairs all end the same takes the intraclass correlation of all pairs.
    """
    hit_GI, pair_GI = (sum_by_identity(suite, groups, count_P) for count_P in (hit_P, suite.pairs_P))
    counts = ClusteredCounts.by_identity(hit_GI, pair_GI)
    whole = all_probes_position(groups)
    intervals = rate_intervals(counts, level=level, pooled=counts.only([whole]))
    return [
        {
            "name": group.name,
            "group": group.group,
            "rate": intervals.rate_F[g],
            "low": intervals.low_F[g],
            "high": intervals.high_F[g],
            "pairs": int(pair_GI[g].sum()),
            "probes": int(group.mask_P.sum()),
            "identities": len(np.unique(suite.identity_P[group.mask_P])),
        }
        for g, group in enumerate(groups)
    ]


def sum_by_identity(suite: Suite, groups: Sequence[ProbeGroup], count_P: np.ndarray) -> np.ndarray:
    """Returns the sum of `count_P` over each identity's probes in each group, float64 [G,I]."""
    identities = len(suite.names)
    return np.stack([np.bincount(suite.identity_P, count_P * group.mask_P, identities) for group in groups])


def size_curve(suite: Suite, hits: Hits, level: float) -> dict[str, Any]:
    """Returns the rank-1 rate of all pairs against the number of distractors, with intervals."""
    identities = len(suite.names)
    hit_SP = hits.hit_SPK[:, :, 0] / hits.sets_S[:, None]
    hit_SI = np.stack([np.bincount(suite.identity_P, hit_P, identities) for hit_P in hit_SP])
    pair_SI = np.broadcast_to(np.bincount(suite.identity_P, suite.pairs_P, identities), hit_SI.shape)
    intervals = rate_intervals(ClusteredCounts.by_identity(hit_SI, pair_SI), level=level)
    limits = {"rate": intervals.rate_F, "low": intervals.low_F, "high": intervals.high_F}
    return {"rank": 1, "sizes": hits.sizes_S, **limits}


def cmc_curve(suite: Suite, hits: Hits) -> dict[str, Any]:
    """Returns the cumulative match characteristic among the most distractors."""
    hit_K = hits.hit_SPK[-1].sum(axis=0) / hits.sets_S[-1]
    pairs = len(suite.pairs)
    rate_K = [float(hit / pairs) if pairs else None for hit in hit_K]
    return {"distractors": hits.sizes_S[-1], "ranks": list(range(1, len(hit_K) + 1)), "rate": rate_K}
