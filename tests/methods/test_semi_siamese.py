"""Semi-Siamese Training: loss and gradient by a plain loop, the queue, the gallery network, and ranks."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from facelt.config.registry import METHODS
from facelt.distributed.comm import rank, world_size
from facelt.errors import UserError
from facelt.methods.base import Method, StepContext, TrainBatch
from facelt.methods.semi_siamese import SemiSiameseSettings
from tests.distributed.ranks import run_ranks
from tests.methods.small import CLASSES, COUNTS, FIRST, reloaded, run_dataset_passes, small_network, training_set

LABELS = torch.tensor([3, 0, 4])
QUEUE_LABELS = torch.tensor([0, 3, 1, 2])


def build(counts: tuple[int, ...] | None = COUNTS, **options) -> Method:
    settings = SemiSiameseSettings(name="semi_siamese", **{"queue": 4, **options})
    torch.manual_seed(5)
    return METHODS["semi_siamese"](settings, small_network(), CLASSES, None if counts is None else torch.tensor(counts))


def method_in_training(**options) -> Method:
    """A method after its pass over the training set, whose networks differ and whose queue is full."""
    method = build(**options)
    run_dataset_passes(method, training_set())
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in method.gallery.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    method.queue_label_Q.copy_(QUEUE_LABELS)
    method.queue_position.fill_(2)
    return method


def pairs(labels: torch.Tensor = LABELS) -> list[TrainBatch]:
    random = torch.Generator().manual_seed(8)
    image = torch.randn(2, len(labels), 3, 2, 2, generator=random)
    return [TrainBatch(image[0], labels), TrainBatch(image[1], labels)]


def plain_loss(method: Method, batches: list[TrainBatch], scale: float, margin: float) -> torch.Tensor:
    """The mean over both directions and all pairs, pair by pair and entry by entry."""
    images, labels, size = torch.cat([batch.image_B3HW for batch in batches]), batches[0].label_B.tolist(), len(LABELS)
    probe = F.normalize(method.network(images), dim=1)
    with torch.no_grad():
        gallery = F.normalize(method.gallery.module(images), dim=1)
    total = torch.zeros(())
    for direction in (0, 1):
        queue, queue_labels = list(method.queue_QD), method.queue_label_Q.tolist()
        rows = [(int(method.queue_position) + number) % len(queue) for number in range(size)]
        for number, row in enumerate(rows):
            queue[row], queue_labels[row] = gallery[(1 - direction) * size + number], labels[number]
        for number, row in enumerate(rows):
            feature, terms = probe[direction * size + number], {}
            for entry, prototype in enumerate(queue):
                if entry == row:
                    terms[entry] = scale * (feature @ prototype - margin)
                elif queue_labels[entry] != labels[number]:
                    terms[entry] = scale * (feature @ prototype)
            total = total - terms[row] + torch.stack(list(terms.values())).exp().sum().log()
    return total / (2 * size)


@pytest.mark.parametrize(("scale", "margin"), [(32.0, 0.35), (4.0, 0.1)])
def test_loss_and_gradient_equal_a_plain_loop(scale, margin):
    method = method_in_training(scale=scale, margin={"name": "cosface", "m": margin})
    plain, batches = copy.deepcopy(method), pairs()
    output = method.step(batches, FIRST)
    expected = plain_loss(plain, batches, scale, margin)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    output.loss.backward()
    expected.backward()
    for name, parameter in method.network.named_parameters():
        torch.testing.assert_close(
            parameter.grad, dict(plain.network.named_parameters())[name].grad, rtol=1e-4, atol=1e-5
        )
    assert all(parameter.grad is None for parameter in method.gallery.parameters())


def test_the_defaults_are_those_of_the_released_code():
    settings = SemiSiameseSettings(name="semi_siamese")
    assert (settings.queue, settings.momentum, settings.scale) == (16384, 0.999, 32)
    assert (settings.margin.name, settings.margin.options) == ("cosface", {"m": 0.35})


def test_a_margin_that_needs_a_classifier_is_refused():
    with pytest.raises(ValidationError, match="name: adaface needs a classifier; choose cosface, arcface, combined"):
        SemiSiameseSettings(name="semi_siamese", margin={"name": "adaface"})


def test_an_older_feature_of_the_same_identity_is_no_negative():
    method = method_in_training()
    # Rows 2, 3 and 0 are replaced, and row 1 holds an older feature of the first identity of the batch.
    first = method.step(pairs(), FIRST).loss
    with torch.no_grad():
        method.queue_QD[1] = -method.queue_QD[1]
    changed = method.step(pairs(), FIRST).loss
    method.queue_label_Q[1] = 1
    assert first != changed
    other = method.step(pairs(), FIRST).loss
    assert other > changed


def test_the_queue_is_a_ring_of_the_newest_gallery_features():
    method, batches = method_in_training(), pairs()
    before = method.queue_QD.clone()
    with torch.no_grad():
        gallery = F.normalize(method.gallery.module(torch.cat([batch.image_B3HW for batch in batches])), dim=1)
    output = method.step(batches, FIRST)
    assert torch.equal(method.queue_QD, before)
    output.after(torch.tensor(True))
    first, second = gallery.split(3)
    stored = method.queue_QD[[2, 3, 0]]
    assert torch.allclose(stored, first) != torch.allclose(stored, second)
    assert torch.equal(method.queue_QD[1], before[1])
    assert method.queue_label_Q.tolist() == [4, 3, 3, 0]
    assert method.queue_position == 1
    # Each direction is stored in some of the steps.
    sides = set()
    for step in range(12):
        method.queue_position.fill_(0)
        method.step(batches, StepContext(0, 1, step, 12)).after(torch.tensor(True))
        own = F.normalize(method.gallery.module(torch.cat([batch.image_B3HW for batch in batches])), dim=1)[:3]
        sides.add(torch.allclose(method.queue_QD[:3], own, atol=0.05))
    assert sides == {True, False}


def test_the_gallery_network_starts_equal_and_follows_once_per_step():
    method = build(momentum=0.75)
    run_dataset_passes(method, training_set())
    network, gallery = method.network, method.gallery.module
    assert all(torch.equal(*both) for both in zip(network.parameters(), gallery.parameters(), strict=True))
    # A step of two micro-batches.
    outputs = [method.step(pairs(labels), FIRST) for labels in (torch.tensor([0, 1]), torch.tensor([2, 3]))]
    before = [parameter.clone() for parameter in gallery.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    for output in outputs:
        output.after(torch.tensor(True))
    for old, new in zip(before, gallery.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)
    assert method.queue_label_Q.tolist() == [0, 1, 2, 3]


def test_a_step_without_an_update_changes_neither_queue_nor_gallery_network():
    method = method_in_training()
    kept = ("queue", "gallery", "head")
    before = {name: value.clone() for name, value in method.state_dict().items() if name.startswith(kept)}
    method.step(pairs(), FIRST).loss.backward()
    after = method.state_dict()
    assert len(before) > 10
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not torch.equal(
        method.network.embedding.norm.running_mean, method.gallery.module.embedding.norm.running_mean
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_of_the_gallery_network_follows_the_mode_of_the_network(frozen):
    method, batches = method_in_training(), pairs()
    if frozen:
        method.network.eval()
    gallery = copy.deepcopy(method.gallery.module).train(not frozen)
    images = torch.cat([batch.image_B3HW for batch in batches])
    feature = gallery.embedding.linear(images.flatten(1))
    mean, variance = feature.mean(dim=0), feature.var(dim=0, unbiased=False)
    norm = gallery.embedding.norm
    if frozen:
        mean, variance = norm.running_mean, norm.running_var
    expected = F.normalize((feature - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias, dim=1)
    method.step(batches, FIRST).after(torch.tensor(True))
    stored = method.queue_QD[[2, 3, 0]]
    assert any(torch.allclose(stored, half, atol=1e-5) for half in expected.split(3))


def test_an_image_without_a_mate_is_paired_with_itself():
    """The mate could not be decoded, or the mates have an image whose own mate could not."""
    method, (batch, mates) = method_in_training().eval(), pairs()
    fewer = TrainBatch(mates.image_B3HW[[2, 1]], torch.tensor([4, 5]))
    images = torch.stack([*batch.image_B3HW[:2], mates.image_B3HW[2]])
    expected = method.step([batch, TrainBatch(images, LABELS)], FIRST).loss
    assert torch.equal(method.step([batch, fewer], FIRST).loss, expected)


def test_closed_set_logits_are_cosines_to_class_means_that_follow_the_gallery_features():
    method, data = build(), training_set()
    run_dataset_passes(method, data)
    method.eval()
    feature = F.normalize(method.network(data.image_B3HW), dim=1)
    means = torch.stack([feature[data.label_B == label].mean(dim=0) for label in range(CLASSES - 1)])
    logits = method.logits(data.image_B3HW).local_BC
    torch.testing.assert_close(logits[:, :-1], feature @ F.normalize(means, dim=1).T)
    assert (logits[:, -1] == -1).all()
    method.step(pairs(), FIRST).after(torch.tensor(True))
    kept = method.queue_QD[[0, 1, 2]]
    for label, gallery in zip(LABELS.tolist(), kept, strict=True):
        torch.testing.assert_close(
            method.head.memory.centroid_CD[label], means[label] + 0.25 * (gallery - means[label])
        )


def test_the_embedding_is_that_of_the_network():
    method = method_in_training().eval()
    image = training_set().image_B3HW
    feature = method.network(image) + method.network(image.flip(-1))
    torch.testing.assert_close(method.embed(image).by_kind["direct"], F.normalize(feature, dim=1))


def test_the_state_holds_queue_and_gallery_network():
    method = method_in_training()
    method.step(pairs(), FIRST).after(torch.tensor(True))
    copied = reloaded(method, lambda: build(counts=None))
    context, batches = StepContext(0, 1, 1, 2), pairs(torch.tensor([1, 2, 0]))
    results = []
    for each in (method, copied):
        each.train()
        output = each.step(batches, context)
        output.after(torch.tensor(True))
        results.append((output.loss, *each.state_dict().values()))
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))


def test_identities_limit_the_queue_and_the_queue_limits_the_batch():
    # Five of the six classes have images.
    with pytest.raises(UserError, match=r"^method\.queue: 5 entries need more than 5 identities, .* have 5; lower it$"):
        build(queue=5)
    with pytest.raises(UserError, match=r"^method\.queue: 16384 entries need more than 16384 identities, .* have 6"):
        build(counts=None, queue=16384)
    with pytest.raises(UserError, match=r"^method\.queue: 4 entries do not hold a batch of 5 pairs; raise it, or"):
        method_in_training().step(pairs(torch.arange(5)), FIRST)


def test_bfloat16_is_for_the_networks_alone():
    method, exact = method_in_training(), method_in_training()
    method.bf16 = True
    seen = []
    for network in (method.network, method.gallery.module):
        network.embedding.linear.register_forward_hook(lambda module, inputs, result: seen.append(result.dtype))
    output = method.step(pairs(), FIRST)
    assert seen == [torch.bfloat16] * 2
    assert output.loss.dtype == torch.float32
    expected = exact.step(pairs(), FIRST).loss
    assert output.loss.item() == pytest.approx(expected.item(), rel=0.05)
    assert output.loss != expected
    output.after(torch.tensor(True))
    assert method.queue_QD.dtype == torch.float32


def run_steps() -> dict[str, object]:
    """Two steps on this rank's pairs, of which the first rank has more, with summed gradients as of DDP."""
    method = method_in_training().double()
    method.network.eval()
    losses = []
    for step in range(2):
        whole = pairs(LABELS + step)
        own = torch.arange(3).tensor_split([2])[rank()] if world_size() > 1 else slice(None)
        batches = [TrainBatch(batch.image_B3HW[own].double(), batch.label_B[own]) for batch in whole]
        method.zero_grad()
        output = method.step(batches, StepContext(0, 1, step, 2))
        output.loss.backward()
        losses.append(output.loss.item())
        for parameter in method.network.parameters():
            if world_size() > 1:
                torch.distributed.all_reduce(parameter.grad)
            parameter.data.sub_(0.1 * parameter.grad)
        output.after(torch.tensor(True))
    state = {name: value for name, value in method.state_dict().items() if not name.startswith("head")}
    return {"losses": losses, "state": state}


def test_two_ranks_train_as_one(tmp_path):
    # A rank has one thread: float32 sums of the start differ with the number of threads.
    (alone,) = run_ranks(run_steps, 1, tmp_path)
    together = run_ranks(run_steps, 2, tmp_path)
    for result in together:
        assert result["losses"] == pytest.approx(alone["losses"], rel=1e-9)
        for name, value in alone["state"].items():
            torch.testing.assert_close(result["state"][name], value, rtol=1e-9, atol=1e-12, msg=name)
    # The queue is the same on all ranks to the last bit.
    assert all(torch.equal(together[0]["state"][name], together[1]["state"][name]) for name in alone["state"])


def test_batch_norms_of_both_networks_become_synchronised_and_the_gallerys_keep_their_statistics():
    method = nn.SyncBatchNorm.convert_sync_batchnorm(method_in_training())
    norms = [network.embedding.norm for network in (method.network, method.gallery.module)]
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert [norm.track_running_stats for norm in norms] == [True, False]
    assert method.state_dict().keys() == method_in_training().state_dict().keys()
    assert math.isfinite(norms[1].running_mean.sum())
