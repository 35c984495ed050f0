"""Every reader of files reads a hostile one or refuses it in one line, in bounded memory."""

import json
import pickle
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from eval_megaface.config import MegafaceConfig
from facelt.audit.audited_set import read_scores
from facelt.config.audit import AttributeTablesConfig
from facelt.config.loading import load_config
from facelt.config.yaml_file import read_yaml
from facelt.data import records
from facelt.data.cifar import read_cifar_file
from facelt.data.pairs import read_pairs
from facelt.errors import UserError
from facelt.gallery.index import METADATA_FILE, IndexVersion, MappedIndex
from facelt.gallery.samples import SampleRows
from facelt.inference.model import CARD_FILE, read_card
from facelt.store.attributes import attribute_columns
from facelt.store.feature_tree import read_feature, read_image_list, read_noise_names
from facelt.store.ijb import IjbFolder, IjbLists
from facelt.store.store import EmbeddingStore
from facelt.store.tinyface import TinyfaceLists
from facelt.store.writer import StoreWriter
from recordio_tools.bounded_io import read_json
from recordio_tools.face_set import FaceRecord, read_identities
from recordio_tools.image_header import decode
from recordio_tools.lists import read_labelled_list, read_lst, read_path_list
from recordio_tools.verify import verify_record_file
from tests.benchmark_files import IjbFiles, TinyfaceFiles
from tests.fuzz.hostile import answer, fuzz

TARGETS = 11
# A configuration has a line for each mistake.
CONFIG_LINES = 21
EXAMPLES = Path(__file__).resolve().parents[2] / "configs"


def image(suffix: str = ".png") -> bytes:
    pixels_HW3 = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    return cv2.imencode(suffix, pixels_HW3)[1].tobytes()


@pytest.mark.parametrize("name", ["train.rec", "train.idx", "property"])
def test_records(tiny_faces, tmp_path, name):
    for file in ("train.rec", "train.idx", "property"):
        (tmp_path / file).write_bytes((tiny_faces.parent / file).read_bytes())
    path = tmp_path / "train.rec"
    seeds = [(tmp_path / name).read_bytes()]

    def read() -> None:
        verify_record_file(path, max_pixels=10_000)
        with FaceRecord(path) as faces:
            for key in faces.image_keys[:50].tolist():
                decode(faces.read(key).payload, 10_000)

    fuzz(tmp_path / name, seeds, read, 4 * TARGETS)
    if name == "train.rec":
        (tmp_path / "train.idx").unlink()
        fuzz(tmp_path / name, seeds, read, 4 * TARGETS)


def test_lists(tmp_path):
    path = tmp_path / "list.txt"
    fuzz(path, [b"a/1.jpg 0\nb c/2.jpg 11\n"], lambda: read_labelled_list(path), 4 * TARGETS)
    fuzz(path, [b"a/1.jpg\nb c/2.jpg\n"], lambda: read_path_list(path), 4 * TARGETS)
    fuzz(path, [b"0\t3.0\ta/1.jpg\n1\t4.0\tb/2.jpg\n", b"1\ta/1.jpg\t7\n"], lambda: read_lst(path), 4 * TARGETS)
    seeds = [b"a b 1\na c 0\n", b"10\t300\nA_B\t1\t4\nA_B\t1\tC_D\t12\n"]
    fuzz(path, seeds, lambda: read_pairs(path), 4 * TARGETS)


def test_tables_of_records(tmp_path):
    path = tmp_path / "table.csv"
    fuzz(path, [b"key,label,new_label\n1,0,0\n17,3,1\n"], lambda: records._read_manifest(path), 2 * TARGETS)
    fuzz(path, [b'label,name,images\n0,A B,3\n1,"C, D",4\n'], lambda: read_identities(path), 2 * TARGETS)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_images(tmp_path, suffix):
    path = tmp_path / "image"
    fuzz(path, [image(suffix)], lambda: decode(path.read_bytes(), 10_000), 4 * TARGETS)


def test_yaml(tmp_path):
    path = tmp_path / "config.yaml"
    seed = b"a: &x [1, 2.5, ~]\nb: {c: *x, 'd': \"e\\n\"}\n? f\n: |\n  text\n"
    fuzz(path, [seed], lambda: read_yaml(path), 2 * TARGETS)
    example = (EXAMPLES / "demo_megaface.yaml").read_bytes()
    fuzz(path, [example], lambda: load_config(path, MegafaceConfig), 2 * TARGETS, max_lines=CONFIG_LINES)


