"""Second stages of one first stage: what each choice of OLTR's recipe is worth on unseen and on known people.

python benchmarks/second_stages.py faces --out FOLDER --seed 0 [--variants oltr,plain_long]
python benchmarks/second_stages.py drawings --out FOLDER --seed 0

`faces` trains the first stage of configs/faces_small.yaml and measures on the suite of faces_power_megaface.yaml, with
the people of faces_small_megaface.yaml as strangers; `drawings` is the demo's training set, with 150 other identities
and 2,000 distractors. Every variant starts from the same first stage and changes the recipe's stage oltr; plain_scratch
is one plain stage of as many epochs. Each step is a facelt command that is skipped if its result is there: an
interrupted run is resumed by the same command, and several may fill one folder with different variants.
`--report` compares the variants with plain_long on unseen or on known people: FOLDER/SEED/unseen, FOLDER/SEED/known.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from facelt.cli.demo import SELECTION, TRAINING_SET
from facelt.config.loading import read_layers
from facelt.synthetic.datasets import write_suite, write_training_record

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "plain_long"
_CLASSIFY = {"name": "classify", "sampler": "instance"}
_COSFACE = {**_CLASSIFY, "head": "margin", "scale": 32.0, "margin": {"name": "cosface", "m": 0.2}}
# Changes of the stage oltr of the recipe; a method that names itself replaces the stage's.
SECOND_STAGES: dict[str, dict[str, Any]] = {
    "oltr": {},
    REFERENCE: {"method": {**_CLASSIFY, "head": "linear", "keep_head": True}, "attention": False},
    "released": {"method": {"sampler": "class_aware", "classifier_init": "random"}},
    "class_aware": {"method": {"sampler": "class_aware"}},
    "square_root": {"method": {"sampler": "square_root"}},
    "random_init": {"method": {"classifier_init": "random"}},
    "direct_loss": {"method": {"direct_loss": 1.0}},
    "no_memory": {"method": {"memory": False}},
    "no_selector": {"method": {"selector": False}},
    "no_reachability": {"method": {"reachability": False}},
    "centroids_0": {"method": {"centroids_weight": 0.0}},
    "centroids_0.1": {"method": {"centroids_weight": 0.1}},
    "network_lr_0.01": {"lr_mult": {"network": 0.01, "head": 1.0}},
    "network_lr_1": {"lr_mult": {"network": 1.0, "head": 1.0}},
    "cosine": {"method": {**_CLASSIFY, "head": "cosine", "classifier_init": "class_means"}, "attention": False},
    "cosface": {"method": {**_COSFACE, "classifier_init": "class_means"}, "attention": False},
}  # fmt: skip
PLAIN_SCRATCH = "plain_scratch"


def prepare_faces() -> tuple[dict[str, Any], dict[str, Any], list[tuple[Path, Path]]]:
    """Returns the recipe, the MegaFace configuration, and the lists of strangers with their folders."""
    measure = read_layers(ROOT / "configs/faces_power_megaface.yaml").values()
    suite = Path(read_layers(ROOT / "configs/faces_small_megaface.yaml").values()["suite"]["root"])
    strangers = [(suite / f"{name}_lst", suite / f"{name}_images") for name in ("facescrub", "megaface")]
    return read_layers(ROOT / "configs/faces_small.yaml").values(), measure, strangers


def prepare_drawings(out: Path, seed: int) -> tuple[dict[str, Any], dict[str, Any], list[tuple[Path, Path]]]:
    """Draws a training set and a suite unless they are there; returns as `prepare_faces`."""
    suite, selection = out / "suite", out / "long_tail"
    if not suite.exists():
        training = write_training_record(out / "faces", **TRAINING_SET, seed=seed)
        write_suite(
            suite,
            probe_identities=150,
            images_per_probe=6,
            distractors=2000,
            sizes=(10, 100, 1000, 2000),
            seed=seed,
            first_identity=training.next_identity,
            size=TRAINING_SET["size"],
        )
    if not selection.exists():
        options = [f"--{name}={value}" for name, value in SELECTION.items()]
        run_command("-m", "recordio_tools", "sample", out / "faces/train.rec", "--out", selection, "--pack", *options,
             f"--seed={seed}")  # fmt: skip
    recipe = read_layers(ROOT / "configs/demo.yaml", [f"data.train={selection / 'train.rec'}"]).values()
    measure = read_layers(ROOT / "configs/demo_megaface.yaml", [f"suite.root={suite}", "verification=true"]).values()
    return recipe, measure, [(suite / "megaface_lst", suite / "megaface_images")]


def variant_recipe(out: Path, name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """Returns the recipe of a variant: one stage, named model, below the folder OUT/NAME."""
    plain, _, oltr = recipe["stages"]
    if name == "plain":
        stage = plain
    elif name == PLAIN_SCRATCH:
        stage = {**plain, "epochs": plain["epochs"] + oltr["epochs"]}
    else:
        changes = dict(SECOND_STAGES[name])
        method = changes.pop("method", {})
        stage = {**oltr, **changes, "method": method if "name" in method else {**oltr["method"], **method}}
        stage["init_from"] = str(out / "plain/model")
    return {**recipe, "out": str(out / name), "stages": [{**stage, "name": "model"}]}


def train_variant(out: Path, name: str, recipe: dict[str, Any]) -> None:
    """Trains a variant and, if it is not there, the first stage that it starts from."""
    if name in SECOND_STAGES:
        train_variant(out, "plain", recipe)
    if not (out / name / "model/card.json").exists():
        run_configured("train", out / f"{name}.yaml", variant_recipe(out, name, recipe), "--resume")


def embed_suite(out: Path, name: str, stores: Path, measure: dict[str, Any], record: str | None) -> dict[str, str]:
    """Embeds the suite by the model OUT/NAME, and the training record if it is given, into STORES/NAME.

    Returns the entry of the model in the MegaFace configuration.
    """
    root = Path(measure["suite"]["root"])
    sources: dict[str, list[Any]] = {
        "probes": [root / "facescrub_lst", "--root", root / "facescrub_images"],
        "distractors": [root / "megaface_lst", "--root", root / "megaface_images"],
    }
    if record is not None:
        sources["train"] = [record]
    for source, images in sources.items():
        store = stores / name / source
        if not (store / "meta.json").exists():
            run_command("-m", "facelt", "embed", "--checkpoint", out / name, "--images", *images, "--out", store)
    return {source: str(stores / name / source) for source in sources}


def compare_on_unseen(out: Path, names: list[str], recipe: dict[str, Any], measure: dict[str, Any]) -> None:
    """Compares variants with plain_long by the MegaFace protocol, with the shots of plain_long."""
    models = {
        name: embed_suite(out, name, out / "stores", measure, recipe["data"]["train"] if name == REFERENCE else None)
        for name in names
    }
    compare_stores(out / "unseen", measure, models, REFERENCE)


def compare_stores(report: Path, measure: dict[str, Any], models: dict[str, dict[str, str]], reference: str) -> None:
    """Compares models with one of them by the MegaFace protocol, with its shots if its training record is embedded."""
    values = {**measure, "out": str(report), "models": models, "verification": True}
    values["compare"] = {"reference": reference}
    values.pop("shots", None)
    if "train" in models[reference]:
        values["shots"] = {"threshold": 0.7, "reference": reference}
    run_configured("megaface", report.with_name(f"{report.name}.yaml"), values, "--overwrite")


def compare_on_known(out: Path, names: list[str], strangers: list[tuple[Path, Path]]) -> None:
    """Compares variants with plain_long on held-out images of their training identities."""
    options = [word for name in names for word in ("--checkpoint", out / name)]
    for images, root in strangers:
        options += ["--open-images", images, "--open-root", root]
    run_command("-m", "facelt", "evaluate", *options, "--out", out / "known", "--overwrite")


def run_configured(command: str, config: Path, values: dict[str, Any], *options: str) -> None:
    """Writes a configuration and runs the command of facelt with it."""
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    run_command("-m", "facelt", command, "--config", config, *options)


def run_command(*words: Any) -> None:
    command = [sys.executable, *map(str, words)]
    print(" ".join(["python", *command[1:]]), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("faces", "drawings"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", default=",".join(("plain", *SECOND_STAGES)), help="names, separated by commas")
    parser.add_argument("--report", choices=("unseen", "known"), help="compare the variants with plain_long")
    arguments = parser.parse_args()
    out = arguments.out.resolve() / str(arguments.seed)
    prepared = prepare_drawings(out, arguments.seed) if arguments.data == "drawings" else prepare_faces()
    recipe, measure, strangers = prepared
    recipe["seed"] = arguments.seed
    names = list(dict.fromkeys([REFERENCE, *arguments.variants.split(",")]))
    for name in names:
        train_variant(out, name, recipe)
        embed_suite(out, name, out / "stores", measure, None)
    if arguments.report == "unseen":
        compare_on_unseen(out, names, recipe, measure)
    elif arguments.report == "known":
        compare_on_known(out, names, strangers)


if __name__ == "__main__":
    main()
