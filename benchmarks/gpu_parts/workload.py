"""Device and size of a part of the GPU check, and made-up records of faces."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.memory_stage import timed
from recordio_tools.writer import FaceRecordWriter

Figures = dict[str, float | str]
"""Figures of a part by name; a text says under which circumstances they were measured."""


@dataclass(frozen=True)
class Workload:
    """Device of a part, its size as a fraction of the whole one, and a folder for its files."""

    device: torch.device
    scale: float
    folder: Path

    def count(self, whole: int, least: int = 1) -> int:
        """Returns this fraction of a number, at least `least`."""
        return max(least, round(whole * self.scale))

    @property
    def backbone(self) -> str:
        """The backbone of the training parts; a small one below the whole size."""
        return "resnet50" if self.scale == 1 else "resnet10"

    @property
    def side(self) -> int:
        """Height and width of faces in pixels."""
        return 112 if self.scale == 1 else 32

    @property
    def precision(self) -> str:
        """Precision of the training parts; few CPUs are fast in bfloat16."""
        return "bf16" if self.device.type == "cuda" else "float32"

    def seconds(self, step: Callable[[], object], steps: int, rounds: int = 3) -> float:
        """Returns the seconds of a call of `step`: the best round of `steps` calls, after two calls to warm up."""
        timed(step, 2, self.device.type)
        return min(timed(step, steps, self.device.type) for _ in range(rounds)) / steps


def write_record(path: Path, side: int, labels: Iterable[int], distinct: int = 512) -> Path:
    """Writes JPEG images of smooth random colours, as many as there are labels; each of `distinct` ones recurs."""
    random = np.random.default_rng(0)
    coarse_N = random.integers(0, 256, (distinct, max(2, side // 8), max(2, side // 8), 3), dtype=np.uint8)
    payloads = []
    for coarse_HW3 in coarse_N:
        image_HW3 = cv2.resize(coarse_HW3, (side, side), interpolation=cv2.INTER_CUBIC)
        payloads.append(cv2.imencode(".jpg", image_HW3, (cv2.IMWRITE_JPEG_QUALITY, 95))[1].tobytes())
    with FaceRecordWriter(path, image_size=(side, side)) as writer:
        writer.write_all((label, payloads[number % distinct]) for number, label in enumerate(labels))
    return path
