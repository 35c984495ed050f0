"""`facelt align`: folders and records with their tables, written completely or not at all."""

import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from facelt.alignment import run as run_module
from facelt.alignment.detect import DetectionOptions
from facelt.alignment.photographs import Photograph, find_photographs
from facelt.alignment.run import CropFolderWriter, align_photographs
from facelt.errors import UserError
from recordio_tools.face_set import FaceRecord
from tests.alignment.drawing import draw, encode, expected_crop, turned


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


@pytest.fixture
def align(drawn, photos, tmp_path):
    """align(out, ...) -> result of aligning the drawn photographs."""

    def run(out: str, source: Path = photos, people: str = "folder", workers: int = 0, **terms):
        return align_photographs(
            find_photographs(source, people=people), tmp_path / out, DetectionOptions(drawn, **terms), workers
        )

    return run


def test_a_folder_has_the_largest_face_of_each_photograph(align, photos, tmp_path):
    summary = align("out")
    out = tmp_path / "out"
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == [
        "Ann/1.png",
        "Ann/2.png",
        "Cid/2.png",
        "faces.csv",
        "failures.csv",
    ]
    # In the second photograph the larger face is the second one that was drawn.
    for name, green in (("Ann/1.png", 130), ("Ann/2.png", 150), ("Cid/2.png", 130)):
        crop_HW3 = cv2.imread(str(out / name))[:, :, ::-1]
        np.testing.assert_array_equal(crop_HW3, expected_crop(photos / name, green))
    assert (summary.photographs, summary.faces, summary.missing) == (5, 3, ["Bob"])
    assert summary.lines() == [
        "faces: 3, in 3 of 5 photographs",
        "failures to enrol: 2 (1 no face, 1 unusable)",
        "people without any face: 1 (Bob)",
    ]


def test_the_tables_say_where_faces_were_and_why_there_are_none(align, photos, tmp_path):
    align("out")
    first, second, third = table(tmp_path / "out/faces.csv")
    assert [row["source"] for row in (first, second, third)] == ["Ann/1.png", "Ann/2.png", "Cid/2.png"]
    assert (second["image"], second["identity"], second["face"], second["faces"]) == ("Ann/2.png", "Ann", "1", "2")
    point_52 = np.rint(turned(10, 0.7, (60, 70)))
    columns = [
        f"{name}_{axis}" for name in ("eye_left", "eye_right", "nose", "mouth_left", "mouth_right") for axis in "xy"
    ]
    assert [float(second[name]) for name in columns] == point_52.ravel().tolist()
    assert [float(second[name]) for name in ("left", "top", "right", "bottom")] == [
        *point_52.min(0).tolist(),
        *point_52.max(0).tolist(),
    ]
    assert float(second["score"]) == 0.8
    assert float(second["eye_distance"]) == pytest.approx(np.hypot(*(point_52[1] - point_52[0])), abs=0.05)
    assert float(second["roll"]) == pytest.approx(10, abs=2)
    assert float(second["sharpness"]) > 0
    reasons = {
        row["source"]: (row["identity"], row["kind"], row["reason"]) for row in table(tmp_path / "out/failures.csv")
    }
    assert reasons["Bob/1.png"] == ("Bob", "no face", "no face with a score of 0.5 or more")
    assert reasons["Cid/1.png"][:2] == ("Cid", "unusable")
    assert reasons["Cid/1.png"][2].startswith("a png image that is cut short")
    assert len(reasons) == 2


def test_all_faces_are_counted_by_size(align, photos, tmp_path):
    assert align("out", all_faces=True).faces == 4
    rows = table(tmp_path / "out/faces.csv")
    assert [(row["image"], row["face"], row["faces"]) for row in rows] == [
        ("Ann/1_1.png", "1", "1"),
        ("Ann/2_1.png", "1", "2"),
        ("Ann/2_2.png", "2", "2"),
        ("Cid/2_1.png", "1", "1"),
    ]
    crop_HW3 = cv2.imread(str(tmp_path / "out/Ann/2_2.png"))[:, :, ::-1]
    np.testing.assert_array_equal(crop_HW3, expected_crop(photos / "Ann/2.png", 130))
    assert align("sure", all_faces=True, min_score=0.85).faces == 3


