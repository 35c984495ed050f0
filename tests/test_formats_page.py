"""The examples of docs/formats.md are read by the readers of the project, and are as its writers make them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from facelt.alignment.run import FACE_COLUMNS, FAILURE_COLUMNS
from facelt.audit.audited_set import read_scores
from facelt.config.audit import AttributeTablesConfig
from facelt.data import records
from facelt.data.pairs import read_pairs
from facelt.store.attributes import attribute_columns
from facelt.store.feature_tree import read_feature, read_features_list
from facelt.store.ijb import read_landmark_list, read_media_list, read_pair_list, read_subject_list
from facelt.store.store import ITEMS_FILE, META_FILE, read_items, read_meta
from recordio_tools.face_set import read_identities, read_property
from recordio_tools.format import decode_record, encode_header, encode_record, read_record
from recordio_tools.lists import read_labelled_list
from recordio_tools.reader import read_index

PAGE = (Path(__file__).resolve().parent.parent / "docs/formats.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(heading: str) -> list[str]:
    """Returns the examples below a heading."""
    match = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return [text for _, text in EXAMPLE.findall(match[1])]


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, content: str | bytes) -> Path:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write_file


def test_records(write):
    image, identity, index, declared = examples("Records: .rec, .idx, property")
    assert bytes.fromhex(image) == encode_record(encode_header(3.0, 7) + b"\xff\xd8JPEG")
    record = decode_record(read_record(memoryview(bytes.fromhex(image)), 0)[0])
    assert (record.header.label, record.header.id, bytes(record.payload)) == (3.0, 7, b"\xff\xd8JPEG")
    assert bytes.fromhex(identity) == encode_record(encode_header([1, 9], 9))
    assert [column.tolist() for column in read_index(write("train.idx", index))] == [[1, 2], [0, 2616]]
    assert read_property(write("property", declared)) == (85742, 112, 112)


def test_tables_of_records(write):
    (identities,), (manifest,) = examples("identities.csv"), examples("manifest.csv and statistics.json")
    assert read_identities(write("identities.csv", identities))[0]["name"] == "Aaron Eckhart"
    assert [column.tolist() for column in records._read_manifest(write("manifest.csv", manifest))] == [
        [1, 17],
        [0, 3],
        [0, 1],
    ]


def test_lists_and_sets(write, monkeypatch, tmp_path):
    paths, labels = read_labelled_list(write("list.txt", examples("Lists of images")[0]))
    assert (len(paths), labels.tolist()) == (2, [0, 3])
    for name in ("a1", "a2", "b1"):
        write(f"{name}.jpg", name)
    monkeypatch.chdir(tmp_path)
    exec(examples("Verification sets: .bin")[0], {})
    pairs = read_pairs(tmp_path / "pairs.bin")
    assert (pairs.images, pairs.same_P.tolist()) == ([b"a1", b"a2", b"b1"], [True, False])


def test_stores_and_features(write):
    meta, items = examples("Embedding store")
    assert read_meta(write(META_FILE, meta))["kinds"] == {"direct": 512}
    assert read_items(write(ITEMS_FILE, items))["gender"] == ["male", ""]
    feature = write("feature.bin", bytes.fromhex(examples("MegaFace features: .bin")[0]))
    assert np.array_equal(read_feature(feature), np.array([0.6, -0.8], np.float32))
    assert len(read_features_list(write("list.json", examples("MegaFace lists")[0]))) == 2


def test_ijb_lists(write):
    scores, media, pairs, gallery = examples("IJB-B and IJB-C")
    score_list = write("scores.txt", scores)
    images = read_landmark_list(score_list)
    templates = read_media_list(write("media.txt", media), images, score_list)
    assert (images.names, templates.template_T.tolist(), templates.media) == (["1.jpg", "2.jpg"], [1, 2], 2)
    terms = templates.template_T, score_list
    assert read_pair_list(write("pairs.txt", pairs), *terms).same_P.tolist() == [True, False]
    subjects = read_subject_list(write("gallery.csv", gallery), "G1", *terms)
    assert (subjects.row_K.tolist(), subjects.subject_K.tolist()) == ([1], [7])


def test_attributes_and_scores(write):
    tables = AttributeTablesConfig(tables=(write("table.csv", examples("Attribute tables")[0]),))
    assert attribute_columns(tables, None, ["Aaron_Eckhart"], {}) == {"gender": ["male"], "age": ["34"]}
    assert read_scores(write("scores.csv", examples("Scores")[0])).score_M.tolist() == [0.83, 0.12]


def test_columns_and_logs():
    faces, failures = examples("Aligned faces")[0].splitlines()
    assert faces.replace('"', "").split(",") == list(FACE_COLUMNS)
    assert failures.replace('"', "").split(",") == list(FAILURE_COLUMNS)
    assert json.loads(examples("Run folder")[0])["stage"] == "plain"
