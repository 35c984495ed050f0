"""Known people and strangers over fixed features of a trained recogniser: which classifier names whom.

python benchmarks/known_people_over_features.py FEATURES.npz --seed 0

The file contains unit features and labels of a training set (`train` [N,D], `train_labels` [N]), and unit features of
strangers (`facescrub`, `megaface`). One image in ten of each identity, at most five, is held out, and 5% of the others
for calibration. Each classifier is trained on the rest of the features for some epochs; scores and figures are those of
`facelt evaluate --open-images` (docs/known_people.md), printed as rows of a table.

N images, D feature.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from meta_over_features import fixed_features, train_over_features

from facelt.config.registry import METHODS
from facelt.data.samplers import split_test_images, train_validation_split
from facelt.distributed.logits import GatheredFeatures
from facelt.evaluation.identity_scores import (
    IDENTITY_SCORES,
    IdentityCandidates,
    available_scores,
    image_outputs,
    trained_identities,
)
from facelt.evaluation.known_rates import ALL_BANDS, COMPARED_FAR, KnownRates, KnownScores
from facelt.inference.predict import Predictions
from facelt.methods.base import Method
from facelt.methods.classify import ClassifySettings
from facelt.methods.oltr import DynamicMetaSettings
from facelt.metrics.classification import known_bands
from facelt.report.formatting import p_value, percent, points_interval, signed_points
from facelt.search.search import open_search


def classifiers() -> dict[str, ClassifySettings | DynamicMetaSettings]:
    """Returns the settings of the classifiers by name; the linear one, whose weights start the others', comes first."""
    methods = {
        name: ClassifySettings(name="classify", head=head, sampler="instance", classifier_init=init)
        for name, head, init in (
            ("linear", "linear", "random"),
            ("cosine", "cosine", "random"),
            ("cosine, class means", "cosine", "class_means"),
        )
    }
    for init, sampler in (
        ("random", "class_aware"),
        ("class_means", "instance"),
        ("class_means", "square_root"),
        ("class_means", "class_aware"),
    ):
        methods[f"OLTR, {init.replace('_', ' ')}, {sampler}"] = DynamicMetaSettings(
            name="dynamic_meta", centroid_update="tracking", classifier_init=init, sampler=sampler
        )
    return methods


@torch.no_grad()
def predictions(method: Method, feature_ND: torch.Tensor, label_N: np.ndarray) -> Predictions:
    """Returns what `predict` returns for images, for features."""
    embeddings, logits = method.embed_features(feature_ND), method.head(GatheredFeatures.gather(feature_ND))
    if "meta" in method.kinds:
        logits, _ = logits
    return Predictions(
        label_N=torch.from_numpy(label_N),
        index_N=torch.arange(len(label_N)),
        feature_ND=feature_ND,
        logit_NC=logits.full_BC,
        reachability_N=embeddings.reachability_B,
        embeddings=dict(embeddings.by_kind),
    )


def measure(name: str, method: Method, split: dict[str, tuple[torch.Tensor, np.ndarray]]) -> list[KnownScores]:
    """Returns all scores of a trained method."""
    parts = {part: predictions(method, *rows) for part, rows in split.items()}
    classes = int(split["train"][1].max()) + 1
    validation = tuple(image_outputs(method, parts["validation"], without_own=own) for own in (False, True))
    trained = replace(trained_identities([parts["train"]], classes, open_search()), validation=validation)
    tested, strangers = (
        IdentityCandidates(image_outputs(method, parts[part]), trained) for part in ("test", "strangers")
    )
    results = []
    for score in available_scores(method.kinds, has_validation=True):
        known, unknown = (IDENTITY_SCORES[score].compute(candidates) for candidates in (tested, strangers))
        is_right_N = known.identity_N == tested.images.label_N
        results.append(KnownScores(name, score, is_right_N, known.score_N, unknown.score_N))
    return results


def read_split(arguments: argparse.Namespace) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    """Returns features and labels of the training, validation and test images and of the strangers."""
    with np.load(arguments.features, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("train", "train_labels", "facescrub", "megaface")}
    label_N = arrays["train_labels"].astype(np.int64)
    rest, test = split_test_images(label_N, 0.1, 5, arguments.seed)
    train, validation = train_validation_split(label_N[rest], 0.05, arguments.seed)
    feature_ND = torch.from_numpy(arrays["train"].astype(np.float32)) * arguments.length
    members = {"train": rest[train], "validation": rest[validation], "test": test}
    split = {name: (feature_ND[index_N], label_N[index_N]) for name, index_N in members.items()}
    stranger_ND = np.concatenate([arrays["facescrub"], arrays["megaface"]]).astype(np.float32)
    split["strangers"] = torch.from_numpy(stranger_ND) * arguments.length, np.full(len(stranger_ND), -1)
    return split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--length", type=float, default=8.0, help="factor that scales the unit features")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each classifier")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    split = read_split(arguments)
    feature_ND, label_N = split["train"]
    count_C = np.bincount(label_N)
    results: list[KnownScores] = []
    state: dict[str, torch.Tensor] = {}
    for name, config in classifiers().items():
        torch.manual_seed(arguments.seed)
        network = fixed_features(feature_ND.shape[1])
        method = METHODS[config.name](config, network, len(count_C), torch.from_numpy(count_C))
        method.load_stage(state)
        train_over_features(method.train(), feature_ND, torch.from_numpy(label_N), arguments)
        scores = measure(name, method.eval(), split)
        # The scores of the features alone are equal for all classifiers.
        equal = (
            {"class_mean", "nearest_image"}
            if "meta" in method.kinds
            else {score.score for score in scores} - {"softmax"}
        )
        results += [score for score in scores if not results or score.score not in equal]
        state = state or {key: value.clone() for key, value in method.state_dict().items()}
    label_T = split["test"][1]
    rates = KnownRates(results, label_T, known_bands(count_C, "paper")[label_T])
    print("| classifier | score |", " | ".join(ALL_BANDS), "| AUROC | DIR 10% | DIR 1% | DIR 0.1% |")
    print("|---" * (len(ALL_BANDS) + 6) + "|")
    for result in results:
        summary = rates.score_summary(result)
        accuracy = [percent(summary["accuracy"][band]["rate"], 1) for band in ALL_BANDS]
        detection = [percent(point["rate"]["rate"], 1) for point in summary["dir"]]
        cells = [result.model, result.score, *accuracy, percent(summary["auroc"], 1), *detection]
        print(f"| {' | '.join(cells)} |")
    reference = ("linear", "class_mean")
    pairs = [(result.key, reference) for result in results if result.key != reference]
    rows = rates.comparisons(pairs, arguments.seed)
    print(f"\nDIR at FAR {100 * COMPARED_FAR:g}% and accuracy minus those of class_mean, in points:")
    for row in rows:
        if row["band"] == "all":
            interval = points_interval(row["low"], row["high"])
            difference, adjusted_p = signed_points(row["difference"]), p_value(row["adjusted_p"])
            print(f"{row['model']}, {row['score']}, {row['metric']}: {difference} ({interval}), p {adjusted_p}")


if __name__ == "__main__":
    main()
