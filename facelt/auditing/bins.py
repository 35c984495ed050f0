"""Numbers as groups: `--bins age=18,30,45` makes under 18, 18 to under 30, 30 to under 45, and 45 and over."""

import itertools
from collections.abc import Sequence

import numpy as np


def bin_labels(edges: Sequence[float]) -> list[str]:
    """The names of the bins that the edges part, in their order; each begins with its lower edge, which belongs to it.

    Whole edges are shown as `18-<30`: a number of 29.5 belongs there.
    """
    shown = [f"{edge:g}" for edge in edges]
    between = [f"{low}-<{high}" for low, high in itertools.pairwise(shown)]
    return [f"<{shown[0]}", *between, f">={shown[-1]}"]


def binned(values: Sequence[str], edges: Sequence[float]) -> list[str]:
    """The bin of each number, empty where there is none.

    Raises ValueError whose first argument is the position of the first text that is no finite number.
    """
    number_N = np.full(len(values), np.nan)
    for place, text in enumerate(values):
        if not text.strip():
            continue
        try:
            number_N[place] = float(text)
        except ValueError:
            raise ValueError(place) from None
        if not np.isfinite(number_N[place]):
            raise ValueError(place)
    labels = bin_labels(edges)
    bin_N = np.searchsorted(np.asarray(edges, dtype=np.float64), number_N, side="right")
    return ["" if np.isnan(number) else labels[place] for number, place in zip(number_N, bin_N.tolist(), strict=True)]
