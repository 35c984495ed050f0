"""What a run has finished, kept in its folder, so that an interrupted one goes on where it stopped.

MegaFace's identification protocol for one model and one kind of embedding.

P probes, S sizes, C lists (a size and a set each), K ranks, M pairs, D feature.

From hits of probes to the numbers of a report: rates with intervals for every group, curves and CMC.

P probes, I identities, F figures, S sizes, K ranks.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eval_megaface.config import DEEPEST_RANK, IntervalConfig
from eval_megaface.sources import FeatureSource, Measured, ModelSources, fingerprint
from eval_megaface.suite import Gallery, Group, Suite, replace_noisy
from facelt.config.base import EmbeddingKind
from facelt.errors import UserError
from facelt.identification.rank import hit_ranks, probe_hits, pseudo_shot_bands
from facelt.search.exact import BadRow
from facelt.search.search import Search
from facelt.stats.resampling import bootstrap_rates
from facelt.store.store import UNIT_KINDS
from recordio_tools.atomic_io import atomic_replace
from recordio_tools.progress import ProgressFn, no_progress, relabel

Arrays = dict[str, np.ndarray]
# Part of every name: raised when what a part holds, or how it is computed, changes.
VERSION = 1


class Parts:
    """Results by all they depend on: another value, list or setting gives another name, so no part is ever stale.

    Looked for once, at the start: processes that share a run must agree on what there is. Only the one that `writes`
    adds to it.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self._folder, self._writes = folder, writes
        self._known = {path.name for path in folder.glob("*.npz")}

    def get(self, depends_on: Mapping[str, Any], compute: Callable[[], Arrays]) -> Arrays:
        """The arrays that depend on what is given (JSON), computed where they are not there yet.

        Raises UserError on a part that is damaged or cannot be written, and whatever `compute` raises.
        """
        text = json.dumps({"version": VERSION, **depends_on}, sort_keys=True)
        path = self._folder / f"{fingerprint(text)[:32]}.npz"
        if path.name in self._known:
            return _load(path)
        arrays = compute()
        if self._writes:
            _save(path, arrays)
        return arrays


