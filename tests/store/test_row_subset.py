"""Row subsets: a subset of a subset equals the array's rows."""

import numpy as np

from facelt.store.store import RowSubset


def test_they_are_what_indexing_gives_also_nested():
    value_ND = np.arange(12.0).reshape(6, 2)
    first = RowSubset(value_ND, np.array([5, 0, 3, 3]))
    again = RowSubset(first, np.array([2, 0]))
    assert (first.shape, again.shape) == ((4, 2), (2, 2))
    np.testing.assert_array_equal(first[1:4], value_ND[[0, 3, 3]])
    np.testing.assert_array_equal(again[0:2], value_ND[[3, 5]])
