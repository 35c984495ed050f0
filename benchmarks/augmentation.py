"""Face augmentation: processor time per image, compared with a training step; and the picture of docs/face_training.md.

python benchmarks/augmentation.py [--side 64] [--backbone resnet10] [--rounds 5] [--picture docs/augmentation.png]

Prints one JSON object per line: microseconds per image that each change adds, the best of several rounds in which all
programs take turns, and the parts of a step (forward, loss, backward) of a batch of 64. `--picture` draws instead.
The faces are drawings; they show no real person.

B images of a batch, R rows of the picture, F faces, H height, W width.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from facelt.config.train import TrainConfig
from facelt.data.augmentation import AugmentationSettings, FaceAugmentation
from facelt.data.decode import prepare_opencv
from facelt.data.transforms import ExpectSize, normalise_images
from facelt.inference.model import build_method
from facelt.methods.base import StepContext, TrainBatch
from facelt.synthetic.identity import draw_identity, draw_nuisance
from facelt.synthetic.render import render_face

BATCH, IDENTITIES = 64, 1000
PERSONS, PICTURE_SIDE, DPI = range(1, 7), 112, 84
OFF = {"crop": 0.0, "low_resolution": 0.0, "photometric": 0.0}
CHANGES = {
    "none": AugmentationSettings(**OFF),
    **{name: AugmentationSettings(**{**OFF, name: 1.0}) for name in (*OFF, "geometric", "erasing")},
    "augment: {}": AugmentationSettings(),
}
ALL = AugmentationSettings(geometric=0.2, erasing=0.2)


def synthetic_faces(seed: int, side: int) -> list[np.ndarray]:
    """Returns a face of each person, uint8 RGB [H,W,3]."""
    return [render_face(draw_identity(seed, person), draw_nuisance(seed, person, 0), side) for person in PERSONS]


def augmented_faces(seed: int) -> np.ndarray:
    """Returns the faces of all rows, uint8 RGB [R,F,H,W,3]; a column is one person."""
    faces = synthetic_faces(seed, PICTURE_SIDE)
    seed_RF = seed * 1000 + np.arange(len(CHANGES) * len(faces)).reshape(len(CHANGES), len(faces))
    rows = []
    for settings, seed_F in zip(CHANGES.values(), seed_RF.tolist(), strict=True):
        transform = FaceAugmentation(settings, ExpectSize((PICTURE_SIDE, PICTURE_SIDE)))
        rows.append([transform(face, request) for face, request in zip(faces, seed_F, strict=True)])
    return np.array(rows)


def draw(face_RFHW3: np.ndarray, out: Path) -> None:
    """Writes the rows of faces with the name of each row to a PNG file."""
    rows, faces, height, width, _ = face_RFHW3.shape
    figure = Figure(figsize=(faces + 2, rows), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(face_RFHW3.swapaxes(1, 2).reshape(rows * height, faces * width, 3))
    axes.set_xticks([])
    axes.set_yticks((np.arange(rows) + 0.5) * height, list(CHANGES), fontfamily="monospace")
    axes.tick_params(left=False)
    for row in range(1, rows):
        axes.axhline(row * height - 0.5, color="white", linewidth=3)
    for face in range(1, faces):
        axes.axvline(face * width - 0.5, color="white", linewidth=3)
    axes.spines[:].set_visible(False)
    figure.savefig(out, dpi=DPI, metadata={"Software": None})


def augment(settings: AugmentationSettings, faces: list[np.ndarray]) -> int:
    """Augments some faces; returns their number."""
    transform = FaceAugmentation(settings, ExpectSize(faces[0].shape[:2]))
    for seed in range(20 * len(faces)):
        transform(faces[seed % len(faces)], seed)
    return 20 * len(faces)


def training_step(backbone: str, faces: list[np.ndarray]) -> Callable[[], int]:
    """Returns a function that runs normalisation, forward, loss and backward on a batch and returns its size."""
    stage = {"name": "plain", "method": {"name": "classify"}, "epochs": 1}
    data = {"kind": "record", "train": "unused.rec", "image_size": faces[0].shape[:2]}
    values = {"out": "unused", "data": data, "model": {"backbone": backbone}, "stages": [stage]}
    config = TrainConfig.model_validate(values)
    method = build_method(config, config.stages[0], IDENTITIES).train()
    method.network.to(memory_format=torch.channels_last)
    image_BHW3 = torch.from_numpy(np.array([faces[index % len(faces)] for index in range(BATCH)]))
    label_B = torch.arange(BATCH)

    def step() -> int:
        batch = TrainBatch(normalise_images(image_BHW3, config.data.mean, config.data.std), label_B)
        method.step([batch], StepContext(0, 1, 0, 1)).loss.backward()
        return BATCH

    return step


def seconds_per_image(programs: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Returns the processor seconds per image of each program in its best round, after one to warm up."""
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(rounds + 1):
        for name, program in programs.items():
            started = time.process_time()
            images = program()
            best[name] = min(best[name], (time.process_time() - started) / images)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--backbone", default="resnet10")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    prepare_opencv()
    if arguments.picture:
        draw(augmented_faces(arguments.seed), arguments.picture)
        return
    faces = synthetic_faces(arguments.seed, arguments.side)
    changes = {**CHANGES, "all five, 0.2 each": ALL}
    programs = {name: partial(augment, settings, faces) for name, settings in changes.items()}
    seconds = seconds_per_image({**programs, "step": training_step(arguments.backbone, faces)}, arguments.rounds)
    for name in changes:
        added = {"change": name, "us": seconds[name] * 1e6, "fraction_of_step": seconds[name] / seconds["step"]}
        print(json.dumps({"side": arguments.side, **added}))
    print(json.dumps({"side": arguments.side, "step_ms": seconds["step"] * 1e3, "backbone": arguments.backbone}))


if __name__ == "__main__":
    main()
