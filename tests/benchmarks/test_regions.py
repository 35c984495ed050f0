"""Parts of the embedding of several networks: unit vectors of the chosen regions."""

import numpy as np

from benchmarks.regions import split_store
from facelt.store.store import EmbeddingStore
from facelt.store.writer import StoreWriter


def test_a_part_has_the_features_of_its_regions_with_unit_length(tmp_path):
    feature_NKD = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    feature_NKD /= np.linalg.norm(feature_NKD, axis=2, keepdims=True)
    writer = StoreWriter(tmp_path / "whole", list("abcde"), [1, 1, 2, 2, 3], {"direct": 12}, {}, dtype="float32")
    writer.write(0, {"direct": feature_NKD.reshape(5, 12) / np.sqrt(3)})
    writer.finish()
    for name, regions in (("second", slice(1, 2)), ("first_two", slice(0, 2))):
        split_store(tmp_path / "whole", tmp_path / name, regions, 3)
        part = EmbeddingStore.open(tmp_path / name)
        expected = np.concatenate([feature_NKD[:, k] for k in range(regions.start, regions.stop)], axis=1)
        expected /= np.sqrt(regions.stop - regions.start)
        np.testing.assert_allclose(part.embedding("direct"), expected, atol=1e-3)
        assert (part.keys, part.identities) == (list("abcde"), ["1", "1", "2", "2", "3"])
