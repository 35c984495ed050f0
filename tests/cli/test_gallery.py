"""`facelt gallery` on the command line: enrolment, identification, calibration and removal."""

import csv
import json
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from facelt.alignment.detect import DetectionFailure
from facelt.alignment.photographs import Photograph
from facelt.cli.gallery_inputs import EmbeddingSource
from facelt.cli.main import app
from facelt.errors import UserError
from facelt.gallery.volume import VolumeEncryption
from tests.gallery.conftest import DIMENSION, some_samples

SHA256 = "ab" * 32
MODEL = ["--model", "foreign"]


@pytest.fixture
def facelt():
    """facelt(*words) -> output of the command; raises its UserError."""

    def call(*words):
        result = CliRunner().invoke(app, ["gallery", *map(str, words)])
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return call


def write_array(folder, name, samples):
    np.save(folder / f"{name}.npy", samples.embedding_ND)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("key", "person"), *zip(samples.keys, samples.people, strict=True)])
    return [folder / f"{name}.npy", "--table", folder / f"{name}.csv", *MODEL]


@pytest.fixture
def gallery_path(facelt, tmp_path):
    """A gallery of 40 samples of 10 people; one name is a spreadsheet formula."""
    where = tmp_path / "gallery"
    facelt("create", where, *MODEL, "--weights-sha256", SHA256, "--dimension", DIMENSION)
    samples = some_samples(40, 10)
    samples.people[:] = ["=cmd()" if who == "person 3" else who for who in samples.people]
    assert "samples enrolled: 40" in facelt("enroll", where, *write_array(tmp_path, "enrolled", samples))
    return where


def test_the_whole_way(facelt, gallery_path, tmp_path):
    strangers = some_samples(200, 100, seed=5, prefix="s")
    strangers.people[:] = [f"stranger {i // 2}" for i in range(200)]
    searches = write_array(tmp_path, "strangers", strangers)
    with pytest.raises(UserError, match="no threshold"):
        facelt("identify", gallery_path, *searches)
    output = facelt("calibrate", gallery_path, "--nonmated", *searches, "--fpir", "0.05")
    assert "for an FPIR of 0.05 among 40 samples; measured FPIR 0.0500" in output
    answers = tmp_path / "answers.json"
    assert "10 of 200 probes known" in facelt("identify", gallery_path, *searches, "--out", answers)
    rows = json.loads(answers.read_text())
    assert sum(row["answer"] == "unknown" for row in rows) == 190
    assert all((row["person"] is None) == (row["answer"] == "unknown") for row in rows)
    info = facelt("info", gallery_path, "--people")
    assert "direct of 16 by 'foreign'" in info
    assert "people: 10\nsamples: 40" in info
    assert "person 9: 4" in info
    assert "no defects" in facelt("verify", gallery_path)
    facelt("rebuild", gallery_path)
    facelt("snapshot", gallery_path, tmp_path / "copy")
    assert "samples removed: 4" in facelt("remove", gallery_path, "--person", "person 9")
    for gallery in (gallery_path, tmp_path / "copy"):
        assert "people: 9\nsamples: 36" in facelt("info", gallery)


def test_names_are_no_formulas_and_no_terminal_codes(facelt, gallery_path, tmp_path):
    samples = some_samples(4, 4)
    samples.keys[0] = "\x1b[31mprobe"
    probes = write_array(tmp_path, "probes", samples)
    output = facelt("identify", gallery_path, *probes, "--threshold", "0.9", "--top", "1")
    assert "\x1b" not in output
    assert output.splitlines()[3].startswith("k3: =cmd() 1.000")
    out = tmp_path / "answers.csv"
    facelt("identify", gallery_path, *probes, "--threshold", "0.9", "--top", "1", "--out", out)
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["person"] for row in rows] == ["person 0", "person 1", "person 2", "'=cmd()"]
    assert {row["answer"] for row in rows} == {"known"}


