"""Image names: positions and repeats against dictionaries, also of names with equal hashes; tables against csv."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.store import image_names
from facelt.store.store import read_items

NAMES = st.lists(st.text("ab/", min_size=0, max_size=3), max_size=30)


@pytest.fixture(params=["python's hashes", "equal hashes"])
def hashes(request, monkeypatch):
    if request.param == "equal hashes":
        monkeypatch.setattr(
            image_names, "name_hashes", lambda names: np.array([len(name) for name in names], dtype=np.int64)
        )


@pytest.mark.usefixtures("hashes")
def test_positions_and_repeats_equal_those_of_a_dictionary():
    @settings(max_examples=60, deadline=None)
    @given(NAMES, NAMES)
    def check(listed, names):
        seen = set()
        first = next((name for name in names if name in seen or seen.add(name)), None)
        assert image_names.first_repeated(names) == first
        distinct = list(dict.fromkeys(names))
        position = {name: row for row, name in enumerate(distinct)}
        assert image_names.positions_of(listed, distinct).tolist() == [position.get(name, -1) for name in listed]

    check()


def test_distinct_texts_are_counted():
    assert image_names.count_distinct([]) == 0
    assert image_names.count_distinct(["b", "a", "b"]) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text('a"\n,ä ', max_size=4), st.text('1"\n,', max_size=2), st.text("x,", max_size=2))),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)
def test_a_table_has_the_fields_that_csv_reads(tmp_path_factory, rows, is_ended, line_end):
    rows = [(f"{number}{key}", identity, age) for number, (key, identity, age) in enumerate(rows)]
    text = io.StringIO()
    csv.writer(text, lineterminator=line_end).writerows([("key", "identity", "age"), *rows])
    content = text.getvalue() if is_ended else text.getvalue().removesuffix(line_end)
    path = tmp_path_factory.mktemp("store") / "items.csv"
    path.write_bytes(content.encode())
    header, *expected = csv.reader(io.StringIO(content, newline=""))
    columns = read_items(path)
    assert list(columns) == header
    assert list(zip(*columns.values(), strict=True)) == [tuple(row) for row in expected]
