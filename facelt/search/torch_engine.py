"""Search engine: torch's matrix products, on the CPU or a GPU.

If the processor has fast bfloat16 products, rows are rounded to bfloat16, which bounds the error of a product:
|q.g - q'.g'| <= |q - q'| |g| + |q'| |g - g'|. All pairs within that bound of a floor are returned, so results do not
depend on the rounding. Otherwise products are float32.

P probes, Q some of them, B rows of a block, T of a tile, R groups of rows, D feature, K neighbours, M pairs, N rows or
neighbours, H groups of scores, G scores of a group.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from facelt.search import engine
from facelt.search.engine import ScoredPairs

if TYPE_CHECKING:
    import torch

# Relative rounding of bfloat16's 8 bits: of a value, so also of a row by its norm.
BFLOAT16_ROUNDING = 2.0**-8
# Relative error of float32 sums inside a bfloat16 product.
_SUM_ERROR = 2.0**-12
# Candidates of a sort as a multiple of k, so that the error rarely leaves the k best undecided.
SORT_FACTOR = 4
# If more pairs than this multiple of k per query row pass the floors, sorting is cheaper.
MAX_PASSING_FACTOR = 8
# Rows whose greatest score is compared with the floor first; few groups have a score above it.
_GROUP = 16
# If more than one group in this many passes, all scores are compared.
_DENSE = 16


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
    """Returns whether bfloat16 products are the faster ones: with AMX they are; with AVX512_BF16 alone it is measured.

    Processors differ: an Intel Xeon whose AMX was switched off had half the rate of float32 with AVX512_BF16.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16", False):
        return True
    return capabilities.get("avx512_bf16", False) and _product_seconds(torch.bfloat16) < _product_seconds(torch.float32)


def _product_seconds(dtype: "torch.dtype") -> float:
    """Returns the shortest of a few times of one product on the CPU, after one to set it up."""
    import torch

    left, right = torch.ones((512, 512), dtype=dtype), torch.ones((512, 1024), dtype=dtype)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