def test_names_from_outside_never_reach_the_terminal_raw(cli, gallery_path, tmp_path):
    """A person, a key, a snapshot and a person to remove whose names hold terminal codes and a directional override."""
    hostile = "\x1b[2JEve\x07\u202e"
    samples = some_samples(3, 3, seed=4)
    samples.people[:] = [hostile] * 3
    samples.keys[:] = [f"{hostile}{i}" for i in range(3)]
    inputs = write_array(tmp_path, "hostile", samples)
    (tmp_path / "trained.csv").write_text(f'name\n"{hostile}"\n', encoding="utf-8")
    shown = "\ufffd[2JEve\ufffd\ufffd"
    for words, text in (
        (["enroll", gallery_path, *inputs], "samples enrolled: 3"),
        (["identify", gallery_path, *inputs, "--threshold", "0.9", "--top", "1"], f"{shown}0: {shown} 1.000"),
        (["snapshot", gallery_path, tmp_path / "\x07copy"], "written: "),
        (["info", gallery_path, "--people", "--training-identities", tmp_path / "trained.csv"], f"{shown}: 3"),
        (["remove", gallery_path, "--person", hostile + "2"], f"not enrolled: person {shown}2"),
    ):
        code, output, error = cli("gallery", *words)
        assert code == 0, error
        assert text in output + error
        assert not set("\x1b\x07\u202e") & set(output + error)


def test_photographs_that_are_left_out_are_named_without_terminal_codes(monkeypatch, capsys, tmp_path):
    photographs = [Photograph("\x1b[2J.png", tmp_path, "")]
    failed = [DetectionFailure(photographs[0], "unusable", "no \x07 face")]
    monkeypatch.setattr("facelt.alignment.photographs.find_photographs", lambda *arguments, **options: photographs)
    monkeypatch.setattr("facelt.inference.sources.open_photograph_source", lambda *arguments: (None, failed))
    data = SimpleNamespace(max_pixels=10, image_size=(32, 32))
    source = EmbeddingSource(tmp_path, detector="yunet:absent")
    source._open_photographs(SimpleNamespace(config=SimpleNamespace(data=data)), named=False)
    assert "left out \ufffd[2J.png: no \ufffd face" in capsys.readouterr().err


def test_another_model_is_refused_with_both_names(facelt, gallery_path, tmp_path):
    probes = write_array(tmp_path, "probes", some_samples(2, 1))
    with pytest.raises(UserError, match="--model is 'other'; this gallery is pinned to direct of 16 by 'foreign'"):
        facelt("enroll", gallery_path, *probes[:-1], "other")
    with pytest.raises(UserError, match="does not name its model"):
        facelt("identify", gallery_path, *probes[:-2], "--threshold", "0.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,person,e0\na,p,1\n", "embeddings of shape 1 x 1: this gallery holds direct of 16"),
        ("key,person,{e}\na,p,{v}\nb,p,nan{w}\n", "'b': its embedding is not finite"),
        ("key,{e}\na,{v}\n", "sample 'a': the person ''"),
        ("key,person,{e}\na,p,{v}\na,q,{v}\n", "the key 'a' occurs more than once"),
    ],
)
def test_a_table_at_fault_is_named_with_its_row(facelt, gallery_path, tmp_path, text, message):
    values = {"e": ",".join(f"e{i}" for i in range(DIMENSION)), "v": "1" + ",0" * (DIMENSION - 1), "w": ",0" * 15}
    (tmp_path / "faulty.csv").write_text(text.format(**values))
    with pytest.raises(UserError, match=message) as raised:
        facelt("enroll", gallery_path, tmp_path / "faulty.csv", *MODEL)
    assert "faulty.csv: " in str(raised.value)
    assert "samples: 40" in facelt("info", gallery_path)


@pytest.mark.parametrize(
    ("is_encrypted", "line"),
    [
        (True, "encryption at rest: disk\n"),
        (False, "encryption at rest: none, disk; keep galleries on an encrypted volume\n"),
        (None, "encryption at rest: unknown, disk; keep"),
    ],
)
def test_info_shows_the_encryption_of_the_volume(facelt, gallery_path, monkeypatch, is_encrypted, line):
    monkeypatch.setattr(
        "facelt.gallery.volume.volume_encryption",
        lambda path: path == gallery_path and VolumeEncryption(is_encrypted, "disk"),
    )
    assert line in facelt("info", gallery_path)


