"""Verification of record files: each issue is reported once, with key, offset and reason."""

import struct

import pytest

from recordio_tools.format import MAGIC_BYTES, IRHeader
from recordio_tools.reader import RecordReader
from recordio_tools.verify import verify_record_file
from recordio_tools.writer import FaceRecordWriter, RecordWriter


@pytest.fixture
def offsets(faces) -> dict[int, int]:
    with RecordReader(faces) as reader:
        return {key: reader.offset(key) for key in reader.keys.tolist()}


def overwrite(path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def issues_of(path, **options) -> dict[int | None, str]:
    """Reasons by key."""
    return {issue.key: issue.reason for issue in verify_record_file(path, **options).issues}


def test_intact_files_have_no_issues(golden, real_data, faces):
    for path, records, images in ((golden / "recordio/train.rec", 39, 33), (faces, 12, 8)):
        report = verify_record_file(path)
        assert (report.records, report.images, report.issues) == (records, images, [])
    assert verify_record_file(real_data / "faces/train/train.rec", decode_images=False).issues == []


def test_records_in_parts_have_no_issues(golden):
    assert verify_record_file(golden / "recordio/odd.rec", decode_images=False).records == 8


def test_a_flipped_magic_word(faces, offsets):
    overwrite(faces, offsets[3], b"\0")
    assert issues_of(faces) == {3: f"no magic word at offset {offsets[3]}"}


def test_a_flipped_magic_word_without_an_index(faces, offsets):
    overwrite(faces, offsets[3], b"\0")
    faces.with_suffix(".idx").unlink()
    issues = verify_record_file(faces).issues
    assert (issues[0].key, issues[0].offset) == (None, offsets[3])
    assert len([issue for issue in issues if "range" not in issue.reason]) == 1
    assert verify_record_file(faces).records == 12


def test_a_truncated_file(faces, offsets):
    faces.write_bytes(faces.read_bytes()[: offsets[11] + 12])
    reasons = issues_of(faces)
    assert reasons[11].startswith("truncated")
    assert "points here" in reasons[0]
    assert set(reasons) == {0, 11}


def test_a_length_too_long_runs_over_the_next_record(faces, offsets):
    word = struct.unpack_from("<I", faces.read_bytes(), offsets[2] + 4)[0]
    overwrite(faces, offsets[2] + 4, struct.pack("<I", word + offsets[4] - offsets[3]))
    reasons = issues_of(faces)
    assert reasons[2] == f"its length runs over the record at offset {offsets[3]}"
    assert set(reasons) == {2}


def test_a_length_too_short_ends_nowhere(faces, offsets):
    overwrite(faces, offsets[2] + 4, struct.pack("<I", 40))
    reasons = issues_of(faces)
    assert reasons[2] == f"its length ends at offset {offsets[2] + 48}, where no record begins"
    assert set(reasons) == {2}


@pytest.mark.parametrize("code", [1, 2, 3, 6])
def test_a_bad_continuation(faces, offsets, code):
    word = struct.unpack_from("<I", faces.read_bytes(), offsets[5] + 4)[0]
    overwrite(faces, offsets[5] + 4, struct.pack("<I", code << 29 | word))
    reason = {1: "a new record begins", 2: "without its first part", 3: "without its first part", 6: "part code 6"}[
        code
    ]
    assert reason in issues_of(faces)[5]


def test_images_that_cannot_be_decoded(tmp_path, encode):
    whole = encode(0)
    payloads = [
        whole,
        b"",
        b"no image at all",
        whole[:9],
        whole[:-2],
        encode(1, (8, 8)),
        encode(2, suffix=".png")[:60],
    ]
    with FaceRecordWriter(tmp_path / "a.rec", (16, 16)) as writer:
        writer.write_all((0, payload) for payload in payloads)
    reasons = issues_of(tmp_path / "a.rec")
    expected = {2: "empty", 3: "not a JPEG", 4: "damaged header", 5: "cut short", 6: "8 x 8, property", 7: "png"}
    assert set(reasons) == set(expected)
    for key, part in expected.items():
        assert part in reasons[key]
    assert issues_of(tmp_path / "a.rec", decode_images=False) == {}


def test_images_above_the_pixel_limit_are_not_decoded(faces):
    assert "above the limit of 255" in issues_of(faces, max_pixels=255)[1]


def rewrite_index(path, change) -> None:
    index = path.with_suffix(".idx")
    lines = [line.split("\t") for line in index.read_text().splitlines()]
    index.write_text("".join(f"{key}\t{offset}\n" for key, offset in change(lines)))


def test_an_index_that_points_wrong(faces, offsets):
    rewrite_index(faces, lambda lines: [[key, str(int(offset) + 4 * (key == "4"))] for key, offset in lines])
    issues = verify_record_file(faces).issues
    assert [(issue.key, issue.offset) for issue in issues if "points here" in issue.reason] == [(4, offsets[4] + 4)]
    assert [issue.offset for issue in issues if "does not hold" in issue.reason] == [offsets[4]]


def test_an_index_that_confuses_two_records(faces, offsets):
    swap = {"2": "3", "3": "2"}
    rewrite_index(faces, lambda lines: [[swap.get(key, key), offset] for key, offset in lines])
    assert issues_of(faces) == {
        3: "its key is 3 in the index, its id 2 in the header",
        2: "its key is 2 in the index, its id 3 in the header",
    }


def test_an_index_with_a_key_or_an_offset_twice(faces, offsets):
    rewrite_index(faces, lambda lines: [*lines, ["1", lines[1][1]], ["77", lines[4][1]]])
    reasons = [issue.reason for issue in verify_record_file(faces).issues]
    assert "its key is repeated in the index" in reasons
    assert "two keys of the index share its offset" in reasons


def test_an_index_that_is_none(faces):
    faces.with_suffix(".idx").write_text("nonsense\n")
    assert "line 1 is not a key" in issues_of(faces)[None]


def test_labels_and_ranges_that_do_not_fit(tmp_path, encode):
    labels = [0.0, 0.0, 1.0, 7.0, float("nan")]
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key, label in enumerate(labels, start=1):
            writer.write(key, IRHeader(0, label, key, 0), encode(key))
        writer.write_labels(6, (1, 4))
        writer.write_labels(7, (4, 9))
        writer.write_labels(0, (6, 9))
    (tmp_path / "property").write_text("2,16,16\n")
    assert issues_of(tmp_path / "a.rec") == {
        4: "its label is 7 (property declares 2 identities)",
        5: "its label is nan (property declares 2 identities)",
        6: "its range 1..3 holds images of several labels",
        7: "its range 4..8 names images that do not exist",
        0: "its range of identities 6..8 is wrong for key 8",
    }


def test_a_short_header(tmp_path):
    path = tmp_path / "a.rec"
    path.write_bytes(MAGIC_BYTES + struct.pack("<I", 8) + bytes(8))
    assert "too short for a header" in issues_of(path)[None]


def test_the_search_continues_behind_each_damage(faces, offsets):
    for key in (1, 4, 8):
        overwrite(faces, offsets[key], b"\0")
    report = verify_record_file(faces)
    assert [issue.key for issue in report.issues] == [1, 4, 8]
    assert report.records == 12
