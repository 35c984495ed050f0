"""Samplers against plain loops, and the properties that users rely on."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.config.registry import SAMPLERS
from facelt.data.loader import ShardedSampler
from facelt.data.samplers import ClassAwareSampler, InstanceSampler, RngStream, SequentialSampler, hash_words
from facelt.errors import UserError

LABELS = st.lists(st.integers(-1, 6), min_size=1, max_size=40).filter(lambda labels: max(labels) >= 0)
QUICK = settings(max_examples=60, deadline=None)


def plain_hash(*words: int) -> int:
    """Returns SplitMix64 over each word, in Python integers."""
    state = 0
    for word in words:
        state = ((state ^ (word % 2**64)) + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state


def plain_class_aware(labels, batch, seed, per_class, epochs) -> list[int]:
    """Returns all images of the first epochs: walks the class cycle with one image cycle for each class."""
    images = [[i for i, label in enumerate(labels) if label == c] for c in sorted({c for c in labels if c >= 0})]
    total = sum(map(len, images)) // batch * batch * epochs
    waiting, rounds, draws, cycle = [[] for _ in images], [0] * len(images), [], 0
    while len(draws) < total:
        for c in sorted(range(len(images)), key=lambda c: plain_hash(RngStream.CLASS_ORDER, seed, cycle, c)):
            for _ in range(per_class):
                if not waiting[c]:
                    order = sorted(
                        range(len(images[c])), key=lambda i: plain_hash(RngStream.IMAGE_ORDER, seed, c, rounds[c], i)
                    )
                    waiting[c], rounds[c] = [images[c][i] for i in order], rounds[c] + 1
                draws.append(waiting[c].pop(0))
        cycle += 1
    return draws[:total]


def test_the_hash_is_splitmix64():
    assert int(hash_words(0)) == 0xE220A8397B1DCDAF  # the published generator's first output from state 0
    words = np.array([0, 1, -1, 2**62])
    assert hash_words(3, words).tolist() == [plain_hash(3, word) for word in words.tolist()]


@QUICK
@given(LABELS, st.integers(1, 9), st.integers(0, 2**40), st.integers(1, 5))
def test_class_aware_equals_the_plain_loop(labels, batch, seed, per_class):
    if sum(label >= 0 for label in labels) < batch:
        return
    sampler = ClassAwareSampler(np.array(labels), batch, seed, per_class=per_class)
    result = [index for epoch in range(3) for index in sampler.epoch_indices(epoch).tolist()]
    assert result == plain_class_aware(labels, batch, seed, per_class, epochs=3)


@QUICK
@given(LABELS, st.integers(0, 100))
def test_class_aware_visits_classes_equally_and_images_before_repeats(labels, seed):
    known = [label for label in labels if label >= 0]
    sampler = ClassAwareSampler(np.array(labels), 1, seed, per_class=2)
    draws = np.concatenate([sampler.epoch_indices(epoch) for epoch in range(4)])
    drawn = Counter(labels[index] for index in draws.tolist())
    assert set(drawn) <= set(known)
    assert max(drawn.values()) - min(drawn.get(label, 0) for label in known) <= 2
    for label in drawn:
        shown = Counter(index for index in draws.tolist() if labels[index] == label)
        counts = [shown.get(index, 0) for index, difference in enumerate(labels) if difference == label]
        assert max(counts) - min(counts) <= 1


@QUICK
@given(LABELS, st.integers(1, 9), st.integers(0, 2**40), st.integers(0, 20))
def test_instance_sampling_gives_every_image_at_most_once(labels, batch, seed, epoch):
    known = [index for index, label in enumerate(labels) if label >= 0]
    if len(known) < batch:
        return
    index = InstanceSampler(np.array(labels), batch, seed).epoch_indices(epoch)
    assert len(index) == len(known) // batch * batch
    assert len(set(index.tolist())) == len(index)
    assert set(index.tolist()) <= set(known)
    expected = sorted(range(len(known)), key=lambda i: plain_hash(RngStream.INSTANCE_ORDER, seed, epoch, i))
    assert index.tolist() == [known[i] for i in expected][: len(index)]


def test_instance_order_is_uniform():
    sampler = InstanceSampler(np.zeros(10, np.int64), 10, seed=3)
    first = Counter(int(sampler.epoch_indices(epoch)[0]) for epoch in range(4000))
    assert min(first.values()) > 320
    assert max(first.values()) < 480


# Images in an epoch for classes of 20, 9, 3 and 1.
LISTED = dict.fromkeys(SAMPLERS, 33) | {"oversample": 80, "undersample": 4, "identity": 4, "identity_mate": 4}
SEED_STREAMS = dict.fromkeys(SAMPLERS, RngStream.REQUEST_SEED) | {"identity_mate": RngStream.MATE_REQUEST_SEED}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_training_sampler_keeps_the_protocol(name):
    labels = np.repeat(np.arange(4), (20, 9, 3, 1))
    sampler = SAMPLERS[name](labels, 4, seed=5, epochs=8)
    draws = LISTED[name] // 4 * 4
    assert sampler.steps_per_epoch * 4 == draws
    index_T, seed_T = sampler.epoch_requests(2)
    assert index_T.dtype == seed_T.dtype == np.int64
    assert index_T.shape == seed_T.shape == (draws,)
    assert seed_T.min() >= 0
    assert seed_T.tolist() == [plain_hash(SEED_STREAMS[name], 5, 2, position) >> 1 for position in range(draws)]
    np.testing.assert_array_equal(index_T, SAMPLERS[name](labels, 4, seed=5, epochs=8).epoch_indices(2))
    assert index_T.tolist() != sampler.epoch_indices(3).tolist()
    assert index_T.tolist() != SAMPLERS[name](labels, 4, seed=6, epochs=8).epoch_indices(2).tolist()


@pytest.mark.parametrize("name", SAMPLERS)
def test_without_drop_last_an_epoch_ends_with_the_images_left(name):
    labels, batch = np.repeat(np.arange(4), (20, 9, 3, 1)), 4 if LISTED[name] == 33 else 3
    assert LISTED[name] % batch
    whole, sampler = (SAMPLERS[name](labels, batch, seed=5, epochs=8, drop_last=drop) for drop in (True, False))
    assert sampler.steps_per_epoch == whole.steps_per_epoch + 1
    index_T, seed_T = sampler.epoch_requests(2)
    assert len(index_T) == len(seed_T) == LISTED[name]
    shards = [list(ShardedSampler(sampler, rank, 2).steps(2, 0)) for rank in (0, 1)]
    listed = [index for step in zip(*shards, strict=True) for shard in step for index in shard.index_B.tolist()]
    assert listed == index_T.tolist()
    if name != "class_aware":  # its epochs are windows of one sequence
        assert index_T[: whole.steps_per_epoch * batch].tolist() == whole.epoch_indices(2).tolist()
    if name == "instance":
        assert sorted(index_T) == list(range(33))


@pytest.mark.parametrize("name", SAMPLERS)
def test_members_restrict_the_draws(name):
    labels, members = np.repeat(np.arange(3), 10), np.array([0, 2, 4, 13, 29])
    sampler = SAMPLERS[name](labels, 2, seed=0, members=members, epochs=20)
    images = {"oversample": 9} | dict.fromkeys(("undersample", "identity", "identity_mate"), 3)
    assert sampler.steps_per_epoch == images.get(name, 5) // 2
    drawn = {index for epoch in range(20) for index in sampler.epoch_indices(epoch).tolist()}
    assert drawn == set(members.tolist())


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("labels", [[0, 0, 0, -1], [-1, -1, -1, -1]], ids=["three", "none"])
def test_fewer_images_than_a_batch_is_refused(name, labels):
    known = len({0} & set(labels)) if name.startswith("identity") else labels.count(0)
    noun = "identities" if name.startswith("identity") else "images"
    with pytest.raises(UserError, match=f"{known} training {noun} are fewer than one batch of 4"):
        SAMPLERS[name](np.array(labels), 4, seed=0, epochs=1)


def test_sequential_keeps_the_last_partial_batch():
    sampler = SequentialSampler(10, 4)
    assert sampler.steps_per_epoch == 3
    assert sampler.epoch_indices(0).tolist() == list(range(10))
    assert SequentialSampler(10, 4, members=np.array([7, 3])).epoch_requests(0)[0].tolist() == [7, 3]
    assert SequentialSampler(0, 4).steps_per_epoch == 0