def _load(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        # Whatever zip and numpy make of damaged bytes.
        raise UserError(f"{path}: is damaged ({error}); remove it and run again") from error


def _save(path: Path, arrays: Arrays) -> None:
    with atomic_replace(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


@dataclass(frozen=True, eq=False)
class Run:
    """What all measurements of one run share; `seed` is the noise mode's."""

    suite: Suite
    search: Search
    parts: Parts
    seed: int

    def probes(self) -> dict[str, Any]:
        """What a result depends on for its probes, beside their embeddings."""
        replaced = fingerprint(self.suite.noisy_P, str(self.seed)) if self.suite.noisy_P.any() else None
        return {"probes": fingerprint(self.suite.probe_paths), "replaced": replaced}


@dataclass(frozen=True, eq=False)
class Hits:
    """Pairs of each probe that are hits at ranks 1..20, for every list: int64 [C,P,K], `cuts` its size and set."""

    hit_CPK: np.ndarray
    cuts: list[tuple[int, int]]

    @property
    def sizes_S(self) -> list[int]:
        """The sizes, ascending."""
        return sorted({size for size, _ in self.cuts})

    @property
    def sets_S(self) -> np.ndarray:
        """How many sets each size has: a rate at size s divides by sets_S[s] times the pairs."""
        sizes = [size for size, _ in self.cuts]
        return np.array([sizes.count(size) for size in self.sizes_S])

    @property
    def hit_SPK(self) -> np.ndarray:
        """Summed over the sets of a size, int64 [S,P,K]."""
        sizes = np.array([size for size, _ in self.cuts])
        return np.stack([self.hit_CPK[sizes == size].sum(axis=0) for size in self.sizes_S])


def measure(run: Run, measured: Measured, progress: ProgressFn = no_progress) -> Hits:
    """Search every gallery once with every probe and rank every pair; what an earlier run finished is not done again.

    Kinds of length one are compared by their cosine, so that what float16 takes from a length does not count; `meta` by
    the inner product. Raises UserError naming the source and the images that are missing, not finite or zero.
    """
    source, kind = measured.source, measured.kind
    embeddings = {"kind": kind, "embeddings": source.fingerprint(kind)}
    hits, cuts = [], []
    for number, gallery in enumerate(run.suite.galleries, start=1):
        label = f"{measured}, gallery {number} of {len(run.suite.galleries)}"
        lists = {"gallery": fingerprint(gallery.paths), "cuts": [rows for _, _, rows in gallery.cuts]}
        part = run.parts.get(
            {"what": "hits", "ranks": DEEPEST_RANK, **embeddings, **run.probes(), **lists},
            partial(_search_gallery, run, source, kind, gallery, relabel(progress, label)),
        )
        hits.append(part["hit_CPK"])
        cuts += [(size, number) for size, number, _ in gallery.cuts]
    return Hits(np.concatenate(hits), cuts)


def _search_gallery(
    run: Run, source: ModelSources, kind: EmbeddingKind, gallery: Gallery, progress: ProgressFn
) -> dict[str, np.ndarray]:
    """The hits for each of a gallery's lists, int64 [C,P,K]."""
    suite, cosine = run.suite, kind in UNIT_KINDS
    probe_PD = probe_rows(suite, source.probes, kind, run.seed)
    rows_GD = source.distractors.rows(kind, gallery.paths)
    with naming(kind, (source.probes, suite.probe_paths), (source.distractors, gallery.paths)):
        sizes = [rows for _, _, rows in gallery.cuts]
        top_CPK, _ = run.search.top_k(probe_PD, rows_GD, DEEPEST_RANK, sizes, cosine=cosine, progress=progress)
        score_M = suite.pairs.scores(probe_PD, cosine=cosine)
    probe_M, probes = suite.pairs.probe_M, len(probe_PD)
    hits = [probe_hits(hit_ranks(score_M, probe_M, top_PK), probe_M, probes, DEEPEST_RANK) for top_PK in top_CPK]
    return {"hit_CPK": np.stack(hits)}


def shot_bands(
    run: Run, source: ModelSources, threshold: float, progress: ProgressFn = no_progress
) -> dict[str, np.ndarray]:
    """The probes of each pseudo-shot band (bool [P]), by the `direct` similarities of one model with a train store.

    Raises UserError as `measure` does.
    """
    suite, train = run.suite, source.train
    probe_PD = probe_rows(suite, source.probes, "direct", run.seed)

    def count() -> dict[str, np.ndarray]:
        with naming("direct", (source.probes, suite.probe_paths), (train, train.keys)):
            rows_GD = train.rows("direct", train.keys)
            return {"count_P": run.search.count_above(probe_PD, rows_GD, threshold, progress=progress)}

    depends_on = {"what": "shots", "threshold": threshold, "values": fingerprint(probe_PD), **run.probes()}
    part = run.parts.get({**depends_on, "train": train.fingerprint("direct")}, count)
    return pseudo_shot_bands(part["count_P"])


def probe_rows(suite: Suite, source: FeatureSource, kind: str, seed: int) -> np.ndarray:
    """The probes' embeddings, float32 [P,D], noisy ones replaced where the suite says so."""
    rows_PD = np.asarray(source.rows(kind, suite.probe_paths)[: len(suite.probe_paths)])
    return replace_noisy(rows_PD, suite.identity_P, suite.noisy_P, unit=kind in UNIT_KINDS, seed=seed)


@contextmanager
def naming(
    kind: str, query: tuple[FeatureSource, Sequence[str]], database: tuple[FeatureSource, Sequence[str]]
) -> Iterator[None]:
    """Turn the position of a row that cannot be scored into the file and the image it belongs to."""
    try:
        yield
    except BadRow as error:
        source, images = query if error.side == "query" else database
        raise UserError(f"{source.path}: {kind} of {images[error.row]!r} {error.reason}") from error


def group_figures(
    suite: Suite, groups: Sequence[Group], hit_P: np.ndarray, interval: IntervalConfig
) -> list[dict[str, Any]]:
    """One figure a group: rate over its pairs, interval, counts. `hit_P` are hits of each probe, averaged over sets.

    A group without pairs has the rate None; one with pairs of fewer than two identities has no interval.
    """
    identities = len(suite.names)
    hit_FI = np.stack([np.bincount(suite.identity_P, hit_P * group.mask_P, identities) for group in groups])
    pair_FI = np.stack([np.bincount(suite.identity_P, suite.pairs_P * group.mask_P, identities) for group in groups])
    low_F, high_F = _intervals(hit_FI, pair_FI, interval)
    return [
        {
            "name": group.name,
            "group": group.group,
            "rate": float(hit_I.sum() / pair_I.sum()) if pair_I.sum() else None,
            "low": _number(low),
            "high": _number(high),
            "pairs": int(pair_I.sum()),
            "probes": int(group.mask_P.sum()),
            "identities": len(np.unique(suite.identity_P[group.mask_P])),
        }
        for group, hit_I, pair_I, low, high in zip(groups, hit_FI, pair_FI, low_F, high_F, strict=True)
    ]


def rows(
    suite: Suite, groups: Sequence[Group], hits: Hits, ranks: Sequence[int], interval: IntervalConfig
) -> list[dict[str, Any]]:
    """The report's rows: all figures among the most distractors, at each of `ranks`."""
    return [
        {
            "rank": rank,
            "distractors": hits.sizes_S[-1],
            "figures": group_figures(suite, groups, hits.hit_SPK[-1, :, rank - 1] / hits.sets_S[-1], interval),
        }
        for rank in sorted(set(ranks))
    ]


def curve(suite: Suite, hits: Hits, interval: IntervalConfig) -> dict[str, Any]:
    """Rank 1 over all pairs against the number of distractors."""
    identities = len(suite.names)
    hit_SP = hits.hit_SPK[:, :, 0] / hits.sets_S[:, None]
    hit_SI = np.stack([np.bincount(suite.identity_P, hit_P, identities) for hit_P in hit_SP])
    pair_SI = np.broadcast_to(np.bincount(suite.identity_P, suite.pairs_P, identities), hit_SI.shape)
    low_S, high_S = _intervals(hit_SI, pair_SI, interval)
    pairs = len(suite.pairs)
    return {
        "rank": 1,
        "sizes": hits.sizes_S,
        "rate": [float(hit_I.sum() / pairs) if pairs else None for hit_I in hit_SI],
        "low": [_number(low) for low in low_S],
        "high": [_number(high) for high in high_S],
    }


def cmc(suite: Suite, hits: Hits) -> dict[str, Any]:
    """The cumulative match characteristic among the most distractors."""
    hit_K = hits.hit_SPK[-1].sum(axis=0) / hits.sets_S[-1]
    pairs = len(suite.pairs)
    return {
        "distractors": hits.sizes_S[-1],
        "ranks": list(range(1, len(hit_K) + 1)),
        "rate": [float(hit / pairs) if pairs else None for hit in hit_K],
    }


def _intervals(hit_FI: np.ndarray, pair_FI: np.ndarray, interval: IntervalConfig) -> tuple[np.ndarray, np.ndarray]:
    return bootstrap_rates(hit_FI, pair_FI, replicates=interval.replicates, level=interval.level, seed=interval.seed)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
