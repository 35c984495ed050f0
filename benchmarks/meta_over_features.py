"""Meta-embeddings over fixed features of a trained recogniser: the effect of the memory alone.

python benchmarks/meta_over_features.py FEATURES.npz --out FOLDER

The file contains unit features [N,D] and labels [N] of a training set (`train`, `train_labels`) and a test suite
(`facescrub`, `facescrub_paths`, `megaface`, `megaface_paths`). A linear classifier is trained on the fixed features,
then OLTR's second stage; FOLDER/facescrub and FOLDER/megaface are embedding stores of the kinds direct, meta and
meta_unit, for `facelt audit` and `facelt gallery`.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from facelt.config.registry import METHODS, SAMPLERS
from facelt.methods.base import Method, StepContext, TrainBatch
from facelt.methods.classify import ClassifySettings
from facelt.methods.oltr import DynamicMetaSettings
from facelt.models.network import Network
from facelt.store.writer import StoreWriter

STAGES = (
    ClassifySettings(name="classify", head="linear", sampler="instance"),
    DynamicMetaSettings(name="dynamic_meta", centroid_update="tracking"),
)


class FixedFeatures(nn.Module):
    """An embedding layer that returns its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, feature_BD: torch.Tensor) -> torch.Tensor:
        return feature_BD


def fixed_features(dim: int) -> Network:
    """Returns a network whose features are its input."""
    return Network(nn.Identity(), None, FixedFeatures(dim))


def train_over_features(
    method: Method, feature_ND: torch.Tensor, label_N: torch.Tensor, arguments: argparse.Namespace
) -> float:
    """Trains a method on fixed features; returns the mean loss of the last epoch."""
    if method.needs_dataset_pass:
        method.observe(TrainBatch(feature_ND, label_N))
        method.end_dataset_pass()
    (stream,) = method.sampler_specs()
    sampler = SAMPLERS[stream.sampler](label_N.numpy(), arguments.batch, arguments.seed, epochs=arguments.epochs)
    optimiser = torch.optim.Adam(method.parameters(), lr=arguments.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, arguments.epochs * sampler.steps_per_epoch)
    loss_S = torch.zeros(sampler.steps_per_epoch)
    for epoch in range(arguments.epochs):
        step_SB = torch.from_numpy(sampler.epoch_indices(epoch)).view(-1, arguments.batch)
        for step, index_B in enumerate(step_SB):
            progress = StepContext(epoch, arguments.epochs, step, len(step_SB))
            output = method.step((TrainBatch(feature_ND[index_B], label_N[index_B]),), progress)
            optimiser.zero_grad()
            output.loss.backward()
            optimiser.step()
            output.after(torch.tensor(True))
            schedule.step()
            loss_S[step] = output.loss.detach()
    return float(loss_S.mean())


def write_store(method: Method, path: Path, feature_ND: torch.Tensor, keys: list[str]) -> None:
    """Writes all kinds of embedding to a store; the last folder of a key is the identity."""
    with torch.no_grad():
        embeddings = method.embed_features(feature_ND)
    identities = [key.split("/")[-2] for key in keys]
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in method.state_dict().values())).hexdigest()
    model = {"backbone": "fixed", "stage": "oltr", "weights_sha256": digest}
    kinds = dict.fromkeys(method.kinds, method.dim)
    writer = StoreWriter(path, keys, identities, kinds, {"model": model}, reachability=True, dtype="float32")
    writer.write(
        0, {kind: value.numpy() for kind, value in embeddings.by_kind.items()}, embeddings.reachability_B.numpy()
    )
    writer.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--length", type=float, default=8.0, help="factor that scales the unit features")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each stage")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    with np.load(arguments.features, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    features = {
        name: torch.from_numpy(arrays[name].astype(np.float32)) * arguments.length
        for name in ("train", "facescrub", "megaface")
    }
    feature_ND = features.pop("train")
    label_N = torch.from_numpy(arrays["train_labels"].astype(np.int64))
    classes = int(label_N.max()) + 1
    state = {}
    for config in STAGES:
        network = fixed_features(feature_ND.shape[1])
        method = METHODS[config.name](config, network, classes)
        method.load_stage(state)
        loss = train_over_features(method.train(), feature_ND, label_N, arguments)
        method.eval()
        with torch.no_grad():
            right = (method.logits(feature_ND).argmax() == label_N).float().mean()
        print(f"{config.name}: loss {loss:.3f}, training accuracy {right:.4f}")
        state = method.state_dict()
    for name, test_ND in features.items():
        write_store(method, arguments.out / name, test_ND, arrays[f"{name}_paths"].tolist())


if __name__ == "__main__":
    main()
