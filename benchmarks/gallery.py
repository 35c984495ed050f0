"""Speed and memory of a gallery of a million samples, compared with faiss on the same vectors.

python benchmarks/gallery.py --folder SCRATCH                         # the documented figures; 7 GB of disk
python benchmarks/gallery.py --folder SCRATCH --rows 20000            # a quick look

Each part runs in a separate process. The timed call is `Gallery.identify` of embeddings, with threshold, names and
results. It alternates with `faiss.knn` for the same number of neighbours over the same memory-mapped rows; a ratio
compares two medians. The four samples of a person are as similar as photographs of one face; every second probe is a
stranger, a single probe is an enrolled person. Memory is the anonymous memory of the process (RssAnon) beyond that
after imports. Prints one JSON object per line.

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

TIMED_MODEL = ModelSpec("timed", "0" * 64, "direct", 512)
TOP = 5
BATCH = 4096
SAMPLES_PER_PERSON = 4
# Between samples of a person: cosines of about 0.8.
NOISE = 0.5
# Between the similarities of strangers (at most 0.25 among a million) and of samples of a person.
THRESHOLD = 0.5


def batch(start: int, rows: int) -> Samples:
    """Returns samples around a random direction for each person; `start` is a multiple of SAMPLES_PER_PERSON."""
    random = np.random.default_rng(start)
    centre_CD = random.standard_normal((-(-rows // SAMPLES_PER_PERSON), TIMED_MODEL.dimension), dtype=np.float32)
    row_ND = np.repeat(centre_CD, SAMPLES_PER_PERSON, axis=0)[:rows]
    row_ND += NOISE * random.standard_normal(row_ND.shape, dtype=np.float32)
    keys = [f"photo-{row}" for row in range(start, start + rows)]
    return Samples(keys, [f"person-{row // SAMPLES_PER_PERSON}" for row in range(start, start + rows)], row_ND)


def anonymous_mb() -> float:
    """Returns the anonymous memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024


def print_json(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def enrol(folder: Path, rows: int, _: int) -> None:
    gallery = Gallery.create(folder, TIMED_MODEL)
    before, peak, seconds = anonymous_mb(), 0.0, 0.0
    for start in range(0, rows, BATCH):
        samples = batch(start, min(BATCH, rows - start))
        started = time.perf_counter()
        gallery.enroll(samples)
        seconds += time.perf_counter() - started
        peak = max(peak, anonymous_mb() - before)
    gallery.close()
    print_json(part="enrol", rows=rows, rows_per_s=rows / seconds, anonymous_mb=peak)


def open_gallery(folder: Path, rows: int, _: int) -> None:
    started = time.perf_counter()
    gallery = LocalGallery(folder)
    gallery.count()
    opened = time.perf_counter() - started
    engine = open_engine()
    probe_PD = batch(0, 1).embedding_ND
    before, started = anonymous_mb(), time.perf_counter()
    gallery.search(probe_PD, TOP)
    print_json(
        part="open",
        seconds=opened,
        with_first_search_s=opened + time.perf_counter() - started,
        engine=engine.name,
        anonymous_mb=anonymous_mb() - before,
    )


def time_identification(folder: Path, rows: int, rounds: int) -> None:
    import faiss

    gallery = Gallery.open(folder)
    row_GD = mapped_rows(folder, rows)
    for probes in (1, 64):
        row_P, probe_PD = searches(row_GD, probes)

        def run_gallery(probe_PD=probe_PD):
            return gallery.identify(probe_PD, top=TOP, threshold=THRESHOLD)

        def run_faiss(probe_PD=probe_PD):
            return faiss.knn(probe_PD, row_GD, TOP, metric=faiss.METRIC_INNER_PRODUCT)

        before = anonymous_mb()
        result, (_, row_PK) = run_gallery(), run_faiss()
        for probe, row, (nearest, *_) in zip(result.probes, row_P.tolist(), row_PK.tolist(), strict=True):
            assert probe.best.key == f"photo-{nearest}"
            assert [candidate.person for candidate in probe.candidates] == (
                [] if row < 0 else [f"person-{row // SAMPLES_PER_PERSON}"]
            )
        times: dict[str, list[float]] = {"gallery": [], "faiss": []}
        for _ in range(rounds):
            for name, program in (("gallery", run_gallery), ("faiss", run_faiss)):
                started = time.perf_counter()
                program()
                times[name].append(time.perf_counter() - started)
        medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
        ratio = medians["gallery"] / medians["faiss"]
        print_json(part="identify", probes=probes, **medians, ratio=ratio, anonymous_mb=anonymous_mb() - before)
    gallery.close()


def mapped_rows(folder: Path, rows: int) -> np.ndarray:
    """Returns the memory-mapped rows of the gallery's index."""
    (mapped,) = (folder / "index").glob("rows-*.f32")
    return np.memmap(mapped, np.float32, "r").reshape(-1, TIMED_MODEL.dimension)[:rows]


def searches(row_GD: np.ndarray, probes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row that each probe is a sample of, -1 for every second one, a stranger; and the unit probes."""
    random = np.random.default_rng(0)
    row_P = random.integers(0, len(row_GD), probes)
    row_P[1::2] = -1
    probe_PD = random.standard_normal((probes, TIMED_MODEL.dimension), dtype=np.float32)
    probe_PD /= np.linalg.norm(probe_PD, axis=1, keepdims=True)
    probe_PD[::2] = row_GD[row_P[::2]] + NOISE * probe_PD[::2]
    return row_P, probe_PD / np.linalg.norm(probe_PD, axis=1, keepdims=True)


def bare_index(folder: Path, rows: int, rounds: int) -> None:
    """Runs the same searches with an IndexFlatIP, which holds the vectors in memory."""
    import faiss

    row_GD = mapped_rows(folder, rows)
    index = faiss.IndexFlatIP(TIMED_MODEL.dimension)
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
        print_json(part="IndexFlatIP", probes=probes, seconds=float(np.median(seconds)))


def time_removal(folder: Path, rows: int, _: int) -> None:
    gallery = LocalGallery(folder, write=True)
    before, started = anonymous_mb(), time.perf_counter()
    gallery.remove(people=["person-0"])
    print_json(part="remove", seconds=time.perf_counter() - started, anonymous_mb=anonymous_mb() - before)
    started = time.perf_counter()
    gallery.rebuild()
    print_json(part="rebuild", seconds=time.perf_counter() - started, anonymous_mb=anonymous_mb() - before)
    gallery.close()


PARTS = {
    "enrol": enrol,
    "open": open_gallery,
    "identify": time_identification,
    "bare": bare_index,
    "remove": time_removal,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="new folder; it is kept for further runs")
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
