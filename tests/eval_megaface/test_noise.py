"""Noise lists in their published formats, and mode `insightface` against a second computation."""

import numpy as np
import pytest

from eval_megaface.suite import noisy_probes, read_noise_list, replace_noisy
from facelt.errors import UserError


def test_forms(tmp_path):
    path = tmp_path / "noise"
    path.write_text("# comment\nA B/Ann_Lee_3.png\n\n12\t011/0001@N01/5_0.jpg\nBob._2.png\n")
    assert read_noise_list(path, stems=True) == {"Ann_Lee_3", "5_0", "Bob._2"}
    assert read_noise_list(path, stems=False) == {"A B/Ann_Lee_3.png", "011/0001@N01/5_0.jpg", "Bob._2.png"}
    result = noisy_probes(
        ["Ann/Ann_Lee_3.jpg", "Ann/Ann_Lee_30.jpg", "Bob./Bob._2.png"], frozenset({"Ann_Lee_3", "Bob._2"})
    )
    assert result.tolist() == [True, False, True]


def test_unreadable(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_noise_list(tmp_path / "none", stems=True)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_noise_list(tmp_path / "binary", stems=True)


@pytest.mark.parametrize("unit", [True, False])
def test_stand_in(unit):
    probe_PD = np.random.default_rng(0).standard_normal((7, 16)).astype(np.float32)
    if unit:
        probe_PD /= np.linalg.norm(probe_PD, axis=1, keepdims=True)
    identity_P = np.array([0, 0, 0, 1, 1, 2, 2])
    noisy_P = np.array([False, True, False, False, True, False, False])
    found_PD = replace_noisy(probe_PD, identity_P, noisy_P, unit=unit, seed=4)
    np.testing.assert_array_equal(found_PD[~noisy_P], probe_PD[~noisy_P])
    for row, clean in ((1, probe_PD[[0, 2]]), (4, probe_PD[[3]])):
        mean_D = clean.mean(axis=0) / np.linalg.norm(clean.mean(axis=0))
        length = 1.0 if unit else np.linalg.norm(clean, axis=1).mean()
        assert np.linalg.norm(found_PD[row]) == pytest.approx(length, rel=1e-6)
        difference_D = found_PD[row] / length - mean_D
        assert 1e-5 < np.abs(difference_D).max() < 0.0011 + 0.004  # noise of 0.001, then brought back to length one
        assert np.abs(difference_D - np.dot(difference_D, mean_D) * mean_D).max() < 0.0012
    again_PD = replace_noisy(probe_PD, identity_P, noisy_P, unit=unit, seed=4)
    other_PD = replace_noisy(probe_PD, identity_P, noisy_P, unit=unit, seed=5)
    np.testing.assert_array_equal(found_PD, again_PD)
    assert np.abs(found_PD[noisy_P] - other_PD[noisy_P]).max() > 1e-5


def test_nothing_noisy_changes_nothing():
    probe_PD = np.eye(3, dtype=np.float16)
    found_PD = replace_noisy(probe_PD, np.arange(3), np.zeros(3, dtype=bool), unit=True, seed=0)
    np.testing.assert_array_equal(found_PD, probe_PD)
