"""Stores and trees give equal embeddings; missing images are counted and named."""

import numpy as np
import pytest

from eval_megaface.sources import StoreSource, TreeSource, open_source
from facelt.errors import UserError
from tests.feature_files import write_feature


def test_store_and_tree_give_the_same_rows(small, tmp_path):
    for path, feature_D in zip(small.probes, small.probe_PD, strict=True):
        write_feature(tmp_path / f"tree/{path}_x.bin", feature_D)
    tree, store = open_source(tmp_path / "tree", "x"), open_source(small.root / "probes", None)
    assert isinstance(tree, TreeSource)
    assert isinstance(store, StoreSource)
    order = [small.probes[row] for row in (5, 0, 3)]
    np.testing.assert_array_equal(store.rows("direct", order)[0:3], small.probe_PD[[5, 0, 3]])
    np.testing.assert_array_equal(tree.rows("direct", order)[0:3], small.probe_PD[[5, 0, 3]])
    with pytest.raises(UserError, match="'direct' only, not 'meta'"):
        tree.rows("meta", order)


def test_a_store_in_list_order_stays_mapped(small):
    store = StoreSource(small.root / "distractors")
    rows = store.rows("direct", small.distractors[::-1][:12])
    assert isinstance(rows, np.memmap)
    assert rows.shape == (12, 6)


def test_missing_keys(small):
    with pytest.raises(UserError, match=r"probes: lacks 2 of 3 listed images, such as 'x/1.jpg', 'y/2.jpg'"):
        StoreSource(small.root / "probes").rows("direct", [small.probes[0], "x/1.jpg", "y/2.jpg"])


def test_neither_store_nor_tree(small, tmp_path):
    with pytest.raises(UserError, match="no such embedding store"):
        open_source(tmp_path / "nothing", "x")
    with pytest.raises(UserError, match=r"no embedding store; for a tree of .* set the model's algorithm"):
        open_source(small.root / "lists", None)
