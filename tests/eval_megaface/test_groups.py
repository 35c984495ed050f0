"""Groups of probes: FaceScrub's files, attribute tables, and names with two spellings."""

import numpy as np
import pytest

from eval_megaface.suite import attribute_groups, read_attributes, read_names
from facelt.errors import UserError
from facelt.store.attributes import actor_gender, canonical_name


def test_canonical_names():
    assert (
        canonical_name("Robert Downey Jr.")
        == canonical_name("Robert_Downey_Jr")
        == canonical_name(" robert  downey_JR ")
    )
    assert canonical_name("Beyonc\u00e9") == canonical_name("Beyonce\u0301")
    assert canonical_name("Ann") != canonical_name("Anne")


def test_real_files_cover_every_probe(real_data):
    suite = real_data / "faces/megaface"
    gender = actor_gender(suite / "facescrub_actors.txt", suite / "facescrub_actresses.txt")
    folders = sorted(path.name for path in (suite / "facescrub_images").iterdir())
    groups, notes = attribute_groups({"gender": gender}, np.arange(len(folders)), folders)
    assert [(group.name, group.group, int(group.mask_P.sum())) for group in groups] == [
        ("male", "gender", 7),
        ("female", "gender", 7),
    ]
    assert notes == []


def test_gender_files(tmp_path):
    (tmp_path / "a").write_text("name\tid\nBob Ray\t1\nBob Ray\t2\n")
    (tmp_path / "b").write_text("name\tid\nAnn\t1\n")
    assert actor_gender(tmp_path / "a", tmp_path / "b") == {"bob_ray": "male", "ann": "female"}
    (tmp_path / "b").write_text("name\tid\nBOB_RAY\t1\n")
    with pytest.raises(UserError, match="'bob_ray' is also in a"):
        actor_gender(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b").write_text("Ann\t1\n")
    with pytest.raises(UserError, match="must begin with the column 'name'"):
        actor_gender(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match="cannot be read"):
        actor_gender(tmp_path / "a", tmp_path / "none")


def test_attributes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("label,name,gender,age\n0,Ann Lee,female,old\n1,Bob,male,\n2,ann_lee,female,old\n\n")
    assert read_attributes(path, "name", ["gender", "age"]) == {
        "gender": {"ann_lee": "female", "bob": "male"},
        "age": {"ann_lee": "old"},
    }
    with pytest.raises(UserError, match="line 4 gives 'ann_lee' a second label: '2'"):
        read_attributes(path, "name", None)
    with pytest.raises(UserError, match="no column 'identity'; its columns are label, name, gender, age"):
        read_attributes(path, "identity", None)
    path.write_text("name,age\nAnn\n")
    with pytest.raises(UserError, match="line 2 has 1 fields"):
        read_attributes(path, "name", None)


def test_values_become_groups_and_gaps_a_note():
    table = {"skin": {"ann": "V", "bob": "II", "cy": "V"}}
    groups, notes = attribute_groups(table, np.array([0, 0, 1, 2, 3]), ["Ann", "Bob", "Cy", "Di"])
    assert [(group.name, group.group, group.mask_P.tolist()) for group in groups] == [
        ("II", "skin", [False, False, True, False, False]),
        ("V", "skin", [True, True, False, True, False]),
    ]
    assert notes == ["1 of 4 probe identities have no skin and are in none of its groups."]


def test_spellings_of_a_value_are_one_group(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Name,Gender\nAnn,Female\nBob,male\nbob,Male\nCy, female\nDi,female\n")
    groups, notes = attribute_groups(read_attributes(path, "name", None), np.arange(4), ["Ann", "Bob", "Cy", "Di"])
    assert [(group.name, group.mask_P.tolist()) for group in groups] == [
        ("male", [False, True, False, False]),
        ("Female", [True, False, True, True]),
    ]
    assert notes == ["gender: 'Female' (1), ' female' (1), 'female' (1) are one group, 'Female'."]


def test_a_column_of_numbers_is_no_grouping():
    names = [f"p{number}" for number in range(60)]
    with pytest.raises(UserError, match="'images' has 60 values"):
        attribute_groups({"images": {name: name for name in names}}, np.arange(60), names)


def test_names_of_a_training_set(real_data, tmp_path):
    names = read_names(real_data / "faces/train/identities.csv")
    assert "mark_philippoussis" in names
    assert len(names) == 3102
    (tmp_path / "i.csv").write_text("label,who\n")
    with pytest.raises(UserError, match="no column 'name'; its columns are label, who"):
        read_names(tmp_path / "i.csv")
    (tmp_path / "identities.csv").write_text("label,name\n0,Ann Lee\n0,Cy Doe\n")
    with pytest.raises(UserError, match=r"identities\.csv: line 3 .* repeats its label"):
        read_names(tmp_path / "identities.csv")
