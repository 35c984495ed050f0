"""Table reading: one-line errors that name file, line and column."""

import pytest

from facelt.errors import UserError
from facelt.utils import tables
from facelt.utils.tables import read_chunks, read_table


@pytest.fixture
def write(tmp_path):
    def to(text, **how):
        path = tmp_path / "table.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return to


def test_columns_and_lines_are_those_of_the_file(write):
    rows = read_table(write('\ufeffname,age\nAnna,3\n\n"B, C",4\n'))
    assert rows.columns == {"name": ["Anna", "B, C"], "age": ["3", "4"]}
    assert rows.line_N == [2, 4]


def test_column_names_ignore_case_and_surrounding_spaces(write):
    path = write(" Name ,AGE\nAnna,3\n")
    assert read_table(path, ("name", "age")).columns == {"name": ["Anna"], "age": ["3"]}
    assert read_table(write("Name;x\tAge\nAnna\t3\n"), delimiter="\t").columns == {"name;x": ["Anna"], "age": ["3"]}


def test_a_long_table_comes_in_chunks(write, monkeypatch):
    monkeypatch.setattr(tables, "_CHUNK_ROWS", 2)
    path = write("x\n" + "\n".join(str(number) for number in range(5)))
    assert [list(part.columns["x"]) for part in read_chunks(path)] == [[], ["0", "1"], ["2", "3"], ["4"]]
    assert read_table(path).columns == {"x": list("01234")}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the first line must name 1 to 1000 columns"),
        ("a,a\n", "line 1 names the column 'a' twice"),
        ("a;b\n1;2\n", "the header is one column 'a;b': separate columns with commas"),
        ("a\tb\n1\t2\n", "the header is one column 'a\\tb': separate columns with commas"),
        ("a,b, A\n", "line 1 names the columns 'a' and ' A', which are equal but for case or spaces"),
        ("b\n1\n", "has no column 'a'; its columns are b"),
        ("a,b\n1,2\n1\n", "line 3 has 1 fields, the header has 2"),
        ("a,b\n1,2,3\n", "line 2 has 3 fields, the header has 2"),
        (b"a\n\xff\xfe\n", "is not a table in UTF-8"),
        ('a\n"open\n', "is not a table in UTF-8"),
    ],
)
def test_a_mistake_is_named(write, text, what):
    path = write(text)
    with pytest.raises(UserError) as error:
        read_table(path, ("a",))
    assert str(error.value).startswith(f"{path}: ")
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent.*: cannot be read"):
        read_table(tmp_path / "absent.csv")
