"""Time of the dynamic meta-embedding head, compared with its matrix products and with the expanded formula.

python benchmarks/head.py [--identities 74500] [--dim 512] [--batch 64] [--expanded-identities 10000]

Prints one JSON object per line. Two programs alternate in one run; a ratio is that of their best rounds.

B batch, C identities, D feature.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from facelt.distributed.logits import GatheredFeatures
from facelt.heads.classifiers import CosineHead
from facelt.heads.dynamic_meta import DynamicMetaHead
from facelt.heads.memory import IdentityMemory
from facelt.losses.centroids import discriminative_centroids_loss


def head_step(identities: int, dim: int, batch: int) -> Callable[[], None]:
    """Forward and backward of the head with its losses; memory and classifier are trained as in the released code."""
    memory = IdentityMemory(identities, dim)
    memory.centroid_CD.data.normal_()
    memory.filled_C.fill_(True)
    head = DynamicMetaHead(memory, dim)
    feature_BD = torch.randn(batch, dim, requires_grad=True)
    label_B = torch.randint(identities, (batch,))

    def step() -> None:
        for parameter in head.parameters():
            parameter.grad = None
        feature = GatheredFeatures.gather(feature_BD)
        logits, _ = head(feature)
        centroids = discriminative_centroids_loss(feature, memory.centroid_CD, label_B, memory.classes)
        (logits.cross_entropy(label_B) + 0.01 * centroids).backward()

    return step


def cosine_step(identities: int, dim: int, batch: int) -> Callable[[], None]:
    """Forward and backward of the cosine classifier with its cross-entropy: 3 products."""
    head = CosineHead(dim, identities)
    feature_BD = torch.randn(batch, dim, requires_grad=True)
    label_B = torch.randint(identities, (batch,))

    def step() -> None:
        head.weight.grad = None
        head(GatheredFeatures.gather(feature_BD)).cross_entropy(label_B).backward()

    return step


def products(identities: int, dim: int, batch: int) -> Callable[[], None]:
    """Only the matrix products: 4 forward (hallucinator, readout, distances, classifier) and 5 backward."""
    thin_BD, wide_BC, rows_CD = torch.randn(batch, dim), torch.randn(batch, identities), torch.randn(identities, dim)

    def step() -> None:
        for _ in range(3):
            thin_BD @ rows_CD.t()
        wide_BC @ rows_CD
        # Backward: features of hallucinator and classifier, coefficients of the readout, weights of both.
        for _ in range(2):
            wide_BC @ rows_CD
            wide_BC.t() @ thin_BD
        thin_BD @ rows_CD.t()

    return step


def expanded(identities: int, dim: int, batch: int) -> Callable[[], None]:
    """The formula with features and centroids expanded to B x C x D."""
    centroid_CD = torch.randn(identities, dim)
    hallucinator, selector = torch.nn.Linear(dim, identities), torch.nn.Linear(dim, dim)
    weight_CD = torch.randn(identities, dim, requires_grad=True)
    feature_BD = torch.randn(batch, dim, requires_grad=True)
    label_B = torch.randint(identities, (batch,))

    def step() -> None:
        distance_BC = (feature_BD[:, None] - centroid_CD[None]).norm(dim=2)
        reachability_B1 = 10 / distance_BC.min(dim=1, keepdim=True).values
        memory_BD = torch.softmax(hallucinator(feature_BD), dim=1) @ centroid_CD
        vector_BD = reachability_B1 * (feature_BD + torch.tanh(selector(feature_BD)) * memory_BD)
        length_B1 = vector_BD.norm(dim=1, keepdim=True)
        meta_BD = vector_BD / length_B1 * (length_B1 / (1 + length_B1))
        F.cross_entropy(16 * meta_BD @ F.normalize(weight_CD, dim=1).t(), label_B).backward()

    return step


def compare(name: str, first: Callable[[], None], second: Callable[[], None], rounds: int) -> dict:
    """Best seconds of both, alternating, and the ratio of the first to the second."""
    first(), second()
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for index, step in enumerate((first, second)):
            started = time.perf_counter()
            step()
            best[index] = min(best[index], time.perf_counter() - started)
    return {"compared": name, "first_s": best[0], "second_s": best[1], "ratio": best[0] / best[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--identities", type=int, default=74_500)
    parser.add_argument("--expanded-identities", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    size = (arguments.identities, arguments.dim, arguments.batch)
    small = (arguments.expanded_identities, arguments.dim, arguments.batch)
    print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "C, D, B": size}))
    print(json.dumps(compare("head / its products", head_step(*size), products(*size), arguments.rounds)))
    print(json.dumps(compare("expanded / head", expanded(*small), head_step(*small), min(arguments.rounds, 3))))


if __name__ == "__main__":
    main()
