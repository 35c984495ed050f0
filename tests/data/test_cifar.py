"""CIFAR: the published files, the images of a long-tailed set, and refused files."""

import os
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facelt.data.batch import SampleRequest
from facelt.data.cifar import CifarDataset, long_tailed_members, open_cifar, read_cifar_file
from facelt.data.transforms import ExpectSize
from facelt.errors import UserError
from recordio_tools.writer import FaceRecordWriter
from tests.data.cifar_folder import python2_pickle, write_cifar

# METHODS: images of the whole set and of its smallest class for each imbalance.
PUBLISHED = {
    10: {10: (20_431, 500), 20: (17_023, 250), 50: (13_996, 100), 100: (12_406, 50), 200: (11_203, 25)},
    100: {10: (19_573, 50), 20: (15_907, 25), 50: (12_608, 10), 100: (10_847, 5), 200: (9_502, 2)},
}
CIFAR10 = {
    100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
    50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    10: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
    200: [5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25],
}


def labelled(classes: int, count: int, seed: int = 0) -> SimpleNamespace:
    """Returns a stand-in with the attributes of a dataset that the selection uses."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), count))
    return SimpleNamespace(labels=labels, num_classes=classes)


@pytest.mark.parametrize("classes", PUBLISHED)
def test_the_counts_are_the_published_ones(classes):
    dataset = labelled(classes, 50_000 // classes)
    for imbalance, (images, smallest) in PUBLISHED[classes].items():
        counts = np.bincount(dataset.labels[long_tailed_members(dataset, "exponential", imbalance)])
        assert (counts.sum(), counts.min(), counts[-1]) == (images, smallest, smallest)
        assert counts[0] == 50_000 // classes
        assert (np.diff(counts) <= 0).all()
        if classes == 10 and imbalance in CIFAR10:
            assert counts.tolist() == CIFAR10[imbalance]
    assert len(long_tailed_members(dataset, "exponential", 1)) == 50_000
    counts = np.bincount(dataset.labels[long_tailed_members(dataset, "step", 100)])
    assert set(counts[: classes // 2]) == {50_000 // classes}
    assert set(counts[classes // 2 :]) == {500 // classes}


def test_the_images_are_those_of_the_code_that_all_papers_copied():
    dataset = labelled(10, 40, seed=3)
    np.random.seed(0)
    members = []
    for label in range(10):
        places = np.where(dataset.labels == label)[0]
        np.random.shuffle(places)
        members += places[: int(40 * (1 / 20) ** (label / 9))].tolist()
    assert long_tailed_members(dataset, "exponential", 20).tolist() == members


@given(
    count=st.integers(1, 60),
    low=st.floats(1, 300),
    high=st.floats(1, 300),
    profile=st.sampled_from(("step", "exponential")),
)
def test_a_longer_tail_lies_within_a_shorter_one(count, low, high, profile):
    dataset = labelled(7, count)
    shorter, longer = (long_tailed_members(dataset, profile, value) for value in sorted((low, high)))
    assert set(longer) <= set(shorter)
    assert len(set(shorter)) == len(shorter)


@pytest.mark.parametrize("classes", [10, 100])
def test_pixels_labels_and_names_are_the_files(tmp_path, classes):
    splits = write_cifar(tmp_path, classes, per_class=3)
    for split, (image_NHW3, label_N) in splits.items():
        dataset = open_cifar(tmp_path, classes, split)
        assert dataset.labels.tolist() == label_N.tolist()
        assert (dataset.num_classes, dataset.image_size, len(dataset)) == (classes, (32, 32), len(label_N))
        for index in range(len(label_N)):
            sample = dataset[SampleRequest(index, 0)]
            assert np.array_equal(sample.image_HW3, image_NHW3[index])
            assert sample.label == label_N[index]
    names = [open_cifar(tmp_path, classes, "train").image_name(index) for index in (0, 7, 29)]
    assert names == (
        ["data_batch_1:0", "data_batch_2:1", "data_batch_5:5"] if classes == 10 else ["train:0", "train:7", "train:29"]
    )


def test_the_small_files_are_what_python_2_wrote():
    rows = np.random.default_rng(1).integers(0, 256, (2, 5), dtype=np.uint8)
    values = pickle.loads(python2_pickle({b"data": rows, b"labels": [3, 400], b"batch_label": b"x"}), encoding="latin1")
    assert np.array_equal(values.pop("data"), rows)
    assert values == {"labels": [3, 400], "batch_label": "x"}


@pytest.mark.parametrize("protocol", [3, 4])
def test_files_rewritten_by_python_3_are_read_too(tmp_path, protocol):
    rows = np.random.default_rng(1).integers(0, 256, (3, 3072), dtype=np.uint8)
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps({"data": rows, "fine_labels": [4, 2, 9]}, protocol=protocol))
    image_NHW3, label_N = read_cifar_file(path, "fine_labels", 100)
    assert np.array_equal(image_NHW3, rows.reshape(3, 3, 32, 32).transpose(0, 2, 3, 1))
    assert label_N.tolist() == [4, 2, 9]


class Runs:
    """Object whose pickle calls a function when loaded."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def test_no_file_makes_anything_run(tmp_path):
    canary = tmp_path / "canary"
    rows = np.zeros((1, 3072), np.uint8)
    calls = (
        (os.mkdir, (str(canary),)),
        (eval, (f"__import__('os').mkdir({str(canary)!r})",)),
        (np.load, (str(canary),)),
        (random.Random, ()),
    )
    for number, call in enumerate(calls):
        path = tmp_path / f"file{number}"
        path.write_bytes(pickle.dumps({"data": rows, "labels": [0], "more": Runs(*call)}))
        with pytest.raises(
            UserError, match=r"file\d: not a CIFAR file \(.* is not allowed in a CIFAR file\)"
        ) as caught:
            read_cifar_file(path, "labels", 10)
        assert "\n" not in str(caught.value)
        assert not canary.exists()
    pickle.loads(pickle.dumps(Runs(*calls[0])))
    assert canary.is_dir(), "the file would have made the folder, had it been let"


