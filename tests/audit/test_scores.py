"""Scores files: reading, and one-line errors for each kind of mistake."""

import numpy as np
import pytest

from facelt.audit import audited_set
from facelt.audit.audited_set import read_scores
from facelt.errors import UserError
from facelt.utils import tables

GOOD = "id1,id2,score,label\nx,x,0.9,1\nx,y,0.2,0\ny,z,-0.1,0\nz,z,1e-1,1\n"


@pytest.fixture
def write(tmp_path):
    def to(text):
        path = tmp_path / "scores.csv"
        path.write_text(text)
        return path

    return to


def test_pairs_are_read_in_order_and_yielded_in_blocks(write, monkeypatch):
    monkeypatch.setattr(tables, "_CHUNK_ROWS", 2)
    monkeypatch.setattr(audited_set, "PAIR_BLOCK", 3)
    pairs = read_scores(write(GOOD))
    assert pairs.identities == ["x", "y", "z"]
    blocks = list(pairs.blocks())
    assert [len(block[0]) for block in blocks] == [3, 1]
    score_M, mated_M, left_M, right_M = (np.concatenate(part) for part in zip(*blocks, strict=True))
    assert score_M.tolist() == [0.9, 0.2, -0.1, 0.1]
    assert mated_M.tolist() == [True, False, False, True]
    assert (left_M.tolist(), right_M.tolist()) == ([0, 0, 1, 2], [0, 1, 2, 2])


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("x,y,high,0", "line 6, column 'score': 'high' is not a number"),
        ("x,y,inf,0", "line 6, column 'score': 'inf' is not finite"),
        ("x,y,0.1,2", "line 6, column 'label': '2' is neither 1 (mated) nor 0 (non-mated)"),
        ("x,y,0.1,1", "line 6, column 'label': '1' contradicts id1 and id2, which are two identities"),
        ("x,x,0.1,0", "line 6, column 'label': '0' contradicts id1 and id2, which are one identity"),
        ("x,,0.1,0", "line 6, column 'id2': '' is empty; expected an identity"),
        ("x,y,0.1", "line 6 has 3 fields, the header has 4"),
    ],
)
def test_a_mistake_is_named_by_line_and_column(write, line, what):
    with pytest.raises(UserError) as error:
        read_scores(write(f"{GOOD}{line}\n"))
    assert str(error.value).endswith(what)


def test_pairs_of_one_kind_only_are_refused(write):
    with pytest.raises(UserError, match=r"has no mated pair \(label 1\)"):
        read_scores(write("id1,id2,score,label\nx,y,1,0\n"))
    with pytest.raises(UserError, match=r"has no non-mated pair \(label 0\)"):
        read_scores(write("id1,id2,score,label\nx,x,1,1\n"))
    with pytest.raises(UserError, match="has no column 'label'"):
        read_scores(write("id1,id2,score\nx,x,1\n"))


DISTANCES = "id1,id2,score,label\nx,x,0.1,1\nx,y,0.8,0\ny,z,1.1,0\nz,z,0.9,1\n"


def test_distances_are_refused_unless_their_direction_is_given(write):
    path = write(DISTANCES)
    with pytest.raises(UserError) as error:
        read_scores(path)
    assert str(error.value).startswith(f"{path}: mated pairs score 0.5 on average, non-mated pairs 0.95")
    assert "--higher-is different" in str(error.value)
    assert "\n" not in str(error.value)
    assert read_scores(path, "different").score_M.tolist() == [-0.1, -0.8, -1.1, -0.9]
    assert read_scores(path, "same").score_M.tolist() == [0.1, 0.8, 1.1, 0.9]
    assert read_scores(write(GOOD)).score_M.tolist() == read_scores(write(GOOD), "same").score_M.tolist()
