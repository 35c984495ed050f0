"""A gallery of a million beside a bare faiss search over the same vectors, its enrolment, opening and memory.

python benchmarks/gallery.py --folder SCRATCH                         # what the project promises; 7 GB of disk
python benchmarks/gallery.py --folder SCRATCH --rows 20000            # a look at it

Each part is a process of its own, so that what one leaves in memory is not another's. Searches take turns with faiss's,
over the very same mapped rows; a ratio is of two medians. Memory is what the process has that is no file's (RssAnon),
over what it had after its imports. One JSON object a line.

G gallery rows, P probes, D feature.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from facelt.gallery import Contract, Gallery, LocalGallery, Samples
from facelt.search import open_engine

CONTRACT = Contract("timed", "0" * 64, "direct", 512)
TOP = 5
BATCH = 4096


def batch(start: int, rows: int) -> Samples:
    """Unit vectors; four samples a person."""
    row_ND = np.random.default_rng(start).standard_normal((rows, CONTRACT.dimension), dtype=np.float32)
    keys = [f"photo-{row}" for row in range(start, start + rows)]
    return Samples(keys, [f"person-{row // 4}" for row in range(start, start + rows)], row_ND)


def anonymous_mb() -> float:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024


def tell(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def enrol(folder: Path, rows: int, _: int) -> None:
    gallery = Gallery.create(folder, CONTRACT)
    before, peak, seconds = anonymous_mb(), 0.0, 0.0
    for start in range(0, rows, BATCH):
        samples = batch(start, min(BATCH, rows - start))
        started = time.perf_counter()
        gallery.enroll(samples)
        seconds += time.perf_counter() - started
        peak = max(peak, anonymous_mb() - before)
    gallery.close()
    tell(part="enrol", rows=rows, rows_per_s=rows / seconds, anonymous_mb=peak)


def open_it(folder: Path, rows: int, _: int) -> None:
    started = time.perf_counter()
    gallery = LocalGallery(folder)
    gallery.count()
    opened = time.perf_counter() - started
    engine = open_engine()
    probe_PD = batch(0, 1).embedding_ND
    before, started = anonymous_mb(), time.perf_counter()
    gallery.search(probe_PD, TOP)
    tell(
        part="open",
        seconds=opened,
        with_first_search_s=opened + time.perf_counter() - started,
        engine=engine.name,
        anonymous_mb=anonymous_mb() - before,
    )


def search(folder: Path, rows: int, rounds: int) -> None:
    import faiss

    gallery = LocalGallery(folder)
    (mapped,) = (folder / "index").glob("rows-*.f32")
    row_GD = np.memmap(mapped, np.float32, "r").reshape(-1, CONTRACT.dimension)[:rows]
    random = np.random.default_rng(0)
    for probes in (1, 64):
        noise_PD = 0.02 * random.standard_normal((probes, CONTRACT.dimension), dtype=np.float32)
        probe_PD = row_GD[random.integers(0, rows, probes)] + noise_PD
        probe_PD /= np.linalg.norm(probe_PD, axis=1, keepdims=True)

        def ours(probe_PD=probe_PD):
            return gallery.search(probe_PD, TOP)

        def theirs(probe_PD=probe_PD):
            return faiss.knn(probe_PD, row_GD, TOP, metric=faiss.METRIC_INNER_PRODUCT)

        before = anonymous_mb()
        found, (_, row_PK) = ours(), theirs()
        assert [one[0].key for one in found.candidates] == [f"photo-{row}" for row in row_PK[:, 0]]
        times: dict[str, list[float]] = {"gallery": [], "faiss": []}
        for _ in range(rounds):
            for name, program in (("gallery", ours), ("faiss", theirs)):
                started = time.perf_counter()
                program()
                times[name].append(time.perf_counter() - started)
        medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
        ratio = medians["gallery"] / medians["faiss"]
        tell(part="search", probes=probes, **medians, ratio=ratio, anonymous_mb=anonymous_mb() - before)


def bare_index(folder: Path, rows: int, rounds: int) -> None:
    """The same searches by an IndexFlatIP, which has the vectors in memory."""
    import faiss

    (mapped,) = (folder / "index").glob("rows-*.f32")
    row_GD = np.memmap(mapped, np.float32, "r").reshape(-1, CONTRACT.dimension)[:rows]
    index = faiss.IndexFlatIP(CONTRACT.dimension)
    for start in range(0, rows, BATCH):
        index.add(np.ascontiguousarray(row_GD[start : start + BATCH]))
    for probes in (1, 64):
        probe_PD = np.ascontiguousarray(row_GD[np.random.default_rng(0).integers(0, rows, probes)])
        index.search(probe_PD, TOP)
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            index.search(probe_PD, TOP)
            seconds.append(time.perf_counter() - started)
        tell(part="IndexFlatIP", probes=probes, seconds=float(np.median(seconds)))


def remove(folder: Path, rows: int, _: int) -> None:
    gallery = LocalGallery(folder, write=True)
    before, started = anonymous_mb(), time.perf_counter()
    gallery.remove(people=["person-0"])
    tell(part="remove", seconds=time.perf_counter() - started, anonymous_mb=anonymous_mb() - before)
    started = time.perf_counter()
    gallery.rebuild()
    tell(part="rebuild", seconds=time.perf_counter() - started, anonymous_mb=anonymous_mb() - before)
    gallery.close()


PARTS = {"enrol": enrol, "open": open_it, "search": search, "bare": bare_index, "remove": remove}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="a new one; stays, to measure again")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS)
    arguments = parser.parse_args()
    if arguments.part:
        PARTS[arguments.part](arguments.folder, arguments.rows, arguments.rounds)
        return
    for part in PARTS:
        if part == "enrol" and arguments.folder.exists():
            continue
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--part", part], check=True, env=os.environ)


if __name__ == "__main__":
    main()
