"""MegaFace's identification protocol for one model and one kind of embedding.

P probes, S sizes, K ranks, D feature.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from eval_megaface.config import DEEPEST_RANK
from eval_megaface.features import FeatureSource, StoreSource
from eval_megaface.noise import replace_noisy
from eval_megaface.suite import Suite
from facelt.errors import UserError
from facelt.identification import hit_ranks, probe_hits
from facelt.metrics.shots import pseudo_shot_bands
from facelt.search import BadRow, Search
from facelt.store import UNIT_KINDS

# Told how many rows a search has done.
Advance = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Hits:
    """Pairs of each probe that are hits at ranks 1..20, summed over the sets of a size: int64 [S,P,K].

    `sets_S` is how many sets were summed: a rate at size s divides by sets_S[s] times the pairs.
    """

    hit_SPK: np.ndarray
    sizes_S: list[int]
    sets_S: np.ndarray


def measure(
    search: Search,
    suite: Suite,
    probes: FeatureSource,
    distractors: FeatureSource,
    kind: str,
    seed: int,
    advance: Advance | None = None,
) -> Hits:
    """Search every gallery once with every probe and rank every pair. `seed` is the noise mode's.

    Kinds of length one are compared by their cosine, so that what float16 takes from a length does not count; `meta` by
    the inner product. Raises UserError naming the source and the images that are missing, not finite or zero.
    """
    probe_PD = probe_rows(suite, probes, kind, seed)
    cosine = kind in UNIT_KINDS
    sizes = suite.summary["sizes"]
    hit_SPK = np.zeros((len(sizes), len(probe_PD), DEEPEST_RANK), dtype=np.int64)
    sets_S = np.zeros(len(sizes), dtype=np.int64)
    for gallery in suite.galleries:
        rows_GD = distractors.rows(kind, gallery.paths)
        with naming(kind, (probes, suite.probe_paths), (distractors, gallery.paths)):
            top_SPK, _ = search.top_k(
                probe_PD,
                rows_GD,
                DEEPEST_RANK,
                [rows for _, _, rows in gallery.cuts],
                cosine=cosine,
                advance=advance,
            )
            score_M = suite.pairs.scores(probe_PD, cosine=cosine)
        for (size, _, _), top_PK in zip(gallery.cuts, top_SPK, strict=True):
            rank_M = hit_ranks(score_M, suite.pairs.probe_M, top_PK)
            place = sizes.index(size)
            hit_SPK[place] += probe_hits(rank_M, suite.pairs.probe_M, len(probe_PD), DEEPEST_RANK)
            sets_S[place] += 1
    return Hits(hit_SPK, sizes, sets_S)


def shot_bands(
    search: Search,
    suite: Suite,
    probes: FeatureSource,
    train: StoreSource,
    threshold: float,
    seed: int,
    advance: Advance | None = None,
) -> dict[str, np.ndarray]:
    """The probes of each pseudo-shot band (bool [P]), by the `direct` similarities of one model.

    Raises UserError as `measure` does.
    """
    probe_PD = probe_rows(suite, probes, "direct", seed)
    keys = train.keys
    with naming("direct", (probes, suite.probe_paths), (train, keys)):
        return pseudo_shot_bands(search.count_above(probe_PD, train.rows("direct", keys), threshold, advance=advance))


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
