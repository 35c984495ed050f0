"""Logits of all classes on every rank: losses computed in full by each rank equal those of one process."""

import torch
import torch.nn.functional as F

from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import BatchSplit, gather_replicated, is_distributed, rank, world_size
from facelt.distributed.logits import GatheredFeatures, ReplicatedLogits
from facelt.heads.classifiers import LinearHead
from tests.distributed.ranks import run_ranks

CLASSES, DIM, BATCH = 7, 4, 5


def loss_and_gradients() -> dict[str, torch.Tensor]:
    """A loss that is not a sum over classes or images, with a term of the features."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    head = LinearHead(DIM, CLASSES).double()
    feature_BD = torch.randn(BATCH, DIM, generator=random, dtype=torch.float64)
    label_B = torch.randint(0, CLASSES, (BATCH,), generator=random)
    own = slice(BATCH * rank() // world_size(), BATCH * (rank() + 1) // world_size())
    local_bD = feature_BD[own].requires_grad_()
    feature = GatheredFeatures.gather(local_bD)
    logits = head(feature)
    full_BC = logits.full_BC
    spread = torch.cdist(*[gather_replicated(local_bD, feature.batch_split)] * 2).square().sum()
    loss = F.cross_entropy(full_BC, label_B).square() + full_BC.logsumexp(dim=(0, 1)) + 0.1 * spread
    loss.backward()
    return {
        "loss": loss.detach(),
        "whole": full_BC.detach(),
        "feature": local_bD.grad,
        "weight": head.weight.grad,
        "bias": head.bias.grad,
        "argmax": logits.argmax(),
        "again": ReplicatedLogits(full_BC, logits.classes, feature.batch_split).argmax(),
        "split": torch.tensor(is_distributed()),
    }


def test_ranks_agree_with_one_process(tmp_path):
    alone, together = loss_and_gradients(), run_ranks(loss_and_gradients, 2, tmp_path)
    assert all(result["split"] for result in together)
    for result in together:
        torch.testing.assert_close(result["loss"], alone["loss"], rtol=1e-12, atol=0)
        torch.testing.assert_close(result["whole"], alone["whole"], rtol=0, atol=1e-12)
    for name in ("feature", "weight", "bias", "argmax", "again"):
        torch.testing.assert_close(torch.cat([result[name] for result in together]), alone[name], rtol=0, atol=1e-12)


def test_replicated_logits():
    logits = ReplicatedLogits(torch.tensor([[1.0, 3.0, 2.0]]), ClassRange.local(3), BatchSplit((1,)))
    assert logits.argmax().tolist() == [1]
    assert logits.maximum().tolist() == [3.0]
    assert logits.local_BC.shape == logits.full_BC.shape == (1, 3)


def test_one_process_copies_nothing():
    value = torch.zeros(2, 3)
    assert gather_replicated(value, BatchSplit((2,))) is value
