"""Fine-tuning on two images per person: what the stages of configs/finetune_shallow.yaml and their settings are worth.

python -m benchmarks.finetuning --out FOLDER [--seed 0] [--variants finetune,semi_siamese] [--report]

The network is the MobileFaceNet of configs/faces_mobilefacenet.yaml, the images are at most two of each identity of its
record. `given` is the network as it is; `finetune` and `semi_siamese` are the stages of the recipe with fewer epochs,
and every other variant changes one thing of one of them. `averaged` is the mean of the fine-tuned and the given
network. Each step is a facelt command that is skipped if its result is there: an interrupted run is resumed by the same
command. `--report` compares the variants with `given` on the suites of benchmarks/face_training.py.
"""

from pathlib import Path
from typing import Any

from benchmarks.face_training import run_variants, write_manifest
from benchmarks.second_stages import ROOT, run_configured
from facelt.config.loading import read_layers

GIVEN = "given"
_EPOCHS = 5
_CLASS_MEANS = {"name": "classify", "head": "cosine", "classifier_init": "class_means"}
# The stage of the recipe and its changes.
STAGE_CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    GIVEN: ("finetune", {"method": _CLASS_MEANS, "epochs": 0}),
    "finetune": ("finetune", {}),
    "one_rate": ("finetune", {"lr_mult": {"network": 0.1, "head": 1.0}}),
    "batch_norm_trained": ("finetune", {"batch_norm": "train"}),
    "semi_siamese": ("semi_siamese", {}),
    "averaged": ("finetune", {"method": _CLASS_MEANS, "epochs": 0, "init_from": "finetune", "average": 0.7}),
}


def stage_recipe(out: Path, name: str) -> dict[str, Any]:
    """Returns the recipe of a variant: one stage, named model, below the folder OUT/NAME."""
    recipe = read_layers(ROOT / "configs/finetune_shallow.yaml").values()
    faces = read_layers(ROOT / "configs/faces_mobilefacenet.yaml").values()
    stage_name, changes = STAGE_CHANGES[name]
    (stage,) = (stage for stage in recipe["stages"] if stage["name"] == stage_name)
    stage = {**stage, "name": "model", "epochs": _EPOCHS, **changes}
    if share := stage.pop("average", None):
        stage |= {
            "init_from": str(out / stage["init_from"] / "model"),
            "average_with": {str(out / GIVEN / "model"): share},
        }
    manifest = out / "two_images.csv"
    if not manifest.exists():
        write_manifest(manifest, Path(faces["data"]["train"]), "each", 2)
    data = {**recipe["data"], "train": faces["data"]["train"], "manifest": str(manifest), "workers": 0}
    changed = {"data": data, "model": faces["model"], "stages": [stage], "device": "cpu", "precision": "float32"}
    return {**recipe, **changed, "out": str(out / name)}


def train_stage(out: Path, name: str) -> None:
    """Trains a variant and, if they are not there, the ones it is the mean of."""
    if name == "averaged":
        train_stage(out, GIVEN)
        train_stage(out, "finetune")
    if not (out / name / "model/card.json").exists():
        run_configured("train", out / f"{name}.yaml", stage_recipe(out, name) | {"seed": int(out.name)}, "--resume")


if __name__ == "__main__":
    run_variants(__doc__, STAGE_CHANGES, GIVEN, train_stage)
