"""MegaFace's identification protocol for one model and one kind of embedding.

P probes, S sizes, C lists (a size and a set each), K ranks, M pairs, D feature.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from eval_megaface.config import DEEPEST_RANK, Kind
from eval_megaface.coverage import fingerprint
from eval_megaface.features import FeatureSource
from eval_megaface.lists import Gallery
from eval_megaface.noise import replace_noisy
from eval_megaface.parts import Parts
from eval_megaface.sources import ModelSources
from eval_megaface.suite import Suite
from facelt.errors import UserError
from facelt.identification import hit_ranks, probe_hits
from facelt.metrics.shots import pseudo_shot_bands
from facelt.search import BadRow, Search
from facelt.store import UNIT_KINDS

# Told how many rows a search has done.
Advance = Callable[[int], None]
# Begins a piece of work of so many rows and says how to report them done.
Begin = Callable[[str, int], Advance]


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


def measure(run: Run, source: ModelSources, kind: Kind, advance: Advance | None = None) -> Hits:
    """Search every gallery once with every probe and rank every pair; what an earlier run finished is not done again.

    Kinds of length one are compared by their cosine, so that what float16 takes from a length does not count; `meta` by
    the inner product. Raises UserError naming the source and the images that are missing, not finite or zero.
    """
    embeddings = {"kind": kind, "embeddings": source.fingerprint(kind)}
    hits, cuts = [], []
    for gallery in run.suite.galleries:
        lists = {"gallery": fingerprint(gallery.paths), "cuts": [rows for _, _, rows in gallery.cuts]}
        part = run.parts.get(
            {"what": "hits", "ranks": DEEPEST_RANK, **embeddings, **run.probes(), **lists},
            partial(_search_gallery, run, source, kind, gallery, advance),
        )
        hits.append(part["hit_CPK"])
        cuts += [(size, number) for size, number, _ in gallery.cuts]
    return Hits(np.concatenate(hits), cuts)


def _search_gallery(
    run: Run, source: ModelSources, kind: Kind, gallery: Gallery, advance: Advance | None
) -> dict[str, np.ndarray]:
    """The hits for each of a gallery's lists, int64 [C,P,K]."""
    suite, cosine = run.suite, kind in UNIT_KINDS
    probe_PD = probe_rows(suite, source.probes, kind, run.seed)
    rows_GD = source.distractors.rows(kind, gallery.paths)
    with naming(kind, (source.probes, suite.probe_paths), (source.distractors, gallery.paths)):
        sizes = [rows for _, _, rows in gallery.cuts]
        top_CPK, _ = run.search.top_k(probe_PD, rows_GD, DEEPEST_RANK, sizes, cosine=cosine, advance=advance)
        score_M = suite.pairs.scores(probe_PD, cosine=cosine)
    probe_M, probes = suite.pairs.probe_M, len(probe_PD)
    hits = [probe_hits(hit_ranks(score_M, probe_M, top_PK), probe_M, probes, DEEPEST_RANK) for top_PK in top_CPK]
    return {"hit_CPK": np.stack(hits)}


def shot_bands(
    run: Run, source: ModelSources, threshold: float, advance: Advance | None = None
) -> dict[str, np.ndarray]:
    """The probes of each pseudo-shot band (bool [P]), by the `direct` similarities of one model with a train store.

    Raises UserError as `measure` does.
    """
    suite, train = run.suite, source.train
    probe_PD = probe_rows(suite, source.probes, "direct", run.seed)

    def count() -> dict[str, np.ndarray]:
        with naming("direct", (source.probes, suite.probe_paths), (train, train.keys)):
            rows_GD = train.rows("direct", train.keys)
            return {"count_P": run.search.count_above(probe_PD, rows_GD, threshold, advance=advance)}

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
