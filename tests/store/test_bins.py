"""Binning of numeric attributes into groups."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facelt.store.attributes import bin_labels, bin_values

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def test_an_edge_belongs_to_the_bin_it_begins():
    values = ["17.9", "18", "29.99", "30", "44", "45", "120", "", " "]
    assert bin_values(values, [18, 30, 45]) == ["<18", *["18-<30"] * 2, *["30-<45"] * 2, *[">=45"] * 2, "", ""]


@given(st.lists(FINITE, max_size=20), st.lists(FINITE, min_size=1, max_size=5, unique=True))
def test_every_number_is_in_the_bin_whose_edges_hold_it(numbers, edges):
    edges = sorted(edges)
    ends = [float("-inf"), *edges, float("inf")]
    labels = bin_labels(edges)
    for number, label in zip(numbers, bin_values([repr(number) for number in numbers], edges), strict=True):
        holds = [index for index, low in enumerate(ends[:-1]) if low <= number < ends[index + 1]]
        assert label == labels[holds[0]]


@pytest.mark.parametrize("text", ["old", "nan", "inf", "1,5"])
def test_what_is_no_number_is_named_by_its_place(text):
    with pytest.raises(ValueError, match="2"):
        bin_values(["1", "", text], [18])
