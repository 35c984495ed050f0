"""Lists of IJB-B and IJB-C: what is read, and one line for each thing that is wrong."""

import os

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.store import ijb as ijb_module
from facelt.store.ijb import IjbFolder, IjbLists, read_pair_list
from tests.benchmark_files import IjbFiles


@pytest.fixture
def files(tmp_path):
    return IjbFiles(tmp_path)


def read(files: IjbFiles) -> IjbLists:
    return IjbLists.read(IjbFolder.open(files.root))


def test_all_lists_are_read(files):
    lists = read(files)
    assert lists.folder.title == "IJB-C"
    assert lists.images.names == [row[0] for row in files.rows]
    np.testing.assert_array_equal(lists.images.score_N, files.score_N)
    assert lists.images.landmark_N52[0, 1].tolist() == [73.532, 51.501]
    template_T = lists.media.template_T
    assert template_T.tolist() == sorted(files.subject_of)
    assert template_T[lists.media.row_M].tolist() == [row[1] for row in files.rows]
    assert lists.media.medium_M.tolist() == [row[2] for row in files.rows]
    assert lists.media.media == len({(row[1], row[2]) for row in files.rows})
    read_pairs = zip(template_T[lists.pairs.left_P], template_T[lists.pairs.right_P], lists.pairs.same_P, strict=True)
    assert [list(map(int, pair)) for pair in read_pairs] == files.pairs
    for gallery, templates in zip(lists.galleries, files.gallery, strict=True):
        assert template_T[gallery.row_K].tolist() == sorted(templates)
        assert gallery.subject_K.tolist() == [files.subject_of[template] for template in sorted(templates)]
    assert lists.subject_T.tolist() == [files.subject_of[template] for template in template_T.tolist()]


def test_ijbb_has_other_names_and_1n_may_be_absent(tmp_path):
    files = IjbFiles(tmp_path, name="ijbb", galleries=("S1", "S2"))
    lists = read(files)
    assert (lists.folder.title, [gallery.name for gallery in lists.galleries]) == ("IJB-B", ["S1", "S2"])
    for name in ("gallery_S1", "gallery_S2"):
        files.path(f"1N_{name}.csv").unlink()
    with pytest.raises(UserError, match=r"ijbb_1N_gallery_S1\.csv: no such file; 1:N identification needs both"):
        read(files)
    files.path("1N_probe_mixed.csv").unlink()
    assert (read(files).galleries, read(files).probes) == ((), None)
    IjbFiles(tmp_path)
    with pytest.raises(UserError, match="has both of"):
        read(files)
    with pytest.raises(UserError, match="has neither of"):
        IjbFolder.open(tmp_path / "meta")


def test_an_image_may_belong_to_several_templates_and_the_lists_may_differ_in_order(files):
    name, template, medium = files.rows[0]
    other = next(row[1] for row in files.rows if row[1] != template)
    rows = [*reversed(files.rows), [name, other, medium]]
    files.path("face_tid_mid.txt").write_text("".join(" ".join(map(str, row)) + "\r\n" for row in rows))
    media = read(files).media
    assert [files.rows[image] for image in media.image_M[:-1]] == rows[:-1]
    assert (media.image_M[-1], media.template_T[media.row_M[-1]]) == (0, other)


def edit(ending: str, old: str, new: str, line: int = 3):
    """Returns a change of one line of a list: the words `old` of it become `new`; 0 is a column of `old`."""

    def change(files: IjbFiles) -> None:
        path = files.path(ending)
        lines = path.read_text().splitlines()
        words = lines[line - 1].replace(",", " , ").split(" ") if ending.endswith("csv") else lines[line - 1].split()
        words[int(old)] = new
        lines[line - 1] = "".join(words) if ending.endswith("csv") else " ".join(words).strip()
        path.write_text("\n".join(lines) + "\n")

    return change


SCORES, MEDIA, PAIRS = "name_5pts_score.txt", "face_tid_mid.txt", "template_pair_label.txt"
PROBES = "1N_probe_mixed.csv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(SCORES, "11", ""), r"name_5pts_score\.txt, line 3: has 11 fields; expected 12"),
        (edit(SCORES, "4", "x"), r"name_5pts_score\.txt, line 3: expected finite numbers after the name, found"),
        (edit(SCORES, "4", "nan"), r"name_5pts_score\.txt, line 3: expected finite numbers"),
        (edit(SCORES, "11", "-0.5"), r"name_5pts_score\.txt, line 3: the detection score -0\.5 is negative"),
        (edit(SCORES, "0", "../x.jpg"), r"name_5pts_score\.txt, line 3: '\.\./x\.jpg' leads out of the root folder"),
        (edit(SCORES, "0", "absent.jpg"), r"face_tid_mid\.txt, line 3: the image \d+\.jpg is not listed in .*5pts"),
        (edit(MEDIA, "1", "-4"), r"face_tid_mid\.txt, line 3: expected whole numbers for template and medium, found"),
        (edit(MEDIA, "2", "1.5"), r"face_tid_mid\.txt, line 3: expected whole numbers"),
        (edit(MEDIA, "2", "9" * 19), r"face_tid_mid\.txt, line 3: expected whole numbers"),
        (edit(MEDIA, "2", ""), r"face_tid_mid\.txt, line 3: has 2 fields; expected 3: a name, a template and a medium"),
        (edit(PAIRS, "2", "2"), r"template_pair_label\.txt, line 3: the label 2 is neither 0 nor 1"),
        (edit(PAIRS, "2", "-1"), r"template_pair_label\.txt, line 3: expected 3 whole numbers, found '\d+ \d+ -1'"),
        (edit(PAIRS, "2", ""), r"template_pair_label\.txt, line 3: expected 3 whole numbers"),
        (edit(PAIRS, "1", "x"), r"template_pair_label\.txt, line 3: expected 3 whole numbers"),
        (edit(PAIRS, "1", "9" * 19), r"template_pair_label\.txt, line 3: expected 3 whole numbers"),
        (edit(PAIRS, "1", "1000001"), r"line 3: the template 1000001 has no image in .*ijbc_face_tid_mid\.txt"),
        (edit(PROBES, "0", "1000001"), r"1N_probe_mixed\.csv, line 3: the template 1000001 has no image"),
        (edit(PROBES, "2", "x"), r"1N_probe_mixed\.csv, line 3: the subject_id 'x' is not a whole number"),
        (edit("1N_gallery_G2.csv", "1", ""), r"1N_gallery_G2\.csv: line 3 has 3 fields, the header has 4"),
        (edit("1N_gallery_G1.csv", "2", "TEMPLATE", 1), r"has no column 'subject_id'"),
    ],
)
def test_a_line_that_is_wrong_is_named(files, change, message):
    change(files)
    with pytest.raises(UserError, match=message) as error:
        read(files)
    assert "\n" not in str(error.value)