def test_json(tmp_path, recipe):
    path = tmp_path / CARD_FILE

    def read_values() -> None:
        try:
            read_json(path)
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from None

    card = {"schema": "facelt.model/1", "stage": "plain", "num_classes": 6, "preprocessing": {}}
    text = json.dumps({**card, "config": recipe(Path("run"))}).encode()
    fuzz(path, [text, b'{"a": [1, -2.5e3, "\\u00e9\\n", null, true, {}]}'], read_values, 2 * TARGETS)
    fuzz(path, [text], lambda: read_card(path), 2 * TARGETS, max_lines=CONFIG_LINES)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles(tmp_path, protocol):
    path, images = tmp_path / "set.bin", [image(), image(".jpg"), image(), b"x" * 300]
    arrays = [np.frombuffer(each, np.uint8) for each in images]
    seeds = [pickle.dumps((images, [True, False]), protocol), pickle.dumps([arrays, np.array([True, False])], protocol)]
    fuzz(path, seeds, lambda: read_pairs(path), 6 * TARGETS)
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2], "filenames": ["a", "b"]}
    fuzz(path, [pickle.dumps(batch, protocol)], lambda: read_cifar_file(path, "labels", 10), 6 * TARGETS)


def test_features(tmp_path):
    path = tmp_path / "feature.bin"
    content = struct.pack("<4i", 4, 1, 4, 5) + np.arange(4, dtype="<f4").tobytes()
    fuzz(path, [content], lambda: read_feature(path), 3 * TARGETS)
    path = tmp_path / "list"
    seeds = [b'{"path": ["a/1.png", "b/2.png"], "id": ["a", "b"]}', b"# images\na/1.png\nb/2.png\n"]
    fuzz(path, seeds, lambda: read_image_list(path), 3 * TARGETS)
    noises = [b"# noise\na_1.png\n1\tb_2.png\tx\n"]
    fuzz(path, noises, lambda: read_noise_names(path), 3 * TARGETS, ever_refused=False)


@pytest.mark.parametrize("name", ["meta.json", "items.csv", "direct.npy", "reachability.npy"])
def test_stores(tmp_path, name):
    store = tmp_path / "store"
    options = {"attributes": {"age": ["1", "", "3"]}, "reachability": True, "dtype": "float32"}
    writer = StoreWriter(store, ["a", "b", "c"], ["x", "x", "y"], {"direct": 4}, {"model": {}}, **options)
    writer.write(0, {"direct": np.eye(3, 4, dtype=np.float32)}, np.ones(3, np.float32))
    writer.finish()
    fuzz(store / name, [(store / name).read_bytes()], lambda: EmbeddingStore.open(store), 4 * TARGETS)


def test_tables(tmp_path):
    path = tmp_path / "table.csv"
    tables = AttributeTablesConfig(tables=(path,))

    def read_attributes() -> None:
        attribute_columns(tables, ["a/1.jpg"], ["a"], {"age": [18, 30]})

    fuzz(path, [b'identity,gender,age\na,male,34\nb,"fe""male",\n'], read_attributes, 3 * TARGETS)
    fuzz(path, [b"id1,id2,score,label\na,a,0.83,1\na,b,0.12,0\n"], lambda: read_scores(path), 3 * TARGETS)
    actors = tmp_path / "actors.txt"
    lists = AttributeTablesConfig(actors=actors, actresses=path)
    path.write_text("name\turl\nB C\tx\n")
    fuzz(actors, [b"name\turl\nA B\tx\n"], lambda: attribute_columns(lists, None, ["a_b"], {}), 3 * TARGETS)


@pytest.mark.parametrize(
    "ending", ["name_5pts_score.txt", "face_tid_mid.txt", "template_pair_label.txt", "1N_probe_mixed.csv"]
)
def test_ijb_lists(tmp_path, ending):
    files = IjbFiles(tmp_path)
    path = files.path(ending)
    fuzz(path, [path.read_bytes()], lambda: IjbLists.read(IjbFolder.open(tmp_path)), 6 * TARGETS)


def test_tinyface_lists(tmp_path):
    files = TinyfaceFiles(tmp_path)
    path = files.folder / "probe_img_ID_pairs.mat"
    compressed = path.read_bytes()
    variables = loadmat(path)
    savemat(path, {name: variables[name] for name in ("probe_set", "probe_ids")}, do_compression=False)
    fuzz(path, [path.read_bytes(), compressed], lambda: TinyfaceLists.read(tmp_path), 4 * TARGETS)


def test_indexes_of_galleries(tmp_path):
    """A damaged index is rebuilt from the database: it counts as absent."""
    rows = SampleRows(np.arange(3), np.arange(3), np.eye(3, 4, dtype=np.float32))
    MappedIndex.build(tmp_path, IndexVersion("g", 1, 0, f"{rows.digest():064x}"), 4, [rows])

    def read() -> None:
        if MappedIndex.open(tmp_path, 4) is None:
            raise UserError("absent")

    path = tmp_path / METADATA_FILE
    fuzz(path, [path.read_bytes()], read, TARGETS)


def test_a_reader_that_breaks_its_promise_is_reported(tmp_path):
    def answer_twice() -> None:
        raise UserError("two\nlines")

    with pytest.raises(AssertionError):
        answer(answer_twice)
    with pytest.raises(AssertionError, match="bytes"):
        answer(lambda: bytearray(100 << 20))
    with pytest.raises(ValueError, match="invalid literal") as error:
        fuzz(tmp_path / "x", [b"12"], lambda: int((tmp_path / "x").read_bytes()), 10)
    assert "mutation" in error.value.__notes__[0]
