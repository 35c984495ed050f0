"""Speed of recordio_tools: random access compared with MXNet, decoding, and a selection at full size.

    python benchmarks/recordio.py --rec train.rec --mxnet-python /path/to/its/bin/python
    python benchmarks/recordio.py --selection

MXNet 1.9.1 (with numpy 1.23.5) needs a separate environment; it runs there in a separate process, on the same file and
keys. All figures are the best of several rounds with the file in the page cache. The two programs alternate, so that
other load on the machine affects both.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from recordio_tools.face_set import FaceRecord
from recordio_tools.format import FRAME_STRUCT, HEADER_STRUCT, MAGIC

DEFAULT_REC = Path(os.environ.get("FACELT_SHARED", "../shared")) / "data/faces/train/train.rec"
MXNET_PROGRAM = """
import json, sys, time
import mxnet as mx
path, keys, rounds = sys.argv[1], json.loads(sys.stdin.read()), int(sys.argv[2])
records = mx.recordio.MXIndexedRecordIO(path[:-3] + "idx", path, "r")
times = []
for _ in range(rounds):
    start = time.perf_counter()
    for key in keys:
        mx.recordio.unpack(records.read_idx(key))
    times.append(time.perf_counter() - start)
print(json.dumps({"seconds": min(times)}))
"""
TURNS = 3  # of recordio_tools and MXNet
MS1M_IMAGES, MS1M_IDENTITIES, MS1M_LT_IMAGES = 5_800_000, 85_000, 887_500


def best(work: Callable[[], None], rounds: int) -> float:
    """Returns the seconds of the fastest round."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def time_mxnet(python: Path, rec: Path, keys: list[int], rounds: int) -> dict:
    """Returns the result of MXNet's reader, run in its environment."""
    command = [str(python), "-c", MXNET_PROGRAM, str(rec), str(rounds)]
    result = subprocess.run(command, input=json.dumps(keys), capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{python}: MXNet did not run: {result.stderr.strip().splitlines()[-1]}")
    return json.loads(result.stdout)


def access(rec: Path, mxnet_python: Path | None, records: int, rounds: int) -> dict:
    """Measures random reads with unpacking, and reading and decoding compared with decoding alone."""
    with FaceRecord(rec) as faces:
        keys = np.random.default_rng(0).permutation(faces.image_keys)[:records].tolist()
        read = faces.reader.read

        def read_all() -> None:
            for key in keys:
                read(key)

        def copy_all() -> None:
            for key in keys:
                bytes(read(key).payload)

        def decode(payload: bytes | memoryview) -> None:
            cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)

        payloads = [bytes(read(key).payload) for key in keys]

        def decode_alone() -> None:
            for payload in payloads:
                decode(payload)

        def read_and_decode() -> None:
            for key in keys:
                decode(read(key).payload)

        figures = {"records": len(keys), "read_seconds": best(read_all, rounds)}
        if mxnet_python:
            turns = [
                (best(read_all, rounds), time_mxnet(mxnet_python, rec, keys, rounds)["seconds"]) for _ in range(TURNS)
            ]
            ours, theirs = (min(times) for times in zip(*turns, strict=True))
            figures.update(read_seconds=ours, mxnet_seconds=theirs, times_faster_than_mxnet=theirs / ours)
        figures["read_and_copy_seconds"] = best(copy_all, rounds)
        cv2.setNumThreads(1)
        pairs = [(best(decode_alone, 1), best(read_and_decode, 1)) for _ in range(rounds)]
        alone, both = (min(times) for times in zip(*pairs, strict=True))
        return {**figures, "decode_seconds": alone, "read_and_decode_seconds": both, "share_of_decode": alone / both}


def write_large(path: Path, images: int, identities: int) -> None:
    """Writes a .rec with real headers and four bytes per image, since the selection never reads images."""
    rng = np.random.default_rng(0)
    weights = rng.lognormal(0.0, 0.6, identities)
    extra = rng.multinomial(images - identities, weights / weights.sum())
    label_N = np.repeat(np.arange(identities), 1 + extra)
    key_N = np.arange(1, images + 1)
    fields = [("frame", "<u4", 2), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8"), ("image", "<u4")]
    record_N = np.zeros(images, np.dtype(fields))
    record_N["frame"] = MAGIC, HEADER_STRUCT.size + 4
    record_N["label"], record_N["id"] = label_N, key_N
    record_N.tofile(path)
    offset_N = np.arange(images) * (FRAME_STRUCT.size + HEADER_STRUCT.size + 4)
    np.savetxt(path.with_suffix(".idx"), np.stack([key_N, offset_N], axis=1), fmt="%d", delimiter="\t")
    path.with_name("property").write_text(f"{identities},112,112\n")


def selection(images: int, identities: int, drawn: int) -> dict:
    """Measures seconds and peak memory of the whole command, from .idx to manifest, in a separate process."""
    import resource

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.rec"
        write_large(path, images, identities)
        figures = {"images": images, "identities": identities, "drawn": drawn}
        command = [sys.executable, "-m", "recordio_tools", "sample", str(path), "--out", str(Path(folder) / "lt")]
        start = time.perf_counter()
        result = subprocess.run(
            [*command, "--images", str(drawn), "--json"], capture_output=True, text=True, check=True
        )
        figures["seconds"] = time.perf_counter() - start
        figures["peak_megabytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        return {**figures, "identities_kept": json.loads(result.stdout)["selection"]["identities"]}


def main() -> None:
    """Prints the selected measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rec", type=Path, default=DEFAULT_REC, help="record file to read")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mxnet-python", type=Path, help="Python of an environment with MXNet")
    parser.add_argument("--selection", action="store_true", help="measure a selection of the size of MS1M instead")
    options = parser.parse_args()
    if options.selection:
        figures = selection(MS1M_IMAGES, MS1M_IDENTITIES, MS1M_LT_IMAGES)
    else:
        figures = access(options.rec, options.mxnet_python, options.records, options.rounds)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
