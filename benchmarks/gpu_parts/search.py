"""MegaFace's search on the device: the torch engine against torch.mm and topk, and its exactness.

P probes, Q some of them, G gallery rows, D feature, K neighbours, N rows.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.gpu_parts.workload import Figures, Workload
from benchmarks.megaface import CHUNK, PROBE_IDENTITIES, PROBES, RANKS, SyntheticVectors
from facelt.search.top_k import top_k
from facelt.search.torch_engine import TorchEngine

DISTRACTORS, FIRST_DISTRACTOR = 1_000_000, 1_000_000
# float64 scores of one product, 4 GB.
MAX_SCORES = 1 << 29


def megaface_search(workload: Workload) -> Figures:
    """Times the exact search of all probes among all distractors in host memory, float16 as embedding stores are.

    torch.mm and topk work in float32 on the same rows: from host memory, and with the rows on the device.
    """
    probes, distractors = workload.count(PROBES, least=20), workload.count(DISTRACTORS, least=2000)
    probe_PD = draw_rows(np.arange(probes) % PROBE_IDENTITIES)
    row_GD = draw_rows(FIRST_DISTRACTOR + np.arange(distractors))
    engine = TorchEngine(str(workload.device))
    engine_s, (score_SPK, id_SPK) = _timed(
        workload, lambda: top_k(probe_PD.numpy(), row_GD.numpy(), RANKS, cosine=True, engine=engine)
    )
    probe_QD = _unit_rows(probe_PD, workload.device)
    host_s, _ = _timed(workload, lambda: _mm_topk(probe_QD, _unit_rows(row_GD, workload.device)))
    resident_GD = _unit_rows(row_GD, workload.device)
    resident_s, _ = _timed(workload, lambda: _mm_topk(probe_QD, resident_GD))
    exact_GD = _unit_rows(row_GD, workload.device, torch.float64)
    exact_PK, id_PK = _mm_topk(_unit_rows(probe_PD, workload.device, torch.float64), exact_GD)
    return {
        "seconds": engine_s,
        "times_mm": engine_s / host_s,
        "times_mm_resident": engine_s / resident_s,
        "wrong_ids": int((id_SPK[0] != id_PK.cpu().numpy()).sum()),
        "score_error": float(np.abs(score_SPK[0] - exact_PK.cpu().numpy()).max()),
        "products": "in bfloat16, scores exact" if engine.bfloat16 else "in float32, scores exact",
    }


def draw_rows(identity_N: np.ndarray) -> torch.Tensor:
    """Returns one synthetic unit vector of each identity, float16 [N,D]; chunks are drawn in threads."""
    starts = range(0, len(identity_N), CHUNK)
    with ThreadPoolExecutor() as pool:
        chunks = pool.map(lambda start: _draw_chunk(identity_N[start : start + CHUNK], start), starts)
        return torch.cat(list(chunks))


def _draw_chunk(identity_N: np.ndarray, start: int) -> torch.Tensor:
    seed = int(identity_N[0]) + start
    return torch.from_numpy(SyntheticVectors(seed).images(identity_N).astype(np.float16))


def _unit_rows(row_ND: torch.Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return F.normalize(row_ND.to(device).to(dtype), dim=1)


def _mm_topk(probe_PD: torch.Tensor, row_GD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the best scores and positions [P,K]."""
    parts = probe_PD.split(max(1, MAX_SCORES // len(row_GD)))
    best = [torch.mm(probe_QD, row_GD.t()).topk(min(RANKS, len(row_GD)), dim=1) for probe_QD in parts]
    return torch.cat([part.values for part in best]), torch.cat([part.indices for part in best])


def _timed(workload: Workload, search: Callable[[], tuple]) -> tuple[float, tuple]:
    """Returns the seconds of the better of two searches and its result, after one to warm up."""
    best, result = float("inf"), search()
    for _ in range(2):
        if workload.device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        result = search()
        if workload.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best, result
