"""Record datasets, on a small file and on real faces."""

import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from facelt.data.batch import BadImage, Sample, SampleRequest
from facelt.data.records import RecordData, RecordDataset
from facelt.data.transforms import CenterCrop
from facelt.errors import UserError
from recordio_tools.face_set import FaceRecord


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_all_images_of_the_file(face_rec, encode):
    dataset = RecordDataset(face_rec)
    assert len(dataset) == 24
    assert dataset.num_classes == 5
    assert dataset.image_size == (16, 16)
    assert dataset.labels.dtype == np.int64
    assert np.bincount(dataset.labels).tolist() == [9, 7, 5, 2, 1]
    sample = dataset[SampleRequest(11, 99)]
    assert (sample.label, sample.index, sample.seed) == (1, 11, 99)
    assert dataset.image_name(11) == "train.rec:12"
    expected = cv2.imdecode(np.frombuffer(encode(16, 16, seed=12), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(sample.image_HW3, expected)


def test_bad_images_are_named_with_their_reason(face_rec):
    dataset = RecordDataset(face_rec)
    bad = [item for item in (dataset[SampleRequest(i, 0)] for i in range(24)) if isinstance(item, BadImage)]
    assert [item.name for item in bad] == ["train.rec:4", "train.rec:20"]
    assert "not a JPEG" in bad[0].reason
    assert "16 x 12 pixels (height x width), expected 16 x 16" in bad[1].reason


def test_a_damaged_record_is_a_bad_image(face_rec):
    offset = FaceRecord(face_rec).reader.offset(7)
    with face_rec.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\0\0\0\0")
    item = RecordDataset(face_rec)[SampleRequest(6, 0)]
    assert isinstance(item, BadImage)
    assert "record 7 is damaged" in item.reason


def test_a_pickled_dataset_reads_on(face_rec):
    dataset = RecordDataset(face_rec)
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[SampleRequest(0, 0)].image_HW3, dataset[SampleRequest(0, 0)].image_HW3)


def test_another_size_through_a_transform(face_rec):
    dataset = RecordDataset(face_rec, transform=CenterCrop(size=8, resize=10))
    assert dataset.image_size == (8, 8)
    assert dataset[SampleRequest(19, 0)].image_HW3.shape == (8, 8, 3)


def test_a_manifest_selects_orders_and_relabels(face_rec):
    manifest = write(face_rec.parent / "manifest.csv", "key,label,new_label\n23,3,0\n1,0,1\n22,3,0\n9,0,1\n")
    dataset = RecordDataset(face_rec, manifest=manifest)
    assert dataset.labels.tolist() == [0, 1, 0, 1]
    assert dataset.num_classes == 2
    assert [dataset.image_name(i) for i in range(4)] == [f"train.rec:{key}" for key in (23, 1, 22, 9)]
    whole = RecordDataset(face_rec)
    np.testing.assert_array_equal(dataset[SampleRequest(2, 0)].image_HW3, whole[SampleRequest(21, 0)].image_HW3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,label\n1,0\n", "line 1: expected the header 'key,label,new_label'"),
        ("key,label,new_label\n", "lists no images"),
        ("key,label,new_label\n1,0,0\n2,0,zero\n", "line 3: expected three integers"),
        ("key,label,new_label\n1,0,0\n2,0\n", "line 3: expected three integers"),
        ("key,label,new_label\n1,0\n", "line 2: expected three integers"),
        ("key,label,new_label\n1,0,99999999999999999999\n", "line 2: expected three integers"),
        ("key,label,new_label\n1,0,-1\n", "negative"),
        ("key,label,new_label\n1,0,0\n1,0,0\n", "key 1 is listed twice"),
        ("key,label,new_label\n1,0,0\n2,0,1\n", "label 0 has several new labels"),
        ("key,label,new_label\n1,0,0\n24,4,0\n", "new label 0 has several labels"),
        (
            "key,label,new_label\n1,0,0\n999,1,1\n",
            r"key 999 does not match .*train.rec, which has no image of that key",
        ),
        ("key,label,new_label\n1,3,0\n", r"key 1 does not match .*train.rec, where it has another label"),
        ("key,label,new_label\n25,0,0\n", "key 25 does not match"),  # an identity's record
        (
            "key,label,new_label\n1,0,0\n24,4,3000000000\n",
            r"key 24 has the new label 3000000000, but .*train.rec has only 5 identities",
        ),
    ],
)
def test_a_manifest_with_a_mistake_is_refused(face_rec, text, message):
    manifest = write(face_rec.parent / "manifest.csv", text)
    with pytest.raises(UserError, match=message) as caught:
        RecordDataset(face_rec, manifest=manifest)
    assert str(manifest) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "make"), [("named pipe", os.mkfifo), ("folder", os.mkdir)])
