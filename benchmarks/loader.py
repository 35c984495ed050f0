"""Images a second of the loading path, by the number of workers, beside what the machine's cores can decode; and of
images that stay in memory once decoded.

python benchmarks/loader.py FILE.rec [--side PIXELS] [--images 8192] [--batch 128] [--rounds 5]

`--side` packs the first 512 images anew at that size, as JPEG, and reads those. Prints one JSON object a line. Every
figure is the best of rounds in which all programs take turns; a ratio is of two such figures.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch

from facelt.data.decode import decode_image, prepare_opencv
from facelt.data.device_cache import CachedLoader, DeviceImageCache
from facelt.data.loader import Loader
from facelt.data.records import RecordDataset
from facelt.data.samplers import InstanceSampler, SequentialSampler
from facelt.data.transforms import ExpectSize
from recordio_tools.writer import FaceRecordWriter

WORKERS = (0, 1, 2)
REPACKED = 512


def open_dataset(path: Path) -> RecordDataset:
    """The file's images, all of the first one's size."""
    dataset = RecordDataset(path, transform=ExpectSize((1, 1)))
    dataset.transform = ExpectSize(decode_image(dataset.read_encoded(0)).shape[:2])
    return dataset


def repack(dataset: RecordDataset, side: int, path: Path) -> Path:
    """Some images at side x side pixels, as JPEG of quality 95."""
    with FaceRecordWriter(path, image_size=(side, side)) as writer:
        for index in range(min(REPACKED, len(dataset))):
            image_HW3 = cv2.resize(
                decode_image(dataset.read_encoded(index)), (side, side), interpolation=cv2.INTER_CUBIC
            )
            payload = cv2.imencode(".jpg", image_HW3[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 95))[1]
            writer.write(0, payload.tobytes())
    return path


def decode_all(dataset: RecordDataset, images: int) -> None:
    """Decoding alone, without batches and without another process."""
    prepare_opencv()
    for index in range(images):
        decode_image(dataset.read_encoded(index % len(dataset)))


def read(loader: Loader | CachedLoader, epochs: int) -> int:
    """Reads whole epochs; returns how many images."""
    return sum(len(batch) for epoch in range(epochs) for batch in loader.batches(epoch))


@contextmanager
def programs(dataset: RecordDataset, images: int, batch: int) -> Iterator[dict[str, Callable[[], int]]]:
    """What takes turns, by name; each returns how many images it has read."""
    batch = min(batch, len(dataset))
    epochs = max(1, images // len(dataset))
    members = np.arange(min(images, len(dataset)))
    sampler = InstanceSampler(dataset.labels, batch, seed=0, members=members)
    loaders = {f"{workers} workers": Loader(dataset, sampler, workers=workers) for workers in WORKERS}
    everything = Loader(dataset, SequentialSampler(len(dataset), batch, members), workers=0)
    resident = DeviceImageCache(dataset, members, torch.device("cpu"), lambda: everything.batches(0))
    loaders["resident"] = CachedLoader(resident, sampler)
    with get_context("fork").Pool(2) as pool:

        def decode(processes: int) -> int:
            pool.starmap(decode_all, [(dataset, images)] * processes, chunksize=1)
            return processes * images

        yield {
            **{f"decoding alone, {processes} processes": partial(decode, processes) for processes in (1, 2)},
            **{name: partial(read, loader, epochs) for name, loader in loaders.items()},
        }
    for loader in loaders.values():
        loader.close()


def take_turns(entrants: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Images a second of each, the best round."""
    best = dict.fromkeys(entrants, 0.0)
    for program in entrants.values():
        program()
    for _ in range(rounds):
        for name, program in entrants.items():
            started = time.perf_counter()
            images = program()
            best[name] = max(best[name], images / (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("--side", type=int)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(arguments.record)
        if arguments.side:
            dataset = open_dataset(repack(dataset, arguments.side, Path(folder) / "train.rec"))
        with programs(dataset, arguments.images, arguments.batch) as entrants:
            speed = take_turns(entrants, arguments.rounds)
    for name, figure in speed.items():
        print(json.dumps({"images": "{} x {}".format(*dataset.image_size), "program": name, "images_per_s": figure}))
    for one, other in (
        ("decoding alone, 2 processes", "decoding alone, 1 processes"),
        ("2 workers", "1 workers"),
        ("resident", "2 workers"),
    ):
        print(json.dumps({"ratio": f"{one} / {other}", "value": speed[one] / speed[other]}))


if __name__ == "__main__":
    main()
