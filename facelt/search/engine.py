"""What a search engine must do for one block; all else (streaming, exact scores, merging, ties) is common to all.

P probes, B rows of a block, D feature, M pairs.
"""

import importlib.util
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np

from facelt.errors import UserError

EngineName = Literal["auto", "faiss", "torch"]

# Scores held at once; the pairs above a low threshold can be nearly as many.
SCORES = 1 << 22

# From so many pairs on the time that importing torch takes is made up for: a search of a million by two thousand.
WORTH_TORCH = 1 << 31

# Query row [M], block row [M], score [M].
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


class Scorer(Protocol):
    """Inner products of one query with one block after another, rounded as `take` says."""

    def take(self, block_BD: np.ndarray) -> float:
        """Turn to a block. Returns the error beyond a float32 product's, as a share of the lengths of both rows."""
        ...

    def best(self, k: int, floor_P: np.ndarray) -> tuple[Pairs, np.ndarray]:
        """Pairs that score at least `floor_P`, as many of them as are among each query row's k best.

        Also how much a pair that was left out can score [P]: -inf where none at or above the floor was.
        """
        ...

    def above(self, floor: float) -> Iterator[Pairs]:
        """All pairs that score more than `floor`, in pieces of no more than SCORES pairs."""
        ...


class Engine(Protocol):
    """Scores may be rounded: `top_k` and `count_above` compute again what is close."""

    name: str

    def open(self, query_PD: np.ndarray) -> Scorer:
        """A scorer for the rows of a query, float32."""
        ...


def open_engine(name: EngineName = "auto", pairs: int = 0) -> Engine:
    """The engine of that name; `auto` is faiss where it is installed, else torch.

    With many `pairs` to score `auto` is torch where that has bfloat16 products, which are several times as fast. Raises
    UserError where the engine, or with `auto` either, is not installed.
    """
    installed = [package for package in ("faiss", "torch") if importlib.util.find_spec(package)]
    chosen = name if name != "auto" else next(iter(installed), None)
    if name == "auto" and "torch" in installed and pairs >= WORTH_TORCH:
        from facelt.search.torch_engine import TorchEngine

        if "faiss" not in installed or (engine := TorchEngine()).bfloat16:
            return engine
    if chosen not in installed:
        what = f"{name!r} is not installed" if chosen else "neither faiss nor torch is installed"
        raise UserError(
            f"search.engine: {what}; in facelt's folder, pip install '.[cpu]' brings faiss and '.[train]' torch"
        )
    if chosen == "faiss":
        from facelt.search.faiss_engine import FaissEngine

        return FaissEngine()
    from facelt.search.torch_engine import TorchEngine

    return TorchEngine()