@pytest.mark.parametrize("name", ["train.rec", "train.idx", "manifest.csv"])
def test_what_is_not_a_regular_file_is_refused_unopened(face_rec, kind, make, name):
    path = face_rec.with_name(name)
    path.unlink(missing_ok=True)
    make(path)
    with pytest.raises(UserError, match=f"{path}: .*a {kind}, not a regular file"):
        RecordDataset(face_rec, manifest=face_rec.with_name("manifest.csv"))


def test_training_data_may_be_the_folder_of_the_record(face_rec):
    face_rec.with_name("identities.csv").write_text("label,name\n1,Ann\n", encoding="utf-8")
    by_file, by_folder = (
        RecordData(kind="record", train=path, image_size=(16, 16)) for path in (face_rec, face_rec.parent)
    )
    assert by_folder.record == face_rec
    assert by_folder.open(0).fingerprint() == by_file.open(0).fingerprint()
    assert by_folder.known_class_names(by_folder.open(0)) == {1: "Ann"}


def test_a_folder_without_a_record_is_named(tmp_path):
    for path, problem in ((tmp_path, "the folder has no train.rec"), (tmp_path / "absent.rec", "no such file")):
        with pytest.raises(UserError) as caught:
            RecordData(kind="record", train=path).open(0)
        assert str(caught.value) == f"{path}: {problem}; expected a .rec file or a folder with a train.rec"


def test_missing_files_and_labels_outside_property_are_refused(face_rec):
    with pytest.raises(UserError, match=r"absent\.rec"):
        RecordDataset(face_rec.with_name("absent.rec"))
    with pytest.raises(UserError, match=r"absent\.csv"):
        RecordDataset(face_rec, manifest=face_rec.with_name("absent.csv"))
    write(face_rec.with_name("property"), "3,16,16\n")
    with pytest.raises(UserError, match="label 4"):
        RecordDataset(face_rec)


def test_without_a_property_file_the_size_has_to_come_from_a_transform(face_rec):
    face_rec.with_name("property").unlink()
    with pytest.raises(UserError, match="unknown without a 'property' file"):
        RecordDataset(face_rec)
    assert RecordDataset(face_rec, transform=CenterCrop(8, 8)).num_classes == 5


def test_a_truncated_file_is_refused_or_named(face_rec):
    whole = face_rec.read_bytes()
    face_rec.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"train\.(rec|idx)"):
        RecordDataset(face_rec)


def test_real_faces(real_data):
    dataset = RecordDataset(real_data / "faces" / "train" / "train.rec")
    assert len(dataset) == 18_541
    assert dataset.num_classes == 3_102
    counts = np.bincount(dataset.labels)
    assert (counts.min(), counts.max(), (counts == 1).sum()) == (1, 530, 1500)
    for index in (0, 9_000, 18_540):
        sample = dataset[SampleRequest(index, 0)]
        assert isinstance(sample, Sample)
        assert sample.image_HW3.shape == (112, 112, 3)


def test_a_test_split_of_every_identity_with_several_images(face_rec):
    config = RecordData(
        kind="record", train=face_rec, image_size=(16, 16), test_fraction=0.3, test_limit=2, validation_fraction=0.3
    )
    data = config.open(0)
    test, validation = data.evaluation["test"].members, data.evaluation["validation"].members
    labels = data.train.dataset.labels
    assert np.bincount(labels[test], minlength=5).tolist() == [2, 2, 1, 1, 0]
    members = np.concatenate([data.train.members, validation, test])
    np.testing.assert_array_equal(np.sort(members), np.arange(24))
    assert (data.train_counts > 0).all()


def test_images_are_resized_on_request_only(face_rec):
    data = RecordData(kind="record", train=face_rec, image_size=(8, 12), resize=True).open(0)
    assert data.train.dataset[SampleRequest(0, 0)].image_HW3.shape == (8, 12, 3)
    plain = RecordData(kind="record", train=face_rec, image_size=(8, 12)).open(0)
    assert "expected 8 x 12; data.resize: true resizes it" in plain.train.dataset[SampleRequest(0, 0)].reason
