"""Exact search by torch's matrix products, on the CPU or a GPU.

Where the processor multiplies bfloat16 fast, rows are rounded to it, and by how much they really moved bounds how far a
score can be off: |q.g - q'.g'| <= |q - q'| |g| + |q'| |g - g'|. All within that of a floor is handed over, so that ids
do not depend on it. Elsewhere products are float32.

P probes, Q some of them, B rows of a block, T of a tile, D feature, K neighbours, M pairs, N rows or neighbours.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from facelt.search import engine
from facelt.search.engine import Pairs

if TYPE_CHECKING:
    import torch

# Scores come back rounded to bfloat16's 8 bits, off by up to 2^-8 of themselves; the rest is for sums in float32.
OUTPUT_ERROR = 2.0**-8 + 2.0**-12
# Sorted are this many times k, so that the error seldom leaves it open which are the k best.
SORTED = 4
# Rows looked at together for how far rounding moved them: their differences stay in the processor's cache.
PIECE = 512
# Where more pairs than this many times k a query row pass the floors, sorting is cheaper.
CROWD = 8


class TorchEngine:
    """On `device`, by default the first GPU if there is one. `bfloat16` by default where it is fast."""

    name = "torch"

    def __init__(self, device: str | None = None, *, bfloat16: bool | None = None) -> None:
        import torch

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.bfloat16 = _has_bfloat16(self.device) if bfloat16 is None else bfloat16

    def open(self, query_PD: np.ndarray) -> "TorchScorer":
        """See Engine."""
        return TorchScorer(query_PD, self.device, self.bfloat16)


def _has_bfloat16(device: "torch.device") -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu.get_capabilities().get("amx_bf16", False)


class TorchScorer:
    """See Scorer."""

    def __init__(self, query_PD: np.ndarray, device: "torch.device", bfloat16: bool) -> None:
        import torch

        # What is called float32 is to be float32, and sums of bfloat16 products as well.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self.device, self.dtype = device, torch.bfloat16 if bfloat16 else torch.float32
        self.query_PD, self.query_moved = self._rounded(query_PD)

    def take(self, block_BD: np.ndarray) -> float:
        """See Scorer."""
        import torch

        self.block_BD, moved = self._rounded(block_BD)
        if self.dtype == torch.float32:
            return 0.0
        return 1.01 * (self.query_moved + moved + self.query_moved * moved) + OUTPUT_ERROR

    def best(self, k: int, floor_P: np.ndarray) -> tuple[Pairs, np.ndarray]:
        """See Scorer: what passes the floors, or where that is too much, as at the start, the k best by a sort."""
        probes, rows = len(self.query_PD), len(self.block_BD)
        if np.isfinite(floor_P).all():
            pieces, crowd = [], 0
            for piece in self._passing(floor_P):
                pieces.append(piece)
                crowd += len(piece[0])
                if crowd > CROWD * k * probes:
                    break
            else:
                return _joined(pieces), np.full(probes, -np.inf)
        return self._sorted(min(SORTED * k, rows))

    def above(self, floor: float) -> Iterator[Pairs]:
        """See Scorer."""
        yield from self._passing(np.full(len(self.query_PD), floor))

    def _rounded(self, rows_ND: np.ndarray) -> tuple["torch.Tensor", float]:
        """Rows on the device in the working dtype, and how far one moved at most, as a share of its length."""
        import torch

        exact_ND = torch.from_numpy(np.require(rows_ND, requirements=["C", "W"])).to(self.device)
        row_ND = exact_ND.to(self.dtype)
        if self.dtype == torch.float32 or not len(row_ND):
            return row_ND, 0.0
        moved = map(_moved, exact_ND.split(PIECE), row_ND.split(PIECE))
        return row_ND, float(torch.stack(list(moved)).max())

    def _passing(self, floor_P: np.ndarray) -> Iterator[Pairs]:
        """Pairs that score at least the floors, a tile of the block's rows at a time."""
        # Floors are float64: the next float32 below is passed by all that is at least the floor.
        floor_P = np.nextafter(floor_P.astype(np.float32), np.float32(-np.inf))
        tile = max(1, engine.SCORES // max(1, len(floor_P)))
        for start in range(0, len(self.block_BD), tile):
            score_PT = self.query_PD @ self.block_BD[start : start + tile].T
            flat_M = _above(score_PT, floor_P)
            score_M = score_PT.flatten()[flat_M].float().cpu().numpy()
            query_M, row_M = np.divmod(flat_M.cpu().numpy(), score_PT.shape[1])
            yield query_M, row_M + start, score_M

    def _sorted(self, count: int) -> tuple[Pairs, np.ndarray]:
        """The `count` best pairs of each query row, some query rows at a time."""
        probes, rows = len(self.query_PD), len(self.block_BD)
        step = max(1, engine.SCORES // max(1, rows))
        score_PN = np.empty((probes, count), dtype=np.float32)
        row_PN = np.empty((probes, count), dtype=np.int64)
        for start in range(0, probes, step):
            part = slice(start, start + step)
            score_QN, row_QN = (self.query_PD[part] @ self.block_BD.T).float().topk(count, dim=1)
            score_PN[part], row_PN[part] = score_QN.cpu().numpy(), row_QN.cpu().numpy()
        left_P = np.full(probes, -np.inf) if count == rows else score_PN[:, -1].astype(np.float64)
        return (np.repeat(np.arange(probes), count), row_PN.ravel(), score_PN.ravel()), left_P


def _moved(exact_BD: "torch.Tensor", row_BD: "torch.Tensor") -> "torch.Tensor":
    """How far the row that moved most did, as a share of its length."""
    return ((row_BD - exact_BD).norm(dim=1) / exact_BD.norm(dim=1).clamp_min(1e-30)).max()


def _above(score_PT: "torch.Tensor", floor_P: np.ndarray) -> "torch.Tensor":
    """Positions in the flat tile of what is above the floors, int64 [M] on its device."""
    import torch

    if score_PT.device.type == "cpu":
        # numpy compares several times faster than torch. It knows no bfloat16, but positive floats are in the order of
        # their bits, and what is above a floor is above its upper 16 bits.
        if score_PT.dtype == torch.float32:
            return torch.from_numpy(np.flatnonzero(score_PT.numpy() > floor_P[:, None]))
        if (floor_P > 0).all():
            bits_P = (floor_P.view(np.int32) >> 16).astype(np.int16)
            return torch.from_numpy(np.flatnonzero(score_PT.view(torch.int16).numpy() > bits_P[:, None]))
    floor_P1 = torch.from_numpy(floor_P[:, None]).to(score_PT.device)
    return (score_PT > floor_P1).flatten().nonzero().squeeze(1)


def _joined(pieces: list[Pairs]) -> Pairs:
    """Pieces as one; empty where there is none."""
    if not pieces:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    query_M, row_M, score_M = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return query_M, row_M, score_M
