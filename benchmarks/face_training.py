"""Face training from nothing: what each part is worth, and what more identities, images and epochs give.

python -m benchmarks.face_training --out FOLDER [--seed 0] [--variants baseline,cosface] [--report]

The baseline is the first stage of configs/faces_small.yaml with six epochs. Every other variant changes one thing of
it. The variants with a fraction train on that part of the identities, all of their images, or on that part of the
images of each identity, at least one. `semi_siamese` continues the baseline, `longer` continues it as a plain model on
as many images. Each step is a facelt command that is skipped if its result is there: an interrupted run is resumed by
the same command. `--report` compares the variants with the baseline on the suite of faces_power_megaface.yaml and on
that of faces_small_megaface.yaml: FOLDER/SEED/faces_power, FOLDER/SEED/faces_small.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.second_stages import ROOT, compare_stores, embed_suite, run_configured
from facelt.config.loading import read_layers
from facelt.heads.memory import count_previous
from recordio_tools.face_set import FaceRecord

BASELINE = "baseline"
SUITES = {"faces_power": "configs/faces_power_megaface.yaml", "faces_small": "configs/faces_small_megaface.yaml"}
EPOCHS = 6
_PLAIN = {"name": "classify", "head": "linear", "sampler": "instance"}
_COSFACE = {"name": "classify", "head": "margin", "margin": {"name": "cosface", "m": 0.35}, "scale": 32.0}
# Changes of the recipe by section; `part` is a fraction of the identities or of each identity's images.
RECIPE_CHANGES: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "cosface": {"stage": {"method": _COSFACE}},
    "augment": {"data": {"augment": {}}},
    "identities_0.5": {"part": ("identities", 0.5)},
    "identities_0.25": {"part": ("identities", 0.25)},
    "images_0.5": {"part": ("images", 0.5)},
    "longer": {"continued": True, "stage": {"method": {**_PLAIN, "keep_head": True}, "epochs": 2}},
    "semi_siamese": {"continued": True, "stage": {"method": {"name": "semi_siamese", "queue": 2048}, "epochs": 5}},
    "epochs_3": {"stage": {"epochs": 3}},
    "mobilefacenet": {"model": {"backbone": "mobilefacenet", "width": 1}},
    "epochs_12": {"stage": {"epochs": 12}},
}


def changed_recipe(out: Path, name: str) -> dict[str, Any]:
    """Returns the recipe of a variant: one stage, named model, below the folder OUT/NAME."""
    recipe, changes = read_layers(ROOT / "configs/faces_small.yaml").values(), RECIPE_CHANGES[name]
    first, continued, _ = recipe["stages"]
    if changes.get("continued"):
        stage = {**continued, "init_from": str(out / BASELINE / "model")}
    else:
        stage = {**first, "epochs": EPOCHS}
    recipe["stages"] = [{**stage, "name": "model", "keep": "last", **changes.get("stage", {})}]
    for section in ("data", "model"):
        recipe[section] |= changes.get(section, {})
    if part := changes.get("part"):
        manifest = out / f"{name}.csv"
        write_manifest(manifest, Path(recipe["data"]["train"]), *part)
        recipe["data"]["manifest"] = str(manifest)
    return recipe | {"out": str(out / name)}


def write_manifest(path: Path, record: Path, kind: str, amount: float) -> None:
    """Selects a part of a record at random.

    The amount is a fraction of the `identities` with all their images, a fraction of each identity's `images`, at least
    one, or the number of images `each` identity has at most.
    """
    with FaceRecord(record) as faces:
        keys, labels = np.asarray(faces.image_keys), np.asarray(faces.labels)
    if kind == "identities":
        identities = np.random.default_rng(0).permutation(np.unique(labels))
        chosen = np.isin(labels, identities[: round(amount * len(identities))])
    else:
        order = np.random.default_rng(0).permutation(len(keys))
        counts = np.bincount(labels)
        wanted = np.maximum(1, np.round(amount * counts)) if kind == "images" else np.minimum(amount, counts)
        chosen = np.zeros(len(keys), dtype=bool)
        chosen[order] = count_previous(torch.from_numpy(labels[order])).numpy() < wanted[labels[order]]
    _, new_labels = np.unique(labels[chosen], return_inverse=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = np.stack([keys[chosen], labels[chosen], new_labels], axis=1)
    np.savetxt(path, columns, fmt="%d", delimiter=",", header="key,label,new_label", comments="")


def train_change(out: Path, name: str) -> None:
    """Trains a variant and, if it is not there, the baseline that it continues."""
    if RECIPE_CHANGES[name].get("continued"):
        train_change(out, BASELINE)
    if not (out / name / "model/card.json").exists():
        recipe = changed_recipe(out, name) | {"seed": int(out.name)}
        run_configured("train", out / f"{name}.yaml", recipe, "--resume")


def compare_variants(out: Path, suite: str, names: list[str], reference: str) -> None:
    """Compares the variants with one of them by the MegaFace protocol."""
    measure = read_layers(ROOT / SUITES[suite]).values()
    record = str(read_layers(ROOT / "configs/faces_small.yaml").values()["data"]["train"])
    folder = out / suite
    models = {name: embed_suite(out, name, folder, measure, record if name == reference else None) for name in names}
    compare_stores(folder / "report", measure, models, reference)


def run_variants(description: str, variants: Iterable[str], reference: str, train: Callable[[Path, str], None]) -> None:
    """Trains the variants of the command line by `train(OUT/SEED, name)`, and compares them with one on request."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", default=",".join(variants), help="names, separated by commas")
    parser.add_argument("--report", action="store_true", help=f"compare the variants with {reference}")
    arguments = parser.parse_args()
    out = arguments.out.resolve() / str(arguments.seed)
    names = list(dict.fromkeys([reference, *arguments.variants.split(",")]))
    for name in names:
        train(out, name)
    for suite in SUITES if arguments.report else ():
        compare_variants(out, suite, names, reference)


if __name__ == "__main__":
    run_variants(__doc__, RECIPE_CHANGES, BASELINE, train_change)
