"""Golden files on the device: outputs and gradients of the authors' code, in float32 and under bfloat16 autocast.

B batch, C classes, D feature, P probes, G gallery, K neighbours.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_parts.parts import Unavailable
from benchmarks.gpu_parts.workload import Figures, Workload
from facelt.config.registry import CLASS_WEIGHTS, LOSSES, MARGINS
from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import BatchSplit
from facelt.distributed.logits import ClassifierLogits, ClassWeights, GatheredFeatures
from facelt.distributed.trained_logits import LogitTransform
from facelt.heads.dynamic_meta import DynamicMetaHead
from facelt.heads.memory import IdentityMemory
from facelt.identification.rank import hit_ranks, mate_pairs, probe_hits
from facelt.losses.centroids import discriminative_centroids_loss
from facelt.models.layers import ModulatedAttention
from facelt.search.top_k import top_k
from facelt.search.torch_engine import TorchEngine
from facelt.store.feature_tree import FeatureTree

LDAM_SCALE, MARGIN_SCALE = 30.0, 64.0
# Reference -> loss, its options, class weights, their options; those of LDAM are of 30 times the cosines.
LOGIT_LOSSES = {
    "focal_gamma1": ("focal", {"gamma": 1.0}, None, {}),
    "focal_gamma2": ("focal", {"gamma": 2.0}, None, {}),
    "balanced_softmax": ("balanced_softmax", {}, None, {}),
    "softmax_equalization_gamma1_lambda0.01": ("seql", {"gamma": 1.0, "threshold": 0.01}, None, {}),
    "class_balanced_ce": ("softmax", {}, "class_balanced", {"beta": 0.9999}),
    "cost_sensitive_gamma0.5": ("softmax", {}, "cost_sensitive", {"gamma": 0.5}),
    "ldam": ("ldam", {"max_margin": 0.5, "scale": LDAM_SCALE}, None, {}),
    "ldam_drw": ("ldam", {}, "class_balanced", {"beta": 0.9999}),
}
MARGIN_LOSSES = {"arcface_s64_m0.5": ("arcface", 0.5), "cosface_s64_m0.4": ("cosface", 0.4)}


class Comparison:
    """Arrays of a golden file on the device, and the relative errors of results by name."""

    def __init__(self, path: Path, device: torch.device, bf16: bool) -> None:
        if not path.is_file():
            raise Unavailable(f"{path.name} is absent from the golden files; set FACELT_SHARED to a complete folder")
        with np.load(path) as file:
            self.values = {name: torch.from_numpy(np.asarray(file[name])).to(device) for name in file}
        self.device, self.bf16 = device, bf16
        self.errors: dict[str, float] = {}

    def run(self, forward: Callable[..., torch.Tensor], *inputs: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns the scalar of `forward` on copies of the named inputs, computed under autocast if `bf16`, and the
        copies with their gradients.
        """
        copies = [self.values[name].clone().requires_grad_() for name in inputs]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = forward(*copies)
        loss.backward()
        return loss, copies

    def compare(self, name: str, result: torch.Tensor) -> None:
        """Records max|result - reference| / max|reference|; infinity for a result with NaN."""
        expected = self.values[name].double()
        error = ((result.detach().double() - expected).abs().max() / expected.abs().max()).item()
        self.errors[name] = float("inf") if np.isnan(error) else error

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors.values())


def golden_float32(workload: Workload) -> Figures:
    """Compares in float32; attention also without TF32, which cuDNN by default uses for convolutions."""
    figures = _compare(workload, bf16=False)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        figures["attention_without_tf32"] = _attention(golden_folder(), workload.device, False)
    return figures


def golden_bf16(workload: Workload) -> Figures:
    """Compares under bfloat16 autocast: heads and losses compute in float32 there, attention does not."""
    return _compare(workload, bf16=True)


