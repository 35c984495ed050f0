"""A small record of named identities, strangers as files, and two trained stages, for the tests of known people."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from facelt.config.train import TrainConfig
from facelt.inference.model import TrainedModel
from facelt.training.run import run
from recordio_tools.writer import FaceRecordWriter

# Images of each identity: after the split there are identities with more than 100 training images and with only one.
COUNTS = (125, 40, 30, 12, 8, 5, 3, 2, 2, 2)
STRANGERS, IMAGES_EACH = 5, 24
SIZE = 16


def draw(count: int, seed: int) -> Iterator[np.ndarray]:
    """Yields similar pictures of one identity, uint8 [16,16,3]."""
    random = np.random.default_rng(seed)
    base_443 = random.integers(0, 256, (4, 4, 3))
    for _ in range(count):
        small_443 = np.clip(base_443 + random.integers(-90, 91, (4, 4, 3)), 0, 255).astype(np.uint8)
        yield cv2.resize(small_443, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def write_record(folder: Path, seed: int = 0) -> None:
    """Writes train.rec and identities.csv into a new folder; seeds draw other people."""
    folder.mkdir()
    with FaceRecordWriter(folder / "train.rec", image_size=(SIZE, SIZE), num_identities=len(COUNTS)) as writer:
        for label, count in enumerate(COUNTS):
            for image in draw(count, seed + label):
                writer.write(label, cv2.imencode(".png", image)[1].tobytes())
    rows = [f"{label},Known_{label},female,{count}" for label, count in enumerate(COUNTS)]
    (folder / "identities.csv").write_text("\n".join(["label,name,gender,images", *rows, ""]))


def write_strangers(folder: Path) -> None:
    """Writes Stranger_N/NN.png."""
    for number in range(STRANGERS):
        person = folder / f"Stranger_{number}"
        person.mkdir(parents=True)
        for index, image in enumerate(draw(IMAGES_EACH, 100 + number)):
            cv2.imwrite(str(person / f"{index:02}.png"), image)


def train_known(recipe, out: Path, record: Path, **changes) -> Path:
    """Trains plain and oltr on a record of `write_faces`; `changes` are those of the data."""
    data = {"kind": "record", "train": str(record), "image_size": [SIZE, SIZE], "workers": 0, "test_fraction": 0.2}
    values = recipe(out, data={**data, "test_limit": 20, "validation_fraction": 0.05, **changes})
    values["stages"] = [{**stage, "epochs": 3} for stage in values["stages"]]
    values["optim"]["batch"] = 16
    return run(TrainConfig.model_validate(values))


class PlainOutputs:
    """Outputs of a model for single images, computed one by one."""

    def __init__(self, model: TrainedModel) -> None:
        self.method = model.method

    @torch.no_grad()
    def __call__(self, image_HW3: np.ndarray) -> dict[str, np.ndarray]:
        """Returns feature, logits, direct and, with a memory, meta_unit and reachability of an RGB image."""
        pixels = (image_HW3 / 255 - 0.5) / 0.5
        image = torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float()
        feature = self.method.features(image)
        outputs = {"feature": feature[0].double().numpy(), "logits": self.method.logits(image).local_BC[0].double()}
        outputs["logits"] = outputs["logits"].numpy()
        outputs["direct"] = outputs["feature"] / np.linalg.norm(outputs["feature"])
        if hasattr(self.method, "memory"):
            outputs["meta_unit"] = self.method.embed_features(feature).by_kind["meta_unit"][0].double().numpy()
            distances = [
                np.linalg.norm(outputs["feature"] - centroid)
                for centroid in self.method.memory.centroid_CD.detach().double().numpy()
            ]
            outputs["distances"] = np.array(distances)
            outputs["reachability"] = 10 / min(distances)
        return outputs


def plain_scores(outputs: dict, training: list[tuple[int, dict]], own: int = -1) -> dict[str, tuple[int, float]]:
    """Returns (identity, score) of each score by its definition; `own` is an identity that is no candidate."""
    logits = outputs["logits"].copy()
    if own >= 0:
        logits[own] = -np.inf
    softmax = np.exp(logits - logits.max())
    softmax /= softmax.sum()
    result = {"softmax": (int(softmax.argmax()), softmax.max())}
    for score, kind in (("class_mean", "direct"), ("meta_class_mean", "meta_unit")):
        if kind not in outputs:
            continue
        candidates = []
        for label in sorted({label for label, _ in training} - {own}):
            mean = np.mean([part[kind] for other, part in training if other == label], axis=0)
            candidates.append((outputs[kind] @ mean / np.linalg.norm(mean), label))
        result[score] = max(candidates)[::-1]
    images = [(outputs["direct"] @ part["direct"], label) for label, part in training if label != own]
    result["nearest_image"] = max(images)[::-1]
    if "reachability" in outputs:
        others = [distance for label, distance in enumerate(outputs["distances"]) if label != own]
        result["reachability"] = (result["softmax"][0], 10 / min(others))
    return result


def plain_evidence(outputs: dict, training: list[tuple[int, dict]], own: int = -1) -> list[float]:
    """Returns the values behind `calibrated`: best and runner-up of means and of images, log reachability."""
    scores = plain_scores(outputs, training, own)
    others = [
        plain_scores(outputs, [part for part in training if part[0] not in (own, scores[name][0])])[name]
        for name in ("class_mean", "nearest_image")
    ]
    evidence = [scores["class_mean"][1], others[0][1], scores["nearest_image"][1], others[1][1]]
    return evidence + ([np.log(scores["reachability"][1])] if "reachability" in scores else [])
