"""Search engine: torch's matrix products, on the CPU or a GPU.

If the processor has fast bfloat16 products, rows are rounded to bfloat16, and their actual rounding bounds the error of
a score: |q.g - q'.g'| <= |q - q'| |g| + |q'| |g - g'|. All pairs within that bound of a floor are returned, so results
do not depend on the rounding. Otherwise products are float32.

P probes, Q some of them, B rows of a block, T of a tile, D feature, K neighbours, M pairs, N rows or neighbours.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from facelt.search import engine
from facelt.search.engine import ScoredPairs

if TYPE_CHECKING:
    import torch

# Relative error of scores: they are rounded to the 8 bits of bfloat16 (2^-8); the rest is for float32 sums.
OUTPUT_ERROR = 2.0**-8 + 2.0**-12
# Candidates of a sort as a multiple of k, so that the error rarely leaves the k best undecided.
SORT_FACTOR = 4
# Rows per chunk when measuring the rounding of rows: their differences stay in the processor's cache.
_ROUNDING_ROWS = 512
# If more pairs than this multiple of k per query row pass the floors, sorting is cheaper.
MAX_PASSING_FACTOR = 8


class TorchEngine:
    """torch on `device`, by default the first GPU if there is one; `bfloat16` defaults to true if it is fast there."""

    name = "torch"

    def __init__(self, device: str | None = None, *, bfloat16: bool | None = None) -> None:
        import torch

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.bfloat16 = _has_bfloat16(self.device) if bfloat16 is None else bfloat16

    def open(self, query_PD: np.ndarray) -> "TorchScorer":
        """See Engine.open."""
        return TorchScorer(query_PD, self.device, self.bfloat16)


def _has_bfloat16(device: "torch.device") -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu.get_capabilities().get("amx_bf16", False)


class TorchScorer:
    """Scorer on a torch device."""

    def __init__(self, query_PD: np.ndarray, device: "torch.device", bfloat16: bool) -> None:
        import torch

        # float32 products must be float32, and so must the sums of bfloat16 products.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self.device, self.dtype = device, torch.bfloat16 if bfloat16 else torch.float32
        self.query_PD, self.query_error = self._rounded(query_PD)

    def set_block(self, block_BD: np.ndarray) -> float:
        """See Scorer.set_block."""
        import torch

        self.block_BD, block_error = self._rounded(block_BD)
        if self.dtype == torch.float32:
            return 0.0
        return 1.01 * (self.query_error + block_error + self.query_error * block_error) + OUTPUT_ERROR

    def topk(self, k: int, floor_P: np.ndarray) -> tuple[ScoredPairs, np.ndarray]:
        """See Scorer.topk: the pairs above the floors or, if they are too many, the best by a sort."""
        probes, rows = len(self.query_PD), len(self.block_BD)
        if np.isfinite(floor_P).all():
            tiles, count = [], 0
            for tile in self._above_floors(floor_P):
                tiles.append(tile)
                count += len(tile[0])
                if count > MAX_PASSING_FACTOR * k * probes:
                    break
            else:
                return _concatenate(tiles), np.full(probes, -np.inf)
        return self._sorted_topk(min(SORT_FACTOR * k, rows))

    def range_search(self, floor: float) -> Iterator[ScoredPairs]:
        """See Scorer.range_search."""
        yield from self._above_floors(np.full(len(self.query_PD), floor))

    def _rounded(self, rows_ND: np.ndarray) -> tuple["torch.Tensor", float]:
        """Returns the rows on the device in the working dtype, and their largest relative rounding error."""
        import torch

        exact_ND = torch.from_numpy(np.require(rows_ND, requirements=["C", "W"])).to(self.device)
        row_ND = exact_ND.to(self.dtype)
        if self.dtype == torch.float32 or not len(row_ND):
            return row_ND, 0.0
        errors = map(_max_relative_error, exact_ND.split(_ROUNDING_ROWS), row_ND.split(_ROUNDING_ROWS))
        return row_ND, float(torch.stack(list(errors)).max())

    def _above_floors(self, floor_P: np.ndarray) -> Iterator[ScoredPairs]:
        """Yields pairs that score at least the floors, one tile of the block's rows at a time."""
        # Floors are float64: everything at or above a floor is above the next smaller float32.
        floor_P = np.nextafter(floor_P.astype(np.float32), np.float32(-np.inf))
        tile = max(1, engine.MAX_TILE_SCORES // max(1, len(floor_P)))
        for start in range(0, len(self.block_BD), tile):
            score_PT = self.query_PD @ self.block_BD[start : start + tile].T
            flat_M = _above(score_PT, floor_P)
            score_M = score_PT.flatten()[flat_M].float().cpu().numpy()
            query_M, row_M = np.divmod(flat_M.cpu().numpy(), score_PT.shape[1])
            yield query_M, row_M + start, score_M

    def _sorted_topk(self, count: int) -> tuple[ScoredPairs, np.ndarray]:
        """Returns the `count` best pairs of each query row, computed for a few query rows at a time."""
        probes, rows = len(self.query_PD), len(self.block_BD)
        step = max(1, engine.MAX_TILE_SCORES // max(1, rows))
        score_PN = np.empty((probes, count), dtype=np.float32)
        row_PN = np.empty((probes, count), dtype=np.int64)
        for start in range(0, probes, step):
            part = slice(start, start + step)
            score_QN, row_QN = (self.query_PD[part] @ self.block_BD.T).float().topk(count, dim=1)
            score_PN[part], row_PN[part] = score_QN.cpu().numpy(), row_QN.cpu().numpy()
        omitted_P = np.full(probes, -np.inf) if count == rows else score_PN[:, -1].astype(np.float64)
        return (np.repeat(np.arange(probes), count), row_PN.ravel(), score_PN.ravel()), omitted_P


def _max_relative_error(exact_BD: "torch.Tensor", row_BD: "torch.Tensor") -> "torch.Tensor":
    """Returns the largest distance between corresponding rows, relative to the norm of the exact row."""
    return ((row_BD - exact_BD).norm(dim=1) / exact_BD.norm(dim=1).clamp_min(1e-30)).max()


def _above(score_PT: "torch.Tensor", floor_P: np.ndarray) -> "torch.Tensor":
    """Returns the flat positions of scores above the floors, int64 [M] on the device of the scores."""
    import torch

    if score_PT.device.type == "cpu":
        # numpy compares several times faster than torch. It has no bfloat16, but positive floats are ordered as their
        # bits are, and a score above a floor is above the upper 16 bits of the floor.
        if score_PT.dtype == torch.float32:
            return torch.from_numpy(np.flatnonzero(score_PT.numpy() > floor_P[:, None]))
        if (floor_P > 0).all():
            bits_P = (floor_P.view(np.int32) >> 16).astype(np.int16)
            return torch.from_numpy(np.flatnonzero(score_PT.view(torch.int16).numpy() > bits_P[:, None]))
    floor_P1 = torch.from_numpy(floor_P[:, None]).to(score_PT.device)
    return (score_PT > floor_P1).flatten().nonzero().squeeze(1)


def _concatenate(tiles: list[ScoredPairs]) -> ScoredPairs:
    """Returns the pairs of all tiles."""
    if not tiles:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    query_M, row_M, score_M = (np.concatenate(parts) for parts in zip(*tiles, strict=True))
    return query_M, row_M, score_M