def test_damaged_files_are_one_line_with_what_to_do(cli, refused, gallery_path, tmp_path):
    database = gallery_path / "gallery.sqlite"
    content = database.read_bytes()
    probes = write_array(tmp_path, "probes", some_samples(2, 2))
    for damaged in (
        b"\xff" * 100 + content[100:],
        content[: len(content) // 2],
        b"",
        content.replace(b"person", b"\xffers\xfe"),
    ):
        database.write_bytes(damaged)
        for words in (["verify", gallery_path], ["enroll", gallery_path, *probes]):
            message = refused("gallery", *words)
            assert f"{database}: " in message
            assert "restore a snapshot" in message
    database.write_bytes(content)
    (gallery_path / "index" / "bound.json").write_bytes(b'{"schema": "\xff"')
    message = refused("gallery", "verify", gallery_path)
    assert f"{gallery_path / 'index' / 'bound.json'}: is damaged; run facelt gallery rebuild" in message
    assert cli("gallery", "identify", gallery_path, *probes, "--threshold", "0.5")[0] == 0
    assert cli("gallery", "verify", gallery_path)[0] == 0


def test_info_names_snapshots(facelt, gallery_path, tmp_path):
    facelt("snapshot", gallery_path, tmp_path / "copy")
    assert f"snapshot: {tmp_path / 'copy'}" in facelt("info", gallery_path)


def test_a_deleted_snapshot_is_forgotten_by_the_command_that_removals_name(facelt, gallery_path, tmp_path):
    for name in ("copy", "kept"):
        facelt("snapshot", gallery_path, tmp_path / name)
    shutil.rmtree(tmp_path / "copy")
    for person in ("person 1", "person 2"):
        with pytest.raises(UserError, match=r"may still be in a snapshot: .*copy: no gallery here") as raised:
            facelt("remove", gallery_path, "--person", person)
    _, command = str(raised.value).split("; if it no longer exists: facelt gallery ")
    with pytest.raises(UserError, match=f"kept: still holds a snapshot of {gallery_path}; remove that folder first"):
        facelt("forget-snapshot", gallery_path, tmp_path / "kept")
    with pytest.raises(UserError, match=f"other: is not a snapshot of .*: {tmp_path / 'copy'}, {tmp_path / 'kept'}$"):
        facelt("forget-snapshot", gallery_path, tmp_path / "other")
    assert f"forgotten: {tmp_path / 'copy'}" in facelt(*shlex.split(command))
    assert "samples removed: 4" in facelt("remove", gallery_path, "--person", "person 4")
    assert "no defects" in facelt("verify", gallery_path)
    # Removals still reach the other one.
    for gallery in (gallery_path, tmp_path / "kept"):
        assert "people: 7\nsamples: 28" in facelt("info", gallery)


def test_compact_returns_the_space_of_removed_people(facelt, gallery_path, tmp_path):
    facelt("enroll", gallery_path, *write_array(tmp_path, "more", some_samples(3000, 1000, prefix="more")))
    database = gallery_path / "gallery.sqlite"
    facelt("remove", gallery_path, *(word for i in range(10, 1000) for word in ("--person", f"person {i}")))
    before, info = database.stat().st_size, facelt("info", gallery_path)
    output = facelt("compact", gallery_path)
    after = database.stat().st_size
    assert after < before / 2
    assert f"compacted: {gallery_path}, {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB after" in output
    assert "no defects" in facelt("verify", gallery_path)
    assert facelt("info", gallery_path) == info
    with pytest.raises(UserError, match="this command is for local galleries"):
        facelt("compact", "milvus:http://localhost:1")


def test_mistakes(facelt, gallery_path, tmp_path):
    with pytest.raises(UserError, match="pass exactly one of --like, --checkpoint and --model"):
        facelt("create", tmp_path / "new")
    with pytest.raises(UserError, match="64 hex digits"):
        facelt("create", tmp_path / "new", *MODEL, "--dimension", "4")
    with pytest.raises(UserError, match="is not empty"):
        facelt("create", gallery_path, *MODEL, "--weights-sha256", SHA256, "--dimension", "4")
    with pytest.raises(UserError, match="images need --checkpoint"):
        facelt("enroll", gallery_path, tmp_path)
    with pytest.raises(UserError, match="pass --person or --sample"):
        facelt("remove", gallery_path)
    with pytest.raises(UserError, match="has no reachability"):
        facelt(
            "calibrate",
            gallery_path,
            "--nonmated",
            *write_array(tmp_path, "p", some_samples(2, 1)),
            "--by",
            "reachability",
        )
    (path,) = (gallery_path / "index").glob("rows-*")
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"index: rows or ids were changed: .*; run facelt gallery rebuild"):
        facelt("verify", gallery_path)