def test_repeated_and_contradictory_lines(files):
    scores, media = files.path(SCORES), files.path(MEDIA)
    plain_scores, plain_media, plain_probes = (path.read_text() for path in (scores, media, files.path(PROBES)))
    total = len(files.rows)
    scores.write_text(plain_scores + plain_scores.splitlines()[4])
    with pytest.raises(UserError, match=rf"line {total + 1}: the image {files.rows[4][0]} is listed twice"):
        read(files)
    scores.write_text(plain_scores)
    media.write_text(plain_media + plain_media.splitlines()[4])
    with pytest.raises(UserError, match=rf"line {total + 1}: the image {files.rows[4][0]} is twice in the template"):
        read(files)
    media.write_text(plain_media.replace("\n", " \n", 1))
    read(files)
    # An image of the other list that has no template.
    media.write_text("".join(plain_media.splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=rf"5pts_score\.txt, line {total}: the image {files.rows[-1][0]} has no templ"):
        read(files)
    media.write_text(plain_media)
    template = files.probes[0]
    files.path(PROBES).write_text(plain_probes + f"{template},99,x,3\n")
    with pytest.raises(UserError, match=rf"the template {template} is of the subject .*, on another line of"):
        read(files)
    files.path(PROBES).write_text(plain_probes + f"{files.gallery[0][0]},99,x,3\n")
    with pytest.raises(UserError, match=r"is of the subject 99, in another list of 0"):
        read(files)
    subjects = {template: subject + 100 for template, subject in files.subject_of.items()}
    files.path(PROBES).write_text(
        "template_id,subject_id\n" + "".join(f"{template},{subjects[template]}\n" for template in files.probes)
    )
    with pytest.raises(UserError, match="no probe has its subject in a gallery"):
        read(files)


def test_landmarks_that_coincide_and_empty_lists(files):
    lines = files.path(SCORES).read_text().splitlines()
    lines[1] = f"{files.rows[1][0]} {'3 4 ' * 5}0.5"
    files.path(SCORES).write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 2: the landmarks coincide"):
        read(files)
    files.write()
    for text, message in (
        ("", "the list is empty"),
        (f"{files.pairs[1][0]} {files.pairs[1][1]} 0\n", "pairs is mated"),
    ):
        files.path(PAIRS).write_text(text)
        with pytest.raises(UserError, match=message):
            read(files)
    files.path(PAIRS).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read(files)
    os.mkfifo(files.path(PAIRS))
    with pytest.raises(UserError, match="a named pipe, not a regular file"):
        read(files)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 24])
@pytest.mark.parametrize("ending", ["\n", ""])
def test_pairs_are_read_in_chunks_of_any_size(files, monkeypatch, tmp_path, chunk, ending):
    monkeypatch.setattr(ijb_module, "_CHUNK_BYTES", chunk)
    lines = [f"{left} {right} {same}" for left, right, same in files.pairs]
    lines[1] = lines[1].replace(" ", "\t  ") + " \r"
    lines.insert(5, "")
    path = tmp_path / "pairs.txt"
    path.write_text("\n".join(lines) + ending)
    template_T = np.array(sorted(files.subject_of))
    pairs = read_pair_list(path, template_T, tmp_path)
    assert template_T[pairs.right_P].tolist() == [right for _, right, _ in files.pairs]
    assert pairs.same_P.tolist() == [bool(same) for *_, same in files.pairs]
    # Three numbers that are not on one line, in the right total.
    path.write_text("\n".join([*lines[:8], "1 2", "3 4 5 6", *lines[8:]]))
    with pytest.raises(UserError, match=r"line 9: expected 3 whole numbers, found '1 2'"):
        read_pair_list(path, template_T, tmp_path)
    path.write_text("1" * (1 << 17))
    with pytest.raises(UserError, match="a line has more than 65,536 bytes; it is no list of numbers"):
        read_pair_list(path, template_T, tmp_path)