def _pickled(rows: object, labels: object) -> bytes:
    return pickle.dumps({"data": rows, "labels": labels})


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not a CIFAR file"),
        (b"no pickle", "not a CIFAR file"),
        (_pickled(np.zeros((2, 3072), np.uint8), [0, 1])[:-900], "not a CIFAR file"),
        (_pickled(np.zeros((2, 3072), np.int64), [0, 1]), "an array has the type 'i8', expected u1"),
        (_pickled(np.array([{}]), [0]), "an array has the type 'O8', expected u1"),
        (_pickled(np.zeros((2, 3071), np.uint8), [0, 1]), "not a CIFAR file"),
        (_pickled(np.zeros((2, 3072), np.uint8), [0, 1, 2]), r"2 images but 3 labels"),
        (_pickled(np.zeros((2, 3072), np.uint8), "ab"), "not a CIFAR file"),
        (_pickled(b"bytes", [0]), "not a CIFAR file"),
        (pickle.dumps([1, 2]), "not a CIFAR file"),
        (
            pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}),
            "labels is not a list of numbers",
        ),
        (_pickled(np.zeros((1, 3072), np.uint8), [[0]]), "labels is not a list of numbers"),
        (_pickled(np.zeros((1, 3072), np.uint8), "0"), "labels is not a list of numbers"),
        (b"cnumpy\nndarray\n(K\x05tR.", "not a CIFAR file"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\nK\x00U\x01btR.", "an array has an unknown class"),
    ],
)
def test_a_damaged_or_foreign_file_is_named_in_one_line(tmp_path, payload, reason):
    (tmp_path / "batch").write_bytes(payload)
    with pytest.raises(UserError, match=rf"batch: .*{reason}.*; download it again") as caught:
        read_cifar_file(tmp_path / "batch", "labels", 10)
    assert "\n" not in str(caught.value)


def test_missing_files_and_labels_out_of_range_are_named(tmp_path):
    with pytest.raises(
        UserError, match=r"^data\.root: .* contains neither cifar-100-python nor train\.rec; .*download=true"
    ):
        open_cifar(tmp_path, 100, "train")
    write_cifar(tmp_path, 100, per_class=1)
    (tmp_path / "cifar-100-python/train").unlink()
    with pytest.raises(UserError, match=r"cifar-100-python/train: cannot read the file \(No such file"):
        open_cifar(tmp_path, 100, "train")
    values = {b"fine_labels": [100], b"data": np.zeros((1, 3072), np.uint8)}
    (tmp_path / "cifar-100-python/test").write_bytes(python2_pickle(values))
    with pytest.raises(UserError, match=r"cifar-100-python/test: labels outside 0\.\.99"):
        CifarDataset(tmp_path, 100, "test", ExpectSize((32, 32)))


def write_record(path, counts, encode) -> None:
    with FaceRecordWriter(path, image_size=(32, 32), num_identities=len(counts)) as writer:
        for number, label in enumerate(np.repeat(np.arange(len(counts)), counts).tolist()):
            writer.write(label, encode(32, 32, seed=number))


def test_of_a_record_the_first_images_of_each_class_stay(tmp_path, encode):
    counts = [9, 8, 7, 6, 5, 4, 4, 3, 3, 3]
    write_record(tmp_path / "train.rec", counts, encode)
    dataset = open_cifar(tmp_path, 10, "train")
    members = long_tailed_members(dataset, "exponential", 9)
    starts = np.cumsum([0, *counts])
    expected = [starts[c] + position for c in range(10) for position in range(int(9 * (1 / 9) ** (c / 9) + 1e-9))]
    assert members.tolist() == expected
    with pytest.raises(
        UserError,
        match=r"data\.imbalance: 2 \(exponential\) needs 7 images of class 3, which has 6; set at least 3,",
    ):
        long_tailed_members(dataset, "exponential", 2)
    with pytest.raises(UserError, match=r"data\.classes: .*train\.rec has 10 classes, not 100"):
        open_cifar(tmp_path, 100, "train")


def test_the_shared_record_holds_the_published_subsets(real_data):
    train, test = (open_cifar(real_data / "cifar100_lt", 100, split) for split in ("train", "test"))
    assert np.bincount(test.labels).tolist() == [100] * 100
    for imbalance, (images, smallest) in PUBLISHED[100].items():
        counts = np.bincount(train.labels[long_tailed_members(train, "exponential", imbalance)], minlength=100)
        assert (counts.sum(), counts.min(), counts[0]) == (images, smallest, 500)
    assert train[SampleRequest(0, 0)].image_HW3.shape == (32, 32, 3)
    with pytest.raises(UserError, match="set at least 10"):
        long_tailed_members(train, "exponential", 9)