def test_a_record_labels_every_identity_and_keeps_the_pixels(align, photos, tmp_path):
    align("rec/train.rec", all_faces=True)
    assert sorted(path.name for path in (tmp_path / "rec").iterdir()) == [
        *("faces.csv", "failures.csv", "identities.csv", "property", "train.idx", "train.rec")
    ]
    assert table(tmp_path / "rec/identities.csv") == [
        {"label": "0", "name": "Ann", "images": "3"},
        {"label": "1", "name": "Bob", "images": "0"},
        {"label": "2", "name": "Cid", "images": "1"},
    ]
    with FaceRecord(tmp_path / "rec/train.rec") as record:
        assert (record.image_size, record.labels.tolist(), record.num_identities) == ((112, 112), [0, 0, 0, 2], 3)
        payload = np.frombuffer(record.read(2).payload, np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(payload, 1)[:, :, ::-1], expected_crop(photos / "Ann/2.png", 150))
    assert [row["image"] for row in table(tmp_path / "rec/faces.csv")] == ["1", "2", "3", "4"]


def test_labels_of_a_list_are_those_of_the_record(drawn, photos, tmp_path):
    (tmp_path / "list.txt").write_text("Cid/2.png 10\nAnn/1.png 2\nAnn/2.png 10\n")
    listed = find_photographs(tmp_path / "list.txt", root=photos)
    align_photographs(listed, tmp_path / "rec/train.rec", DetectionOptions(drawn))
    assert [(row["label"], row["name"]) for row in table(tmp_path / "rec/identities.csv")] == [("0", "2"), ("1", "10")]
    assert [row["source"] for row in table(tmp_path / "rec/faces.csv")] == ["Ann/1.png", "Cid/2.png", "Ann/2.png"]
    align_photographs(listed, tmp_path / "folder", DetectionOptions(drawn))
    assert [row["image"] for row in table(tmp_path / "folder/faces.csv")] == ["10/2.png", "2/1.png", "10/2.png.png"]


def test_a_record_needs_names(align, photos, tmp_path):
    (photos / "loose.png").write_bytes((photos / "Ann/1.png").read_bytes())
    with pytest.raises(UserError, match=r"loose\.png: has no identity, .*--people file"):
        align("rec/train.rec")
    assert not (tmp_path / "rec").exists()
    assert align("rec/train.rec", people="file").faces == 4
    assert align("out").faces == 4
    assert (tmp_path / "out/loose.png").is_file()


def test_names_are_cells_and_files_and_nothing_else(align, tmp_path):
    payload = encode(draw(turned(0, 0.5, (80, 80))))
    folder = tmp_path / "odd" / '=1+1, "Ann"'
    folder.mkdir(parents=True)
    for name in ("-2+3.png", "a:b.png", "a?b.png", "x.png", "x.PNG", f"{'é' * 120}.png"):
        (folder / name).write_bytes(payload)
    (folder / "torn,@me.png").write_bytes(b"")
    assert align("out", tmp_path / "odd").faces == 6
    rows = table(tmp_path / "out/faces.csv")
    assert {row["identity"] for row in rows} == {'\'=1+1, "Ann"'}
    assert {row["source"] for row in rows} >= {'\'=1+1, "Ann"/-2+3.png', '\'=1+1, "Ann"/x.PNG'}
    images = [row["image"].removeprefix("'") for row in rows]
    assert len(set(images)) == 6
    for name in images:
        assert name.startswith("=1+1, _Ann_/")
        assert (tmp_path / "out" / name).is_file()
    (failure,) = table(tmp_path / "out/failures.csv")
    assert failure["source"] == '\'=1+1, "Ann"/torn,@me.png'
    # The record's own table is read again by name.
    align("rec/train.rec", tmp_path / "odd")
    assert [row["name"] for row in table(tmp_path / "rec/identities.csv")] == ['=1+1, "Ann"']


