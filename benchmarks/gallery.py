"""A gallery of a million beside a bare faiss search over the same vectors, its enrolment, opening and memory.

python benchmarks/gallery.py --folder SCRATCH                         # what the project promises; 7 GB of disk
python benchmarks/gallery.py --folder SCRATCH --rows 20000            # a look at it

Each part is a process of its own, so that what one leaves in memory is not another's. What is timed is what a user
calls: `Gallery.identify` of embeddings, with its threshold, names and answers. It takes turns with a bare faiss.knn for
as many neighbours over the very same mapped rows; a ratio is of two medians. The four samples of a person are alike, as
photographs of one face are; every second probe is of a stranger, and a single one of somebody enrolled. Memory is what
the process has that is no file's (RssAnon), over what it had after its imports. One JSON object a line.

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

from facelt.gallery.gallery import Gallery
from facelt.gallery.local import LocalGallery
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import Samples
from facelt.search.factory import open_engine

CONTRACT = ModelSpec("timed", "0" * 64, "direct", 512)
TOP = 5
BATCH = 4096
EACH = 4
# Of one photograph of a face beside another: cosines of about 0.8.
NOISE = 0.5
# Between strangers, who are at 0.25 at most among a million, and photographs of one face.
THRESHOLD = 0.5


def batch(start: int, rows: int) -> Samples:
    """EACH samples a person, around a direction of its own; `start` is a multiple of EACH."""
    random = np.random.default_rng(start)
    centre_CD = random.standard_normal((-(-rows // EACH), CONTRACT.dimension), dtype=np.float32)
    row_ND = np.repeat(centre_CD, EACH, axis=0)[:rows]
    row_ND += NOISE * random.standard_normal(row_ND.shape, dtype=np.float32)
    keys = [f"photo-{row}" for row in range(start, start + rows)]
    return Samples(keys, [f"person-{row // EACH}" for row in range(start, start + rows)], row_ND)


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


def identify(folder: Path, rows: int, rounds: int) -> None:
    import faiss

    gallery = Gallery.open(folder)
    row_GD = mapped_rows(folder, rows)
    for probes in (1, 64):
        row_P, probe_PD = searches(row_GD, probes)

        def ours(probe_PD=probe_PD):
            return gallery.identify(probe_PD, top=TOP, threshold=THRESHOLD)

        def theirs(probe_PD=probe_PD):
            return faiss.knn(probe_PD, row_GD, TOP, metric=faiss.METRIC_INNER_PRODUCT)

        before = anonymous_mb()
        found, (_, row_PK) = ours(), theirs()
        for answer, row, (nearest, *_) in zip(found.probes, row_P.tolist(), row_PK.tolist(), strict=True):
            assert answer.best.key == f"photo-{nearest}"
            assert [one.person for one in answer.candidates] == ([] if row < 0 else [f"person-{row // EACH}"])
        times: dict[str, list[float]] = {"gallery": [], "faiss": []}
        for _ in range(rounds):
            for name, program in (("gallery", ours), ("faiss", theirs)):
                started = time.perf_counter()
                program()
                times[name].append(time.perf_counter() - started)
        medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
        ratio = medians["gallery"] / medians["faiss"]
        tell(part="identify", probes=probes, **medians, ratio=ratio, anonymous_mb=anonymous_mb() - before)
    gallery.close()


def mapped_rows(folder: Path, rows: int) -> np.ndarray:
    """The gallery's own index, as a plain search would have it."""
    (mapped,) = (folder / "index").glob("rows-*.f32")
    return np.memmap(mapped, np.float32, "r").reshape(-1, CONTRACT.dimension)[:rows]


def searches(row_GD: np.ndarray, probes: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that unit probes are near to, -1 for every second one, a stranger, and the probes."""
    random = np.random.default_rng(0)
    row_P = random.integers(0, len(row_GD), probes)
    row_P[1::2] = -1
    probe_PD = random.standard_normal((probes, CONTRACT.dimension), dtype=np.float32)
    probe_PD /= np.linalg.norm(probe_PD, axis=1, keepdims=True)
    probe_PD[::2] = row_GD[row_P[::2]] + NOISE * probe_PD[::2]
    return row_P, probe_PD / np.linalg.norm(probe_PD, axis=1, keepdims=True)


def bare_index(folder: Path, rows: int, rounds: int) -> None:
    """The same searches by an IndexFlatIP, which has the vectors in memory."""
    import faiss

    row_GD = mapped_rows(folder, rows)
    index = faiss.IndexFlatIP(CONTRACT.dimension)
    for start in range(0, rows, BATCH):
        index.add(np.ascontiguousarray(row_GD[start : start + BATCH]))
    for probes in (1, 64):
        _, probe_PD = searches(row_GD, probes)
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


PARTS = {"enrol": enrol, "open": open_it, "identify": identify, "bare": bare_index, "remove": remove}


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
