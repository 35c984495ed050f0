"""Deterministic random draws against Python's integers and decimals; equal on every machine."""

import decimal
from fractions import Fraction

import numpy as np
import pytest

from recordio_tools.deterministic_random import exponential_variates, hash64, portable_log, portable_power

MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    word = (state + 0x9E3779B97F4A7C15) & MASK
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word ^ word >> 31


def test_the_hash_is_splitmix64():
    assert splitmix(0) == 0xE220A8397B1DCDAF  # the generator's published first output for the seed 0
    keys = [0, 1, 2, 887_500, 2**31, 2**62]
    for seed, stream in ((0, 0), (0, 1), (2**64 - 1, 0), (12345, 7)):
        start = splitmix((splitmix(seed) + stream) & MASK)
        expected = [splitmix((key + start) & MASK) for key in keys]
        assert hash64(np.array(keys), seed, stream).tolist() == expected


def test_the_logarithm_is_within_four_units_of_the_last_place():
    rng = np.random.default_rng(0)
    tiny, close = 2.0 ** -np.arange(1, 60), 1.0 - np.arange(1, 60) * 2.0**-53
    values = np.concatenate([rng.random(300) + 2.0**-53, tiny, close])
    context = decimal.Context(prec=40)
    for value, logarithm in zip(values.tolist(), portable_log(values).tolist(), strict=True):
        exact = decimal.Decimal(value).ln(context)
        assert abs((decimal.Decimal(logarithm) - exact) / exact) < decimal.Decimal(2.0**-50)
    assert portable_log(np.array([1.0])) == 0.0


def test_exponentials_have_their_mean_and_never_fail_at_the_ends():
    assert exponential_variates(np.array([0, MASK], np.uint64)).tolist() == pytest.approx([53 * np.log(2), 0.0])
    draws = exponential_variates(hash64(np.arange(200_000), 3))
    assert draws.mean() == pytest.approx(1.0, abs=0.01)
    assert (draws > 1).mean() == pytest.approx(np.exp(-1), abs=0.005)


def test_whole_powers_are_exact():
    assert float(portable_power(7, 1.0)) == 7.0
    assert float(portable_power(49, 0.5)) == 7.0
    assert float(portable_power(Fraction(1, 100), Fraction(1, 2))) == 0.1
    assert float(portable_power(5, 0)) == 1.0