def test_people_whose_names_no_system_would_keep_apart_stay_apart(tmp_path):
    people = ("a:b", "a?b", "a_b", "a_b~2", "A_B", "a:b")
    shown = [Photograph(f"{who}/{number}.jpg", Path(), who) for number, who in enumerate(people)]
    output = CropFolderWriter(tmp_path, shown)
    names = [output.write(item, None, np.zeros((112, 112, 3), np.uint8)) for item in shown]
    assert names == ["a_b/0.png", "a_b~2/1.png", "a_b~3/2.png", "a_b~2~2/3.png", "A_B~4/4.png", "a_b/5.png"]


def test_nothing_is_left_of_what_stops(align, photos, tmp_path, monkeypatch):
    write = CropFolderWriter.write

    def full(self, *arguments):
        if self._files:
            raise OSError(28, "No space left on device")
        return write(self, *arguments)

    monkeypatch.setattr(CropFolderWriter, "write", full)
    with pytest.raises(UserError, match=r"cannot write .*out: No space left"):
        align("out")
    monkeypatch.setattr(run_module, "face_row", lambda *_: 1 / 0)
    for out in ("out", "rec/train.rec"):
        with pytest.raises(ZeroDivisionError):
            align(out)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_what_is_there_stays(align, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    for out in ("out", "out/train.rec"):
        with pytest.raises(UserError, match="exists already"):
            align(out)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("out", ["out", "out/train.rec"])
def test_overwriting_replaces_the_whole_folder_but_not_one_with_photographs(cli, drawn, photos, tmp_path, out):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/identities.csv").write_text("of another set")
    words = ("align", photos, "--detector", drawn, "--overwrite", "--out")
    code, _, _ = cli(*words, tmp_path / out)
    assert code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"faces.csv", "failures.csv"} < names
    assert (tmp_path / "out/identities.csv").exists() == out.endswith(".rec")
    before = sorted(photos.rglob("*"))
    code, _, error = cli(*words, photos / "train.rec" if out.endswith(".rec") else photos)
    assert (code, f"{photos}: holds the source {photos}" in error) == (1, True)
    assert sorted(photos.rglob("*")) == before


def test_the_advice_for_a_record_does_not_remove_the_working_folder(align, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    for out in ("train.rec", "Ann/train.rec"):
        listed = find_photographs(photos)
        with pytest.raises(UserError, match=f"{out}: its folder exists already.*such as {Path(out).parent / 'NEW'}"):
            align_photographs(listed, Path(out), DetectionOptions("drawn:squares"))


def test_no_face_at_all_is_a_mistake_that_names_the_first(align, photos, tmp_path):
    shutil.rmtree(photos / "Ann")
    (photos / "Cid/2.png").unlink()
    with pytest.raises(UserError, match=r"none of the 2 photographs has a usable face: Bob/1\.png: no face with"):
        align("out")
    assert not (tmp_path / "out").exists()


def test_the_command_counts_and_names_failures(cli, drawn, photos, tmp_path):
    code, out, error = cli("align", photos, "--out", tmp_path / "out", "--detector", drawn)
    assert (code, out.splitlines()[1:2]) == (0, ["failures to enrol: 2 (1 no face, 1 unusable)"])
    assert out.endswith(f"written: {tmp_path / 'out'}\n")
    assert error.startswith(
        "no face: Bob/1.png: no face with a score of 0.5 or more\nunusable: Cid/1.png: a png image that"
    )
    assert error.count("\n") == 2
    words = ("--out", tmp_path / "small", "--detector", drawn, "--max-pixels", 31_999)
    code, out, error = cli("align", photos, *words)
    assert (code, out) == (1, "")
    assert "160 x 200 pixels, above the limit of 31999" in error
