"""Dynamic meta-embedding against the authors' released code, and its memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from facelt.distributed.logits import GatheredFeatures
from facelt.heads.dynamic_meta import DynamicMetaHead
from facelt.heads.memory import IdentityMemory


def filled_memory(centroid_CD: torch.Tensor, **options) -> IdentityMemory:
    memory = IdentityMemory(len(centroid_CD), centroid_CD.shape[1], **options).to(centroid_CD.dtype)
    memory.accumulate(GatheredFeatures.gather(centroid_CD), torch.arange(len(centroid_CD)))
    memory.finish()
    return memory


def golden_head(reference) -> DynamicMetaHead:
    memory = filled_memory(torch.from_numpy(reference["centroids"]))
    head = DynamicMetaHead(memory, reference["x"].shape[1])
    with torch.no_grad():
        head.hallucinator.weight.copy_(torch.from_numpy(reference["hallucinator_weight"]))
        head.hallucinator.bias.copy_(torch.from_numpy(reference["hallucinator_bias"]))
        head.selector.weight.copy_(torch.from_numpy(reference["selector_weight"]))
        head.selector.bias.copy_(torch.from_numpy(reference["selector_bias"]))
        head.classifier.weight.copy_(torch.from_numpy(reference["classifier_weight"]))
    return head


def assert_close(actual: torch.Tensor, expected: np.ndarray) -> None:
    assert np.abs(actual.detach().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_equals_the_released_code(golden):
    reference = np.load(golden / "oltr_dme.npz")
    head = golden_head(reference)
    x = torch.from_numpy(reference["x"]).requires_grad_()
    logits, embedding = head(GatheredFeatures.gather(x))
    loss = logits.cross_entropy(torch.from_numpy(reference["y"]))
    loss.backward()
    assert_close(logits.local_BC, reference["logits"])
    assert_close(embedding.infused_bD, reference["infused"])
    assert_close(loss, reference["loss"])
    assert_close(x.grad, reference["grad_x"])
    for name, parameter in (("hallucinator", head.hallucinator), ("selector", head.selector)):
        assert_close(parameter.weight.grad, reference[f"grad_{name}_weight"])
    assert_close(head.classifier.weight.grad, reference["grad_classifier_weight"])
    assert head.memory.centroid_CD.grad is None


def plain_logits(head: DynamicMetaHead, x: torch.Tensor, scale: float, squash) -> torch.Tensor:
    """The formula with everything expanded to B x C x D."""
    centroid = head.memory.centroid_CD.detach()
    memory = torch.softmax(x @ head.hallucinator.weight.T + head.hallucinator.bias, 1) @ centroid
    selector = torch.tanh(x @ head.selector.weight.T + head.selector.bias)
    distance = (x[:, None] - centroid[None]).square().sum(-1).sqrt().min(1).values
    v = scale / distance[:, None] * (x + selector * memory)
    weight = torch.nn.functional.normalize(head.classifier.weight, dim=1)
    return 16 * squash(v.norm(dim=1, keepdim=True)) * torch.nn.functional.normalize(v, dim=1) @ weight.T


@pytest.mark.parametrize(
    ("variant", "scale", "squash"),
    [("released", 10.0, lambda n: n / (1 + n)), ("paper", 1.0, lambda n: n**2 / (1 + n**2))],
)
def test_variants_equal_the_expanded_formula(variant, scale, squash):
    torch.manual_seed(0)
    memory = filled_memory(torch.randn(7, 4, dtype=torch.float64))
    head = DynamicMetaHead(memory, 4, variant=variant).double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    logits, embedding = head(GatheredFeatures.gather(x))
    expected = plain_logits(head, x, scale, squash)
    torch.testing.assert_close(logits.local_BC, expected)
    weighting = torch.randn(5, 7, dtype=torch.float64)
    actual = torch.autograd.grad((logits.local_BC * weighting).sum(), [x, *head.parameters()], allow_unused=True)
    plain = torch.autograd.grad((expected * weighting).sum(), [x, *head.parameters()], allow_unused=True)
    for left, right in zip(actual, plain, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right)
    length = embedding.meta_bD.norm(dim=1)
    assert (length < 1).all()
    torch.testing.assert_close(length, squash(embedding.vector.local_bD.norm(dim=1)))


def test_nothing_is_nan_at_distance_zero():
    memory = filled_memory(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
    head = DynamicMetaHead(memory, 3)
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], requires_grad=True)
    logits, embedding = head(GatheredFeatures.gather(x))
    logits.cross_entropy(torch.tensor([0, 1])).backward()
    assert torch.isfinite(logits.local_BC).all()
    assert torch.isfinite(embedding.meta_bD).all()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("off", ["memory", "selector", "reachability"])
def test_parts_switched_off(off):
    torch.manual_seed(0)
    memory = filled_memory(torch.randn(7, 4))
    head = DynamicMetaHead(memory, 4, **{f"use_{off}": False})
    x = torch.randn(5, 4)
    embedding = head.embed(GatheredFeatures.gather(x))
    reach = torch.ones(5) if off == "reachability" else embedding.reachability_b
    torch.testing.assert_close(embedding.vector.local_bD, reach[:, None] * (x + embedding.infused_bD))
    if off == "memory":
        assert not embedding.infused_bD.any()
    if off == "selector":
        coefficient = torch.softmax(head.hallucinator(GatheredFeatures.gather(x)).local_BC, 1)
        torch.testing.assert_close(embedding.infused_bD, coefficient @ memory.centroid_CD)


MEMORY_USE = """
import torch
from facelt.distributed.logits import GatheredFeatures
from facelt.heads.dynamic_meta import DynamicMetaHead
from facelt.heads.memory import IdentityMemory
from facelt.losses.centroids import discriminative_centroids_loss

def memory_bytes(name):
    # getrusage's figure would be at least that of the parent process.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

torch.manual_seed(0)
torch.set_num_threads(1)
C, D, B = 74_500, 512, 64
memory = IdentityMemory(C, D)
memory.centroid_CD.data.normal_()
memory.filled_C.fill_(True)
head = DynamicMetaHead(memory, D)
x = torch.randn(B, D, requires_grad=True)
(torch.randn(256, 256) @ torch.randn(256, 256)).sum()
label = torch.randint(C, (B,))
before = memory_bytes("VmRSS")
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # resets VmHWM
feature = GatheredFeatures.gather(x)
logits, embedding = head(feature)
centroids = discriminative_centroids_loss(feature, memory.centroid_CD, label, memory.classes)
loss = logits.cross_entropy(label) + 0.01 * centroids
loss.backward()
gradients = sum(p.grad.numel() * 4 for p in head.parameters())
print(memory_bytes("VmHWM") - before - gradients)
"""


def test_a_step_needs_less_than_three_tensors_of_batch_by_identities():
    """Peak memory without parameters and gradients: blocks, B x D tensors, and buffers of the products."""
    run = subprocess.run([sys.executable, "-c", MEMORY_USE], capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 3 * 64 * 74_500 * 4
