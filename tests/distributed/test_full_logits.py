"""All classes' logits on every rank: a loss that every rank computes alike, and its gradients, are one process's."""

import torch
import torch.nn.functional as F

from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import Shares, gather_whole, is_split, rank, world
from facelt.distributed.logits import GivenLogits, SharedFeature
from facelt.heads.classifiers import LinearHead
from tests.distributed.ranks import run_ranks

CLASSES, DIM, BATCH = 7, 4, 5


def loss_and_gradients() -> dict[str, torch.Tensor]:
    """A loss that is no sum over classes nor over images, with a part on the features themselves."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    head = LinearHead(DIM, CLASSES).double()
    feature_BD = torch.randn(BATCH, DIM, generator=random, dtype=torch.float64)
    label_B = torch.randint(0, CLASSES, (BATCH,), generator=random)
    own = slice(BATCH * rank() // world(), BATCH * (rank() + 1) // world())
    own_bD = feature_BD[own].requires_grad_()
    feature = SharedFeature.of(own_bD)
    logits = head(feature)
    whole_BC = logits.whole_BC
    spread = torch.cdist(*[gather_whole(own_bD, feature.shares)] * 2).square().sum()
    loss = F.cross_entropy(whole_BC, label_B).square() + whole_BC.logsumexp(dim=(0, 1)) + 0.1 * spread
    loss.backward()
    return {
        "loss": loss.detach(),
        "whole": whole_BC.detach(),
        "feature": own_bD.grad,
        "weight": head.weight.grad,
        "bias": head.bias.grad,
        "argmax": logits.argmax(),
        "again": GivenLogits(whole_BC, logits.classes, feature.shares).argmax(),
        "split": torch.tensor(is_split()),
    }


def test_ranks_agree_with_one_process(tmp_path):
    alone, together = loss_and_gradients(), run_ranks(loss_and_gradients, 2, tmp_path)
    assert all(result["split"] for result in together)
    for result in together:
        torch.testing.assert_close(result["loss"], alone["loss"], rtol=1e-12, atol=0)
        torch.testing.assert_close(result["whole"], alone["whole"], rtol=0, atol=1e-12)
    for name in ("feature", "weight", "bias", "argmax", "again"):
        torch.testing.assert_close(torch.cat([result[name] for result in together]), alone[name], rtol=0, atol=1e-12)


def test_given_logits_answer_for_the_ranks_own_classes_and_images():
    logits = GivenLogits(torch.tensor([[1.0, 3.0, 2.0]]), ClassRange.own(3), Shares((1,)))
    assert logits.argmax().tolist() == [1]
    assert logits.maximum().tolist() == [3.0]
    assert logits.column_BC.shape == logits.whole_BC.shape == (1, 3)


def test_alone_nothing_is_copied():
    value = torch.zeros(2, 3)
    assert gather_whole(value, Shares((2,))) is value