def golden_folder() -> Path:
    """Returns the folder of the golden files. Raises Unavailable."""
    folder = Path(os.environ.get("FACELT_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "golden"
    if not folder.is_dir():
        raise Unavailable("the golden files are absent; set FACELT_SHARED to the folder above them")
    return folder


def _compare(workload: Workload, bf16: bool) -> Figures:
    folder, device = golden_folder(), workload.device
    parts = (_logit_losses, _margin_losses, _centroids_loss, _meta_embedding)
    return {
        "heads_and_losses": max(part(folder, device, bf16) for part in parts),
        "attention": _attention(folder, device, bf16),
        "wrong_ranks": _wrong_ranks(folder, device, bf16),
    }


def _logit_losses(folder: Path, device: torch.device, bf16: bool) -> float:
    golden = Comparison(folder / "losses.npz", device, bf16)
    label_B, counts_C = golden.values["labels"], golden.values["class_counts"].cpu()
    for reference, (name, options, weights, weight_options) in LOGIT_LOSSES.items():
        loss_of = LOSSES[name](counts_C, **options).to(device)
        weight_C = None if weights is None else CLASS_WEIGHTS[weights](counts_C, **weight_options).to(device)
        source, scale = ("cosine", LDAM_SCALE) if name == "ldam" else ("logits", 1.0)
        loss, (value_BC,) = golden.run(
            lambda value_BC, loss_of=loss_of, scale=scale, weight_C=weight_C: loss_of(
                scale * value_BC, label_B, weight_C
            ),
            source,
        )
        golden.compare(f"{reference}/loss", loss)
        golden.compare(f"{reference}/grad", value_BC.grad)
    return golden.worst


def _margin_losses(folder: Path, device: torch.device, bf16: bool) -> float:
    golden = Comparison(folder / "losses.npz", device, bf16)
    label_B = golden.values["labels"]
    classes = ClassRange.local(golden.values["cosine"].shape[1])
    rows = ClassWeights(torch.eye(len(classes), device=device))
    for reference, (name, m) in MARGIN_LOSSES.items():
        margin = MARGINS[name](m=m)
        transform = LogitTransform(lambda logit_B, margin=margin: MARGIN_SCALE * margin(logit_B / MARGIN_SCALE), None)

        def loss_of(cosine_BC: torch.Tensor, transform: LogitTransform = transform) -> torch.Tensor:
            split = BatchSplit((len(cosine_BC),))
            return ClassifierLogits(MARGIN_SCALE * cosine_BC, rows, classes, split, transform).cross_entropy(label_B)

        loss, (cosine_BC,) = golden.run(loss_of, "cosine")
        golden.compare(f"{reference}/loss", loss)
        if f"{reference}/grad" in golden.values:
            golden.compare(f"{reference}/grad", cosine_BC.grad)
    return golden.worst


def _centroids_loss(folder: Path, device: torch.device, bf16: bool) -> float:
    """The gradients in the file are those of 0.01 times the loss."""
    golden = Comparison(folder / "oltr_disc_centroids.npz", device, bf16)
    classes = ClassRange.local(len(golden.values["centroids"]))
    _, (feature_BD, centroid_CD) = golden.run(
        lambda feature_BD, centroid_CD: (
            0.01
            * discriminative_centroids_loss(
                GatheredFeatures.gather(feature_BD), centroid_CD, golden.values["y"], classes
            )
        ),
        "x",
        "centroids",
    )
    golden.compare("grad_x", feature_BD.grad)
    golden.compare("grad_centroids", centroid_CD.grad)
    return golden.worst


def _meta_embedding(folder: Path, device: torch.device, bf16: bool) -> float:
    golden = Comparison(folder / "oltr_dme.npz", device, bf16)
    classes, dim = golden.values["centroids"].shape
    head = DynamicMetaHead(IdentityMemory(classes, dim), dim)
    parameters = {f"{part}.weight": golden.values[f"{part}_weight"] for part in ("hallucinator", "selector")}
    parameters |= {f"{part}.bias": golden.values[f"{part}_bias"] for part in ("hallucinator", "selector")}
    parameters["classifier.weight"] = golden.values["classifier_weight"]
    head.load_state_dict(parameters, strict=False)
    head.memory.centroid_CD.data.copy_(golden.values["centroids"])
    head.memory.filled_C.fill_(True)
    head = head.to(device)

    def loss_of(feature_BD: torch.Tensor) -> torch.Tensor:
        logits, embedding = head(GatheredFeatures.gather(feature_BD))
        golden.compare("logits", logits.local_BC)
        golden.compare("infused", embedding.infused_bD)
        return logits.cross_entropy(golden.values["y"])

    loss, (feature_BD,) = golden.run(loss_of, "x")
    golden.compare("loss", loss)
    golden.compare("grad_x", feature_BD.grad)
    for part in ("hallucinator", "selector", "classifier"):
        golden.compare(f"grad_{part}_weight", getattr(head, part).weight.grad)
    return golden.worst


def _attention(folder: Path, device: torch.device, bf16: bool) -> float:
    golden = Comparison(folder / "oltr_modulated_attention.npz", device, bf16)
    attention = ModulatedAttention(*golden.values["x"].shape[1:])
    attention.load_state_dict({name: golden.values[name.replace(".", "_")] for name in attention.state_dict()})
    attention = attention.to(device, memory_format=torch.channels_last)

    def scalar_of(image_BCHW: torch.Tensor) -> torch.Tensor:
        out_BCHW = attention(image_BCHW)
        golden.compare("out", out_BCHW)
        return (out_BCHW.flatten() * torch.arange(out_BCHW.numel(), dtype=torch.float32, device=device).sin()).sum()

    _, (image_BCHW,) = golden.run(scalar_of, "x")
    golden.compare("grad_x", image_BCHW.grad)
    return golden.worst


def _wrong_ranks(folder: Path, device: torch.device, bf16: bool) -> int:
    """Returns the number of MegaFace's golden rank accuracies that differ by the torch engine."""
    folder = folder / "megaface"
    trees = []
    for name, images in (
        ("facescrub", "facescrub_features_list.json"),
        ("megaface", "megaface_features_list.json_400_1"),
    ):
        paths = json.loads((folder / images).read_text())["path"]
        trees.append((paths, FeatureTree(folder / "features" / name, "golden", paths)))
    (probes, probe_PD), (_, row_GD) = trees
    expected = json.loads((folder / "expected.json").read_text())["rank_accuracy"]
    ranks = max(map(int, expected))
    engine = TorchEngine(str(device), bfloat16=bf16)
    top_SPK, _ = top_k(probe_PD[:], row_GD, ranks, cosine=True, engine=engine)
    pairs = mate_pairs(np.array([path.partition("/")[0] for path in probes]))
    rank_M = hit_ranks(pairs.scores(probe_PD[:], cosine=True), pairs.probe_M, top_SPK[0])
    hit_K = probe_hits(rank_M, pairs.probe_M, len(probes), ranks).sum(axis=0)
    accuracy_K = (hit_K / len(pairs)).tolist()
    return sum(accuracy_K[int(rank) - 1] != accuracy for rank, accuracy in expected.items())
