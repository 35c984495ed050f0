"""Packing folders and lists into records, and unpacking."""

import csv
import shutil

import cv2
import numpy as np
import pytest

from recordio_tools.errors import RecordIOError, UserError
from recordio_tools.face_set import FaceRecord
from recordio_tools.lists import read_folders, read_lst
from recordio_tools.pack import pack_images, unpack_images


@pytest.fixture
def people(tmp_path, encode):
    """Two people with images, one without; one name is a spreadsheet formula."""
    root = tmp_path / "people"
    for name, numbers in {"b, Bea": (1, 2), "=Ann()": (3,), "empty": ()}.items():
        (root / name).mkdir(parents=True)
        for number in numbers:
            (root / name / f"{number}.jpg").write_bytes(encode(number))
    (root / "empty/notes.txt").write_text("no image")
    return root


def test_folders_become_identities_in_the_order_of_their_names(people, tmp_path, encode):
    summary = pack_images(people, tmp_path / "out")
    assert summary == {"images": 3, "identities": 2, "image_size": [16, 16]}
    with FaceRecord(tmp_path / "out/train.rec") as faces:
        assert faces.counts.tolist() == [1, 2]
        assert [bytes(faces.read(key).payload) for key in (1, 2, 3)] == [encode(3), encode(1), encode(2)]
    with (tmp_path / "out/identities.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["label"], row["name"], row["images"]) for row in rows] == [("0", "=Ann()", "1"), ("1", "b, Bea", "2")]


def test_unpacking_and_packing_give_the_same_file(golden, tmp_path):
    source = golden / "recordio/train.rec"
    assert unpack_images(source, tmp_path / "images") == {"images": 33, "identities": 5}
    for number, origin in enumerate((tmp_path / "images", tmp_path / "images/images.lst")):
        pack_images(origin, tmp_path / str(number))
        assert (tmp_path / str(number) / "train.rec").read_bytes() == source.read_bytes()
        assert (tmp_path / str(number) / "train.idx").read_bytes() == source.with_suffix(".idx").read_bytes()


def test_lists_of_both_kinds_mean_the_same(people, tmp_path):
    images = ["b, Bea/1.jpg", "=Ann()/3.jpg", "b, Bea/2.jpg"]
    labels = [4, 0, 4]
    im2rec = "".join(f"{n}\t{label}.0\t{name}\n" for n, (label, name) in enumerate(zip(labels, images, strict=True)))
    aligned = "".join(f"1\t{name}\t{label}\n" for label, name in zip(labels, images, strict=True))
    contents = []
    for text in (im2rec, aligned):
        (tmp_path / "images.lst").write_text(text)
        contents.append(read_lst(tmp_path / "images.lst", people))
    assert contents[0] == contents[1]
    assert [image.label for image in contents[0]] == labels
    pack_images(tmp_path / "images.lst", tmp_path / "out", people)
    with FaceRecord(tmp_path / "out/train.rec") as faces:
        assert faces.counts.tolist() == [1, 0, 0, 0, 2]


def test_vector_labels_of_a_list_count_by_their_first(people, tmp_path):
    (tmp_path / "images.lst").write_text("0\t4\t0.5\t7\tb, Bea/1.jpg\n")
    assert read_lst(tmp_path / "images.lst", people)[0].label == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0\t1\t../secret.jpg\n", r"line 1: \.\./secret.jpg is outside"),
        ("0\t1\t/etc/passwd\n", "is outside"),
        ("0\t1\ta.jpg\n0\tb.jpg\t1\t3\n", "line 2: the image is marked as not aligned"),
        ("0\t1.5\ta.jpg\n", "label 1.5 is not a whole number"),
        ("0\t-1\ta.jpg\n", "label -1"),
        ("0\tnan\ta.jpg\n", "label nan"),
        ("0\t1e400\ta.jpg\n", "label 1e400"),
        ("a.jpg 1\n", "line 1: expected index, label, path"),
        ("1\t2\t3\n", "line 1: expected index, label, path"),
        ("\n", "the list is empty"),
    ],
)
def test_wrong_lists_are_refused(tmp_path, text, reason):
    (tmp_path / "images.lst").write_text(text)
    with pytest.raises(RecordIOError, match=reason):
        read_lst(tmp_path / "images.lst")


def test_a_link_that_leads_out_is_refused(people, tmp_path):
    shutil.copyfile(people / "b, Bea/1.jpg", tmp_path / "secret.jpg")
    (people / "b, Bea/link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(RecordIOError, match="leads out"):
        read_folders(people)


def test_images_of_several_sizes_need_one(people, tmp_path, encode):
    (people / "b, Bea/9.jpg").write_bytes(encode(9, (20, 24)))
    with pytest.raises(RecordIOError, match=r"9\.jpg: 20 x 24 pixels, others 16 x 16; resize all with --size"):
        pack_images(people, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    pack_images(people, tmp_path / "out", size=(16, 12))
    with FaceRecord(tmp_path / "out/train.rec") as faces:
        assert faces.image_size == (16, 12)
        sizes = {
            cv2.imdecode(np.frombuffer(faces.read(key).payload, np.uint8), cv2.IMREAD_COLOR).shape
            for key in faces.image_keys.tolist()
        }
        assert sizes == {(16, 12, 3)}


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_file_that_is_not_an_image_is_refused(people, tmp_path, content):
    (people / "b, Bea/0.jpg").write_bytes(content)
    with pytest.raises(RecordIOError, match=r"0\.jpg: (empty, )?not an? "):
        pack_images(people, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(RecordIOError, match="no folder with images"):
        pack_images(tmp_path, tmp_path / "out")
    (tmp_path / "images.lst").write_text("0\t1\tabsent.jpg\n")
    with pytest.raises(RecordIOError, match=r"absent\.jpg: cannot be read"):
        pack_images(tmp_path / "images.lst", tmp_path / "out")


def test_unpacking_leaves_nothing_half_done(faces, tmp_path):
    out = tmp_path / "images"
    with FaceRecord(faces) as known:
        offset = known.reader.offset(7)
    data = bytearray(faces.read_bytes())
    data[offset] ^= 1  # an image in the middle of a range: the labels are known without it
    faces.write_bytes(data)
    with pytest.raises(RecordIOError, match="record 7 is damaged"):
        unpack_images(faces, out)
    assert [entry.name for entry in tmp_path.iterdir()] == ["faces"]
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(UserError, match="exists already"):
        unpack_images(faces, out)
