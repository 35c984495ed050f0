"""Attribute tables: by identity and by image, FaceScrub's files, and one-line errors."""

import pytest

from facelt.config.audit import AttributeTablesConfig
from facelt.errors import UserError
from facelt.store.attributes import actor_gender, attribute_columns, check_groupable, join_spellings

KEYS = ["A/1.jpg", "A/2.jpg", "B/3.jpg"]
PEOPLE = ["Anna_Lee", "Anna_Lee", "Bob"]


@pytest.fixture
def columns(tmp_path):
    """columns(text, ...) -> columns of a table with that text, for three images."""

    def of(*texts, key=None, bins=None, store_columns=None):
        paths = []
        for number, text in enumerate(texts):
            paths.append(tmp_path / f"table{number}.csv")
            paths[-1].write_text(text)
        return attribute_columns(
            AttributeTablesConfig(tables=tuple(paths), key=key), KEYS, PEOPLE, bins or {}, store_columns or {}
        )

    return of


def test_a_table_by_identity_is_matched_by_canonical_names(columns):
    assert columns("identity,gender\nanna lee,female\nBob.,male\nCarl,male\n") == {
        "gender": ["female", "female", "male"]
    }


def test_identities_csv_is_accepted_as_it_is(columns):
    text = "label,name,gender,images\n0,Bob,male,3\n7,Anna Lee,female,9\n"
    assert columns(text) == {"gender": ["female", "female", "male"], "images": ["9", "9", "3"]}


def test_a_table_of_labels_serves_a_store_of_labels(tmp_path):
    path = tmp_path / "identities.csv"
    path.write_text("label,name,gender\n0,Bob,male\n1,Anna,female\n")
    table = attribute_columns(AttributeTablesConfig(tables=(path,)), None, ["1", "0", "2"], {})
    assert table == {"gender": ["female", "male", ""]}


def test_a_table_by_image_gives_one_person_several_values(columns):
    assert columns("key,age\nA/2.jpg,40\nA/1.jpg,20\n")["age"] == ["20", "40", ""]


def test_several_tables_and_the_stores_own_columns_are_joined(columns):
    joined = columns(
        "name,a\nBob,1\n",
        "person,b\nBob,2\nAnna Lee,3\n".replace("person", "identity"),
        store_columns={"c": ["x", "y", "z"]},
    )
    assert joined == {"c": ["x", "y", "z"], "a": ["", "", "1"], "b": ["3", "3", "2"]}


def test_the_column_that_says_whose_a_row_is_can_be_named(columns):
    assert columns("who,name,a\nBob,Anna_Lee,1\n", key="who") == {"a": ["", "", "1"]}


def test_numbers_are_binned_from_tables_and_from_the_store(columns):
    binned = columns(
        "name,age\nBob,17\nAnna Lee,18\n", bins={"age": (18,), "size": (5,)}, store_columns={"size": ["4", "", "6"]}
    )
    assert binned == {"age": [">=18", ">=18", "<18"], "size": ["<5", "", ">=5"]}


@pytest.mark.parametrize(
    ("text", "options", "what"),
    [
        ("name,a\nBob,1\nbob,2\n", {}, "line 3 gives 'bob' a second a: '2'; line 2 says '1'"),
        ("person,a\nBob,1\n", {}, "no column identifies the rows"),
        ("name,a\nCarl,1\n", {}, "has none of the audited identities in its column 'name'"),
        ("name,a\nBob,1\n", {"key": "who"}, "no column 'who'; its columns are name, a"),
        (
            "name,age\nBob,1\nAnna Lee,young\n",
            {"bins": {"age": (18,)}},
            "line 3, column 'age': 'young' is not a number",
        ),
        ("name,a\nBob,1\n", {"store_columns": {"a": ["", "", ""]}}, "column 'a' is already in another file"),
        ("name,a\nBob,1\n", {"bins": {"age": (18,)}}, "bins.age: no table has a column 'age'; known columns are a"),
    ],
)
def test_a_mistake_is_one_line(columns, text, options, what):
    with pytest.raises(UserError) as error:
        columns(text, **options)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_facescrubs_files_give_gender(tmp_path):
    header = "name\timage_id\tface_id\turl\tbbox\tsha256\n"
    actors, actresses = tmp_path / "actors.txt", tmp_path / "actresses.txt"
    actors.write_text(header + 'Bob "B" Jr.\t0\t0\t-\t0\tx\nBob "B" Jr.\t1\t1\t-\t0\tx\n')
    actresses.write_text(header + "Anna Lee\t0\t0\t-\t0\tx\n")
    assert actor_gender(actors, actresses) == {'bob_"b"_jr': "male", "anna_lee": "female"}
    config = AttributeTablesConfig(actors=actors, actresses=actresses)
    assert attribute_columns(config, KEYS, PEOPLE, {}) == {"gender": ["female", "female", ""]}
    actresses.write_text(header + 'bob_"B"_jr\t0\n'.replace("\t0", "\t0\t0\t0\t0\t0"))
    with pytest.raises(UserError, match="is also in actors"):
        actor_gender(actors, actresses)
    actresses.write_text("Anna\tx\n")
    with pytest.raises(UserError, match="must begin with the column 'name'"):
        actor_gender(actors, actresses)


def test_a_column_to_group_by_must_be_there_and_be_a_grouping():
    check_groupable({"a": ["1", "2"]}, ["a"])
    with pytest.raises(UserError, match="by: no column 'b'; known columns are a"):
        check_groupable({"a": ["1"]}, ["b"])
    with pytest.raises(UserError, match=r"column 'a' has 41 values, more than 40: bin a number with bins\.a"):
        check_groupable({"a": [str(number) for number in range(41)]}, ["a"])


def test_spellings_of_one_value_become_the_commonest():
    columns = {
        "a": ["Male", "male", " male", "MALE ", "male", "", "  ", "female "],
        "b": ["x", "X", "X"],
        "c": ["y", "Y"],
    }
    assert join_spellings(columns, ["a", "b"]) == [
        "a: 'Male' (1), 'male' (2), ' male' (1), 'MALE ' (1) are one group, 'male'.",
        "b: 'x' (1), 'X' (2) are one group, 'X'.",
    ]
    assert columns == {"a": ["male"] * 5 + ["", "", "female"], "b": ["X"] * 3, "c": ["y", "Y"]}


def test_rows_that_spell_a_value_differently_are_no_conflict(columns):
    assert columns("Name , Gender\nBob,Male\nbob, male\n") == {"gender": ["", "", "Male"]}


def test_columns_of_a_store_are_named_without_case(columns):
    assert columns(bins={"age": (18,)}, store_columns={"Age ": ["4", "30", ""]}) == {"age": ["<18", ">=18", ""]}
    with pytest.raises(UserError, match="the column 'age' is there twice"):
        columns(store_columns={"Age": ["", "", ""], "age": ["", "", ""]})
