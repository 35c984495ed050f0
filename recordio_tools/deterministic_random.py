"""Random draws that are bit-identical on every machine.

Integers are hashed with 64-bit arithmetic; logarithms and powers use only operations that IEEE 754 or the decimal
module define to the last bit. np.log and np.power may differ in that bit between processors, which can change the
image that is drawn.
"""

import decimal
from fractions import Fraction

import numpy as np

_DECIMAL = decimal.Context(prec=28)
_SQRT_HALF = 0.7071067811865476
_LN_2 = 0.6931471805599453
_TERMS = 12  # of the series for artanh: |s| <= 0.172, so the next term is below 2^-60


def hash64(values: np.ndarray, seed: int, stream: int = 0) -> np.ndarray:
    """Returns a uint64 hash of each integer under `seed` (0..2^64-1) and `stream`, by SplitMix64."""
    start = splitmix64(splitmix64(np.array([seed], np.uint64)) + np.uint64(stream))
    return splitmix64(np.asarray(values).astype(np.uint64) + start)


def splitmix64(state: np.ndarray) -> np.ndarray:
    """Returns the next output, uint64, of a SplitMix64 generator in each state; a bijection.

    Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014).
    """
    with np.errstate(over="ignore"):
        word = state + np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return word ^ (word >> np.uint64(31))


def exponential_variates(hashes: np.ndarray) -> np.ndarray:
    """Returns an exponentially distributed float64 >= 0 for each uint64: -ln of a 53-bit uniform in (0, 1]."""
    return -portable_log(((hashes >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53)


def portable_log(values: np.ndarray) -> np.ndarray:
    """Returns the natural logarithm of positive float64, bit-identical everywhere, to a few units in the last place.

    ln(m 2^k) = k ln 2 + 2 artanh(s), s = (m - 1) / (m + 1). Each +, -, * and / is a separate array operation, so that
    no compiler can fuse two roundings into one.
    """
    mantissa, exponent = np.frexp(values)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    exponent = exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / (2 * _TERMS + 1))
    for term in range(_TERMS - 1, -1, -1):
        series *= square
        series += 1.0 / (2 * term + 1)
    return exponent * _LN_2 + 2.0 * s * series


def portable_power(base: int | Fraction, exponent: float | Fraction) -> decimal.Decimal:
    """Returns base ** exponent for a positive base, to 28 digits."""
    return _DECIMAL.power(_decimal(base), _decimal(exponent))


def _decimal(value: float | Fraction) -> decimal.Decimal:
    exact = Fraction(str(value)) if isinstance(value, float) else Fraction(value)
    return _DECIMAL.divide(decimal.Decimal(exact.numerator), decimal.Decimal(exact.denominator))