def test_enrolling_and_identifying_need_no_torch(gallery_path, tmp_path):
    probes = write_array(tmp_path, "probes", some_samples(2, 2))
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from facelt.cli.main import main\n"
        "sys.argv = ['facelt', 'gallery', *sys.argv[1:]]\nmain()"
    )
    for words in (["enroll", gallery_path, *probes], ["identify", gallery_path, *probes, "--threshold", "0.5"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr


def test_images_are_embedded_on_the_way(facelt, finished_run, tiny_faces, tmp_path):
    where = tmp_path / "gallery"
    output = facelt("create", where, "--checkpoint", finished_run, "--kind", "meta")
    assert "meta of 16 by 'resnet10/oltr'" in output
    images = [tiny_faces, "--checkpoint", finished_run]
    assert "people: 5\nsamples: 42" in facelt("enroll", where, *images)
    # Each picture is found in the gallery it was enrolled in.
    out = tmp_path / "answers.csv"
    facelt("identify", where, *images, "--threshold", "-1", "--top", "1", "--out", out)
    with out.open(newline="") as file:
        assert {(row["probe"], row["sample"]) for row in csv.DictReader(file)} >= {("1", "1"), ("42", "42")}
    output = facelt("calibrate", where, "--nonmated", *_strangers(finished_run, tmp_path), "--fpir", "0.5")
    assert "similarity threshold" in output
    _foreign(tmp_path)
    with pytest.raises(UserError, match=r"holds meta of 16 by 'foreign/x'.*pinned to meta of 16 by 'resnet10/oltr'"):
        facelt("enroll", where, tmp_path / "foreign")


def test_the_same_weights_with_another_preprocessing_are_refused(facelt, finished_run, tiny_faces, tmp_path):
    where = tmp_path / "gallery"
    facelt("create", where, "--checkpoint", finished_run)
    card = json.loads((finished_run / "oltr" / "card.json").read_text())
    size = " x ".join(map(str, card["config"]["data"]["image_size"]))
    assert f"preprocessing: image_size {size}, channels RGB" in facelt("info", where)
    shutil.copytree(finished_run / "oltr", tmp_path / "other")
    card["config"]["data"]["mean"] = [0.25, 0.5, 0.5]
    (tmp_path / "other" / "card.json").write_text(json.dumps(card))
    for words in (["enroll"], ["identify", "--threshold", "0.5"]):
        with pytest.raises(UserError, match=r"other: its preprocessing has mean \(0\.25, .*pinned to mean \("):
            facelt(words[0], where, tiny_faces, "--checkpoint", tmp_path / "other", *words[1:])


def test_people_who_are_training_identities_by_name_are_counted(cli, finished_run, tmp_path):
    """The record's identities.csv names six identities; a manifest trains on some of them."""
    for name in ("oltr", "record"):
        (tmp_path / name).mkdir()
    (tmp_path / "record" / "identities.csv").write_text(
        "label,name\n" + "".join(f"{label},Person {label}\n" for label in range(8))
    )
    (tmp_path / "record" / "manifest.csv").write_text("key,label,new_label\n1,2,0\n2,7,1\n3,3,2\n")
    card = json.loads((finished_run / "oltr" / "card.json").read_text())
    shutil.copy(finished_run / "oltr" / "model.safetensors", tmp_path / "oltr")
    samples = write_array(tmp_path, "enrolled", some_samples(10, 5))[:-1]
    trained = len({f"Person {label}" for label in range(card["num_classes"])} & {f"Person {i}" for i in range(5)})
    for train, manifest, shared in (
        ("train.rec", None, trained),
        ("train.rec", "manifest.csv", 2),
        ("", None, trained),
    ):
        card["config"]["data"]["train"] = str(tmp_path / "record" / train)
        card["config"]["data"]["manifest"] = manifest and str(tmp_path / "record" / manifest)
        (tmp_path / "oltr" / "card.json").write_text(json.dumps(card))
        where = tmp_path / f"gallery-{train}-{manifest}"
        assert cli("gallery", "create", where, "--checkpoint", tmp_path / "oltr")[0] == 0
        code, _, error = cli("gallery", "enroll", where, *samples, "resnet10/oltr")
        assert code == 0
        assert f"warning: {shared} of 5 people have names of training identities: person " in error
        assert "results for them do not measure unseen people" in error
        _, output, error = cli("gallery", "info", where)
        assert f"training identities: {shared} of 5 people by name ({tmp_path / 'oltr'})" in output
        assert f"warning: {shared} of 5 people" in error
    shutil.rmtree(tmp_path / "record")
    shutil.rmtree(tmp_path / "oltr")
    code, output, error = cli("gallery", "info", where)
    assert (code, "people: 5" in output, "training identities cannot be compared: " in error) == (0, True, True)


def test_a_table_of_training_identities(cli, refused, gallery_path, tmp_path):
    table = tmp_path / "trained.csv"
    table.write_text("name,gender\nPERSON_4,f\nSomebody else,m\n=cmd(),m\n")
    _, output, error = cli("gallery", "info", gallery_path, "--training-identities", table)
    assert f"training identities: 2 of 10 people by name ({table})" in output
    assert "=cmd(), person 4; results" in error
    table.write_text("name\nSomebody else\n")
    _, output, error = cli("gallery", "info", gallery_path, "--training-identities", table)
    assert "training identities: 0 of 10 people" in output
    assert not error
    assert "training" not in cli("gallery", "info", gallery_path)[1]
    model = [*MODEL, "--weights-sha256", SHA256, "--dimension", DIMENSION]
    table.write_text("person\nx\n")
    assert str(table) in refused("gallery", "create", tmp_path / "new", *model, "--training-identities", table)
    assert not (tmp_path / "new").exists()


def test_photographs_are_aligned_on_the_way(facelt, finished_run, real_data, tmp_path):
    where = tmp_path / "gallery"
    facelt("create", where, "--checkpoint", finished_run)
    photos = tmp_path / "photos"
    shutil.copytree(real_data / "photos", photos)
    (photos / "blank.png").write_bytes(cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes())
    detector = f"yunet:{real_data / 'models' / 'yunet_n_dynamic.onnx'}"
    terms = ["--checkpoint", finished_run, "--detector", detector, "--people", "file"]
    assert "people: 20\nsamples: 40" in facelt("enroll", where, photos, *terms)
    output = facelt("identify", where, photos, *terms, "--threshold", "0.999", "--top", "1")
    assert len(output.splitlines()) == 40
    assert "unknown" not in output


def test_photographs_that_cannot_be_enrolled_are_refused(facelt, finished_run, real_data, tmp_path):
    where, photos = tmp_path / "gallery", real_data / "photos"
    facelt("create", where, "--checkpoint", finished_run)
    terms = ["--checkpoint", finished_run]
    detector = ["--detector", f"yunet:{real_data / 'models' / 'yunet_n_dynamic.onnx'}"]
    nameless = r"Butch_Davis_0001\.jpg: has no identity, which a gallery needs; put the images of each person"
    with pytest.raises(UserError, match=f"{nameless} in one folder, or .*--people file"):
        facelt("enroll", where, photos, *terms, "--detector", "yunet:absent")
    for command in ("enroll", "identify"):
        with pytest.raises(UserError, match=r"250 x 250 .*; none of the 16 images that were tried can be used"):
            facelt(command, where, photos, *terms)
    (tmp_path / "faces").mkdir()
    cv2.imwrite(str(tmp_path / "faces/a.png"), np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(UserError, match=r"a\.png: has no identity, .* of each person in one folder$"):
        facelt("enroll", where, tmp_path / "faces", *terms)
    (tmp_path / "list.txt").write_text("Butch_Davis_0001.jpg -1\n")
    with pytest.raises(UserError, match="has no identity"):
        facelt("enroll", where, tmp_path / "list.txt", "--root", photos, *terms, *detector)
    for given in ([], detector):
        with pytest.raises(UserError, match=r"absent\.jpg: no such file or folder"):
            facelt("identify", where, tmp_path / "absent.jpg", *terms, *given)


def test_a_single_image_is_searched_for(facelt, finished_run, tmp_path):
    where = tmp_path / "gallery"
    facelt("create", where, "--checkpoint", finished_run)
    images, *terms = _strangers(finished_run, tmp_path)
    facelt("enroll", where, images, *terms)
    output = facelt("identify", where, images / "two/1.png", *terms, "--threshold", "0.999", "--top", "1")
    assert output == "1.png: two 1.000\n"


def _strangers(run, folder):
    """Returns the arguments for a folder with images of two unknown people."""
    random = np.random.default_rng(3)
    for who in ("one", "two"):
        (folder / "photos" / who).mkdir(parents=True)
        for number in range(3):
            image = random.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / "photos" / who / f"{number}.png"), image)
    return [folder / "photos", "--checkpoint", run]


def _foreign(folder):
    """Writes a store of another model and kind."""
    from facelt.store.writer import StoreWriter

    meta = {"model": {"weights_sha256": SHA256, "backbone": "foreign", "stage": "x"}}
    writer = StoreWriter(folder / "foreign", ["a"], ["b"], {"meta": DIMENSION}, meta)
    writer.write(0, {"meta": np.ones((1, DIMENSION)) / 4})
    writer.finish()
