"""Benchmark of MegaFace's evaluation at full size: time and memory, compared with `faiss.knn` on the same searches.

python benchmarks/megaface.py --folder DIR [--distractors 1000000] [--training 887500] [--matrix-distractors 100000]

DIR holds synthetic lists and stores (about 2 GB at full size; unit vectors with identities), which are written once.
Prints one JSON object per line. Programs run one after another, each in a separate process with the given
OMP_NUM_THREADS; memory is the peak anonymous memory (RssAnon), sampled every 20 ms: pages of memory-mapped files do not
count.

- evaluation: `facelt megaface` from the files to the report: search, ranks 1 to 20, all sizes, pseudo-shots, groups.
- lists and keys: the part of it that reads the lists and the items of the stores and finds the rows of listed images.
- faiss.knn: the two searches alone (20 nearest distractors, 5 nearest training rows, which determine a shot band), over
  float32 unit vectors that are in memory before the clock starts.
- full matrix: all P x G scores at once, sorted by row, at --matrix-distractors; then the search of the evaluation for
  the same rates.

P probes, G distractors, D feature, N rows, T rows of a table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recordio_tools.deterministic_random import splitmix64

if TYPE_CHECKING:
    from eval_megaface.config import MegafaceConfig

PROBES, PROBE_IDENTITIES, DIM = 3_530, 80, 512
TRAINING_IDENTITIES = 74_500
NOISY_PROBES, NOISY_DISTRACTORS = 24, 719
CHUNK, TABLE = 1 << 14, 4096
RANKS, SHOTS = 20, 5
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # increment of SplitMix64


class SyntheticVectors:
    """Random unit vectors around a centre for each identity, drawn chunk by chunk.

    A centre is the sum of four rows of one table, which makes similarities of different identities as uneven as those
    of networks.
    """

    def __init__(self, seed: int) -> None:
        self.table_TD = np.random.default_rng(7).standard_normal((TABLE, DIM), dtype=np.float32)
        self.random = np.random.default_rng(seed)

    def images(self, identity_N: np.ndarray) -> np.ndarray:
        """Returns one image of each identity, float32 [N,D], with a cosine of 0.5 to 0.9 to its centre."""
        bits_N = splitmix64(identity_N.astype(np.uint64) * GOLDEN_GAMMA)
        centre_ND = sum(self.table_TD[(bits_N >> np.uint64(16 * word)) % np.uint64(TABLE)] for word in range(4))
        noise_ND = self.random.standard_normal(centre_ND.shape, dtype=np.float32)
        spread_N1 = self.random.uniform(0.4, 1.6, (len(noise_ND), 1)).astype(np.float32)
        return _unit(_unit(centre_ND) + spread_N1 * _unit(noise_ND))


def _unit(rows_ND: np.ndarray) -> np.ndarray:
    return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)


def write_synthetic_suite(folder: Path, distractors: int, training: int) -> None:
    """Writes the lists and stores below `folder`, unless they are complete."""
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    identity_P = random.integers(0, PROBE_IDENTITIES, PROBES + NOISY_PROBES)
    probes = [f"Person_{identity:02}/Person_{identity:02}_{n}.jpg" for n, identity in enumerate(identity_P)]
    _write_store(folder / "probes", probes, identity_P, SyntheticVectors(1))
    # Training identities are numbered from 40: half of the probe identities occur in training, with one to many images.
    share_C = random.permutation(1 / (1 + np.arange(TRAINING_IDENTITIES)) ** 0.7)
    identity_N = 40 + random.choice(TRAINING_IDENTITIES, training, p=share_C / share_C.sum())
    _write_store(folder / "train", [f"{n:07}.jpg" for n in range(training)], identity_N, SyntheticVectors(2))
    paths = [f"{n % 1000:03}/{n % 690_000:08}@N0{n % 8}/{n:010}_{n % 3}.jpg" for n in range(distractors)]
    identity_G = 1_000_000 + np.arange(distractors) % 690_000
    _write_store(folder / "distractors", paths, identity_G, SyntheticVectors(3))
    _write_lists(folder, probes, [paths[row] for row in random.permutation(distractors)])
    (folder / "complete").touch()


def _write_store(path: Path, keys: list[str], identity_N: np.ndarray, source: SyntheticVectors) -> None:
    from facelt.store.writer import StoreWriter

    writer = StoreWriter(path, keys, identity_N.tolist(), {"direct": DIM}, {"model": "synthetic"})
    for start in range(writer.rows_done, len(keys), CHUNK):
        writer.write(start, {"direct": source.images(identity_N[start : start + CHUNK])})
    writer.finish()


def _write_lists(folder: Path, probes: list[str], distractors: list[str]) -> None:
    sizes = [10**power for power in range(1, 7) if 10**power < len(distractors)] + [len(distractors)]
    lists = {"facescrub.json": probes} | {f"lists/megaface_{size}_1": distractors[:size] for size in sizes}
    (folder / "lists").mkdir(exist_ok=True)
    for name, paths in lists.items():
        (folder / name).write_text(json.dumps({"path": paths, "id": [str(n) for n in range(len(paths))]}))
    noisy = probes[PROBES:]
    (folder / "facescrub_noises.txt").write_text("".join(f"{Path(path).stem}.png\n" for path in noisy))
    noisy = distractors[:: max(1, len(distractors) // NOISY_DISTRACTORS)]
    (folder / "megaface_noises.txt").write_text("".join(f"{n}\t{path}\n" for n, path in enumerate(noisy)))
    for name, first in (("actors", 0), ("actresses", 1)):
        rows = [f"Person_{identity:02}\t0\n" for identity in range(first, PROBE_IDENTITIES, 2)]
        (folder / f"{name}.txt").write_text("name\timage_id\n" + "".join(rows))


def evaluation_config(folder: Path, engine: str) -> "MegafaceConfig":
    """Returns the configuration of the suite in `folder`, with a new output folder."""
    from eval_megaface.config import MegafaceConfig

    suite = {"root": folder, "facescrub_list": "facescrub.json", "megaface_lists": "lists"}
    suite |= {f"{name}_noises": f"{name}_noises.txt" for name in ("facescrub", "megaface")}
    suite |= {name: f"{name}.txt" for name in ("actors", "actresses")}
    models = {"synthetic": {name: folder / name for name in ("probes", "distractors", "train")}}
    # A new folder, so that no cached result of an earlier run is used.
    out = tempfile.mkdtemp(prefix="report-", dir=folder)
    return MegafaceConfig.model_validate({"out": out, "suite": suite, "models": models, "search": {"engine": engine}})


def run_lists(folder: Path) -> dict:
    """Reads the lists and the items of all stores, and finds the rows of the listed images."""
    from eval_megaface.sources import ModelSources
    from eval_megaface.suite import load_suite

    config = evaluation_config(folder, "auto")
    started, started_cpu = time.perf_counter(), time.process_time()
    suite = load_suite(config)
    source = ModelSources(config.models["synthetic"])
    source.distractors.rows("direct", suite.distractor_paths)
    return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - started_cpu}


def run_evaluation(folder: Path, engine: str) -> dict:
    """Runs the whole evaluation of the suite in `folder` with one engine."""
    from eval_megaface.evaluate import evaluate_megaface

    config = evaluation_config(folder, engine)
    started = time.perf_counter()
    report = evaluate_megaface(config)
    seconds = time.perf_counter() - started
    figures = {figure.name: figure for figure in report.rows[0].figures}
    counts = {name: figures[name].probes for name in ("many", "few", "one", "zero")}
    return {
        "seconds": seconds,
        "rank1": figures["full"].rate,
        "probes": counts,
        "curve": report.curves[0].rate,
    }


def run_knn(folder: Path) -> dict:
    """Runs `faiss.knn` for the same two searches."""
    import faiss

    probe_PD = _rows(folder / "probes", PROBES)
    seconds = {}
    for name, k in (("distractors", RANKS), ("train", SHOTS)):
        row_GD = _rows(folder / name)
        started = time.perf_counter()
        faiss.knn(probe_PD, row_GD, k, metric=faiss.METRIC_INNER_PRODUCT)
        seconds[name] = time.perf_counter() - started
        del row_GD
    return {"seconds": sum(seconds.values()), **seconds}


def run_matrix(folder: Path, distractors: int) -> dict:
    """Scores all probes against all distractors as one float32 matrix, and ranks each pair by a count over its row."""
    probe_PD, row_GD = _rows(folder / "probes", PROBES), _rows(folder / "distractors", distractors)
    person_P = np.array([key.partition("/")[0] for key in _keys(folder / "probes")[:PROBES]])
    started = time.perf_counter()
    distractor_PG, mate_PP = probe_PD @ row_GD.T, probe_PD @ probe_PD.T
    hits, pairs = np.zeros(RANKS), 0
    for probe, sorted_G in enumerate(np.sort(distractor_PG, axis=1)):
        mates = np.flatnonzero(person_P == person_P[probe])
        above_M = distractors - np.searchsorted(sorted_G, mate_PP[probe, mates[mates != probe]], side="right")
        hits += (above_M[:, None] <= np.arange(RANKS)).sum(axis=0)
        pairs += len(above_M)
    return {"seconds": time.perf_counter() - started, "distractors": distractors, "rank1": hits[0] / pairs}


def run_search(folder: Path, distractors: int) -> dict:
    """Computes the rates of `run_matrix` with facelt's search."""
    from facelt.identification.rank import hit_ranks, mate_pairs, probe_hits
    from facelt.search.search import open_search

    probe_PD, row_GD = _rows(folder / "probes", PROBES), _rows(folder / "distractors", distractors)
    pairs = mate_pairs([key.partition("/")[0] for key in _keys(folder / "probes")[:PROBES]])
    search = open_search("faiss")
    started = time.perf_counter()
    top_SPK, _ = search.top_k(probe_PD, row_GD, RANKS, [distractors], cosine=True)
    rank_M = hit_ranks(pairs.scores(probe_PD, cosine=True), pairs.probe_M, top_SPK[0])
    hit_K = probe_hits(rank_M, pairs.probe_M, PROBES, RANKS).sum(axis=0)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "distractors": distractors, "rank1": hit_K[0] / len(pairs)}


