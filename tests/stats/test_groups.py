"""Groups of images: intersections, unknown values, and units."""

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.stats.groups import UNKNOWN, Units

IDENTITY = ["a", "a", "a", "b", "c", "c"]
COLUMNS = {"gender": ["f", "f", "f", "m", "", ""], "age": ["young", "old", "old", "old", "old", "young"]}


def test_units_are_an_identity_and_its_values():
    units = Units.from_columns(IDENTITY, COLUMNS)
    seen = {(units.identities[i], *(units.values[c][u] for c in COLUMNS)) for u, i in enumerate(units.identity_U)}
    assert seen == {
        ("a", "f", "young"),
        ("a", "f", "old"),
        ("b", "m", "old"),
        ("c", UNKNOWN, "old"),
        ("c", UNKNOWN, "young"),
    }
    for n, u in enumerate(units.unit_N):
        assert units.identities[units.identity_U[u]] == IDENTITY[n]
        assert units.values["age"][u] == COLUMNS["age"][n]


def test_groupings_and_their_intersections():
    units = Units.from_columns(IDENTITY, COLUMNS)
    gender = units.grouping(["gender"])
    assert gender.names == ((UNKNOWN,), ("f",), ("m",))
    both = units.grouping(["gender", "age"])
    assert [" & ".join(name) for name in both.names] == [
        *("(unknown) & old", "(unknown) & young", "f & old", "f & young", "m & old")
    ]
    assert [both.names[both.group_U[u]] for u in units.unit_N[:4]] == [
        ("f", "young"),
        *[("f", "old")] * 2,
        ("m", "old"),
    ]


def test_counts_by_group_and_identity():
    units = Units.from_columns(IDENTITY, COLUMNS)
    count_U = np.bincount(units.unit_N, weights=[1, 10, 100, 1000, 10000, 100000])
    np.testing.assert_array_equal(
        units.sum_by_group(count_U, units.grouping(["age"])), [[110, 1000, 10000], [1, 0, 100000]]
    )
    np.testing.assert_array_equal(units.sum_by_identity(count_U), [[111, 1000, 110000]])


def test_bad_input():
    units = Units.from_columns(IDENTITY, COLUMNS)
    with pytest.raises(UserError, match="no column 'sex' to group by: columns are gender, age"):
        units.grouping(["sex"])
    with pytest.raises(UserError, match="no column named"):
        units.grouping([])
    with pytest.raises(ValueError, match="column 'x' has 1 values for 2 images"):
        Units.from_columns(["a", "b"], {"x": ["1"]})