class TorchScorer:
    """Scorer on a torch device."""

    def __init__(self, query_PD: np.ndarray, device: "torch.device", bfloat16: bool) -> None:
        import torch

        # float32 products must be float32, and so must the sums of bfloat16 products.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self.device, self.dtype = device, torch.bfloat16 if bfloat16 else torch.float32
        self.score_rounding = BFLOAT16_ROUNDING if bfloat16 else 0.0
        exact_PD = self._on_device(query_PD)
        self.query_PD = exact_PD.to(self.dtype)
        # Products by rows of the transposed matrix are faster if these are contiguous.
        self.query_DP = self.query_PD.T.contiguous()
        self.query_error = _max_relative_error(exact_PD, self.query_PD) if bfloat16 and len(query_PD) else 0.0
        self.tile = max(1, engine.MAX_TILE_SCORES // max(1, len(query_PD)))
        if self.tile > _GROUP:
            self.tile -= self.tile % _GROUP
        self._score_TP = torch.empty((-(-self.tile // _GROUP) * _GROUP, len(query_PD)), dtype=self.dtype, device=device)

    def set_block(self, block_BD: np.ndarray) -> float:
        """See Scorer.set_block."""
        import torch

        self.block_BD = self._on_device(block_BD).to(self.dtype)
        if self.dtype == torch.float32:
            return 0.0
        return 1.01 * (self.query_error + BFLOAT16_ROUNDING * (1 + self.query_error)) + _SUM_ERROR

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
        """See Scorer.range_search; of pairs just below the floor, some are returned as well."""
        yield from self._above_floors(np.full(len(self.query_PD), floor))

    def _on_device(self, rows_ND: np.ndarray) -> "torch.Tensor":
        import torch

        return torch.from_numpy(np.require(rows_ND, requirements=["C", "W"])).to(self.device)

    def _above_floors(self, floor_P: np.ndarray) -> Iterator[ScoredPairs]:
        """Yields pairs whose product is at least the floor, one tile of the block's rows at a time."""
        import torch

        # Rounding keeps the order, so what is at least the floor is, once rounded, at least the floor rounded down.
        floor_P = _rounded_down(floor_P, bfloat16=self.dtype == torch.bfloat16)
        probes = max(1, len(floor_P))
        for start in range(0, len(self.block_BD), self.tile):
            block_TD = self.block_BD[start : start + self.tile]
            score_TP = torch.mm(block_TD, self.query_DP, out=self._score_TP[: len(block_TD)])
            if self.device.type == "cpu":
                flat_M = torch.from_numpy(self._flat_above(len(block_TD), floor_P))
            else:
                floor_1P = torch.from_numpy(floor_P[None]).to(self.device, self.dtype)
                flat_M = (score_TP >= floor_1P).flatten().nonzero().squeeze(1)
            score_M = score_TP.flatten()[flat_M].float().cpu().numpy()
            row_M, query_M = np.divmod(flat_M.cpu().numpy(), probes)
            yield query_M, row_M + start, score_M

    def _flat_above(self, rows: int, floor_P: np.ndarray) -> np.ndarray:
        """Returns the flat positions, ascending within a group of rows, of the tile's scores at or above the floors.

        numpy compares several times faster than torch. It has no bfloat16, but positive floats are ordered as their
        bits are.
        """
        import torch

        padded = -(-rows // _GROUP) * _GROUP
        self._score_TP[rows:padded] = -torch.inf
        score_TP = self._score_TP[:padded]
        if self.dtype == torch.bfloat16 and (floor_P > 0).all():
            score_TP, floor_P = score_TP.view(torch.int16), (floor_P.view(np.int32) >> 16).astype(np.int16)
        elif self.dtype == torch.bfloat16:
            score_TP = score_TP.float()
        score_RGP = score_TP.view(padded // _GROUP, _GROUP, len(floor_P))
        passes_RP = score_RGP.amax(dim=1).numpy() >= floor_P
        flat_H = np.flatnonzero(passes_RP)
        if len(flat_H) * _DENSE > passes_RP.size:
            return np.flatnonzero(score_TP[:rows].numpy() >= floor_P)
        group_H, query_H = np.divmod(flat_H, max(1, len(floor_P)))
        pair_M, offset_M = np.nonzero(score_RGP.numpy()[group_H, :, query_H] >= floor_P[query_H, None])
        return (group_H[pair_M] * _GROUP + offset_M) * len(floor_P) + query_H[pair_M]

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
        omitted_P = np.full(probes, -np.inf)
        if count < rows:
            last_P = score_PN[:, -1].astype(np.float64)
            omitted_P = last_P + self.score_rounding * np.abs(last_P)
        return (np.repeat(np.arange(probes), count), row_PN.ravel(), score_PN.ravel()), omitted_P


def _max_relative_error(exact_ND: "torch.Tensor", row_ND: "torch.Tensor") -> float:
    """Returns the largest distance between corresponding rows, relative to the norm of the exact row."""
    error_N = (row_ND - exact_ND).norm(dim=1) / exact_ND.norm(dim=1).clamp_min(1e-30)
    return float(error_N.max())


def _rounded_down(floor_P: np.ndarray, *, bfloat16: bool) -> np.ndarray:
    """Returns the largest float32 values, or bfloat16 values as float32, that are at most the floors."""
    low_P = floor_P.astype(np.float32)
    low_P = np.where(low_P > floor_P, np.nextafter(low_P, np.float32(-np.inf)), low_P)
    if not bfloat16:
        return low_P
    bits_P = low_P.view(np.uint32)
    # Bits grow with the magnitude: a negative value with bits to drop becomes the next larger magnitude.
    bits_P = bits_P + np.where((low_P < 0) & (bits_P & 0xFFFF > 0), np.uint32(1 << 16), np.uint32(0))
    return (bits_P & np.uint32(0xFFFF0000)).view(np.float32)


def _concatenate(tiles: list[ScoredPairs]) -> ScoredPairs:
    """Returns the pairs of all tiles."""
    if not tiles:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    query_M, row_M, score_M = (np.concatenate(parts) for parts in zip(*tiles, strict=True))
    return query_M, row_M, score_M