def _rows(store: Path, rows: int | None = None) -> np.ndarray:
    """Returns rows of a store as float32 unit vectors, in memory."""
    row_ND = np.load(store / "direct.npy", mmap_mode="r")[:rows].astype(np.float32)
    row_ND /= np.linalg.norm(row_ND, axis=1, keepdims=True)
    return row_ND


def _keys(store: Path) -> list[str]:
    from facelt.store.store import EmbeddingStore

    return EmbeddingStore.open(store).keys


def run_program(program: str, arguments: argparse.Namespace) -> dict:
    """Runs one program in a separate process; returns its result and its peak anonymous memory."""
    command = [sys.executable, __file__, "--program", program, "--folder", str(arguments.folder)]
    command += ["--matrix-distractors", str(arguments.matrix_distractors)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak_kb = 0
        while process.poll() is None:
            peak_kb = max(peak_kb, _anonymous_kb(process.pid))
            time.sleep(0.02)
        if process.returncode:
            raise SystemExit(f"{program} stopped with exit code {process.returncode}")
        result = json.loads(process.stdout.read())
    return {"program": program, **result, "peak_anonymous_mb": peak_kb / 1024}


def _anonymous_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--distractors", type=int, default=1_000_000)
    parser.add_argument("--training", type=int, default=887_500)
    parser.add_argument("--matrix-distractors", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--program", choices=list(PROGRAMS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.program:
        result = PROGRAMS[arguments.program](arguments)
        print(json.dumps({**result, "process_cpu_seconds": time.process_time()}))
        return
    write_synthetic_suite(arguments.folder, arguments.distractors, arguments.training)
    best: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for program in PROGRAMS:
            result = run_program(program, arguments)
            print(json.dumps(result), flush=True)
            best[program] = min(best.get(program, float("inf")), result["seconds"])
    knn = best["faiss.knn"]
    print(json.dumps({f"{program} / faiss.knn": seconds / knn for program, seconds in best.items()}))


PROGRAMS = {
    "lists and keys": lambda arguments: run_lists(arguments.folder),
    "evaluation, faiss": lambda arguments: run_evaluation(arguments.folder, "faiss"),
    "faiss.knn": lambda arguments: run_knn(arguments.folder),
    "evaluation, torch": lambda arguments: run_evaluation(arguments.folder, "torch"),
    "full matrix": lambda arguments: run_matrix(arguments.folder, arguments.matrix_distractors),
    "the same with facelt's search": lambda arguments: run_search(arguments.folder, arguments.matrix_distractors),
}

if __name__ == "__main__":
    main()
