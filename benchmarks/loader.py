"""Loader throughput: images per second by the number of workers, of decoding alone, and of cached images.

python benchmarks/loader.py FILE.rec [--side PIXELS] [--images 8192] [--batch 128] [--rounds 5]

`--side` repacks the first 512 images at that size, as JPEG, and reads those. Prints one JSON object per line: the best
of several rounds, in which all programs take turns, and ratios of these.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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

WORKERS, DECODERS = (0, 1, 2), (1, 2)
CPU = torch.device("cpu")
REPACKED = 512


def open_dataset(path: Path) -> RecordDataset:
    """Opens a record whose images all have the size of the first one."""
    dataset = RecordDataset(path, transform=ExpectSize((1, 1)))
    dataset.transform = ExpectSize(decode_image(dataset.read_encoded(0)).shape[:2])
    return dataset


def repack(dataset: RecordDataset, side: int, path: Path) -> Path:
    """Writes the first images at side x side pixels, as JPEG of quality 95."""
    with FaceRecordWriter(path, image_size=(side, side)) as writer:
        for index in range(min(REPACKED, len(dataset))):
            image_HW3 = decode_image(dataset.read_encoded(index))
            image_HW3 = cv2.resize(image_HW3, (side, side), interpolation=cv2.INTER_CUBIC)
            payload = cv2.imencode(".jpg", image_HW3[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 95))[1]
            writer.write(0, payload.tobytes())
    return path


def decode_all(dataset: RecordDataset, images: int) -> None:
    """Decodes images without batches or other processes."""
    prepare_opencv()
    for index in range(images):
        decode_image(dataset.read_encoded(index % len(dataset)))


def read(loader: Loader | CachedLoader, epochs: int, device: torch.device) -> int:
    """Reads whole epochs onto the device; returns the number of images."""
    return sum(len(batch.to(device)) for epoch in range(epochs) for batch in loader.batches(epoch))


@contextmanager
def programs(
    dataset: RecordDataset,
    images: int,
    batch: int,
    workers: Sequence[int] = WORKERS,
    decoders: Sequence[int] = DECODERS,
    device: torch.device = CPU,
) -> Iterator[dict[str, Callable[[], int]]]:
    """Yields the programs to measure by name; each returns the number of images it has read.

    Loaders with each number of `workers`, and of cached images, read onto the device; `decoders` are numbers of
    processes that decode alone.
    """
    batch = min(batch, len(dataset))
    epochs = max(1, images // len(dataset))
    members = np.arange(min(images, len(dataset)))
    sampler = InstanceSampler(dataset.labels, batch, seed=0, members=members)
    pin = device.type == "cuda"
    loaders = {f"{number} workers": Loader(dataset, sampler, workers=number, pin=pin) for number in workers}
    sequential = Loader(dataset, SequentialSampler(len(dataset), batch, members), workers=0)
    cache = DeviceImageCache(dataset, members, device, lambda: sequential.batches(0))
    loaders["cached"] = CachedLoader(cache, sampler)
    with get_context("fork").Pool(max(decoders)) as pool:

        def decode(processes: int) -> int:
            pool.starmap(decode_all, [(dataset, images)] * processes, chunksize=1)
            return processes * images

        yield {
            **{f"decoding alone, {processes} processes": partial(decode, processes) for processes in decoders},
            **{name: partial(read, loader, epochs, device) for name, loader in loaders.items()},
        }
    for loader in loaders.values():
        loader.close()


def reading_speeds(programs_by_name: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Returns the images per second of each program in its best round, after one to warm up."""
    best = dict.fromkeys(programs_by_name, 0.0)
    for program in programs_by_name.values():
        program()
    for _ in range(rounds):
        for name, program in programs_by_name.items():
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
        with programs(dataset, arguments.images, arguments.batch) as programs_by_name:
            speeds = reading_speeds(programs_by_name, arguments.rounds)
    for name, speed in speeds.items():
        print(json.dumps({"images": "{} x {}".format(*dataset.image_size), "program": name, "images_per_s": speed}))
    for numerator, denominator in (
        ("decoding alone, 2 processes", "decoding alone, 1 processes"),
        ("2 workers", "1 workers"),
        ("cached", "2 workers"),
    ):
        ratio = speeds[numerator] / speeds[denominator]
        print(json.dumps({"ratio": f"{numerator} / {denominator}", "value": ratio}))


if __name__ == "__main__":
    main()
