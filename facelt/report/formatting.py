"""Number formatting for pages, plots and terminals: percentages, intervals, counts, p-values."""

EN_DASH = "\N{EN DASH}"


def percent(fraction: float | None, digits: int = 2) -> str:
    """Returns a fraction in percent without the sign, a dash for None: 0.83024 -> '83.02'."""
    return EN_DASH if fraction is None else f"{100 * fraction:.{digits}f}"


def percent_interval(low: float | None, high: float | None) -> str:
    """Returns both ends in percent with one decimal, or an empty text if either is missing."""
    return "" if low is None or high is None else f"{percent(low, 1)}{EN_DASH}{percent(high, 1)}"


def count(number: int | None) -> str:
    """Returns a count with thousands separators, a dash for None: 26202 -> '26,202'."""
    return EN_DASH if number is None else f"{number:,}"


def small_percent(rate: float | None) -> str:
    """Returns a rate in percent that keeps its leading digits when small: 0.83024 -> '83.02', 5e-5 -> '0.005'.

    Two decimals from 1 % on, two significant digits below.
    """
    if rate is None:
        return EN_DASH
    percentage = 100 * rate
    if abs(percentage) >= 1 or percentage == 0:
        return f"{percentage:.2f}" if percentage else "0"
    return f"{float(f'{percentage:.2g}'):.12f}".rstrip("0").rstrip(".")


def small_percent_interval(low: float | None, high: float | None) -> str:
    """Returns both ends of an interval of rates in percent, `?` for a missing end, empty if both are missing."""
    if low is None and high is None:
        return ""
    # A minus sign after a dash would be misread.
    separator = " to " if low is not None and low < 0 else EN_DASH
    return f"{interval_end(low)}{separator}{interval_end(high)}"


def interval_end(rate: float | None) -> str:
    """Returns one end of an interval of rates in percent, `?` for None."""
    if rate is None:
        return "?"
    return f"{100 * rate:.1f}" if abs(rate) >= 0.01 else small_percent(rate)


def points(difference: float) -> str:
    """Returns a difference of rates in points with one decimal, with two significant digits if that would be 0.0."""
    return f"{100 * difference:.1f}" if abs(difference) >= 0.0005 else small_percent(difference)


def signed_points(difference: float | None) -> str:
    """Returns a difference of rates in points with its sign, a dash for None: 0.038 -> '+3.80'."""
    if difference is None:
        return EN_DASH
    text = f"{100 * difference:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def points_interval(low: float | None, high: float | None) -> str:
    """Returns both ends of the interval of a difference in points, empty if either is missing: '-2.1 to 0.9'."""
    return "" if low is None or high is None else f"{points(low)} to {points(high)}"


def rate_name(rate: float) -> str:
    """Returns a false-alarm rate in its usual notation: 0.1, 0.001, 1e-6."""
    if rate >= 1e-3:
        return f"{rate:g}"
    digits, power = f"{rate:.5e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def three_digits(value: float | None) -> str:
    """Returns a ratio or an index with three significant digits and at most three decimals, `?` for None."""
    return "?" if value is None else f"{round(float(f'{value:.3g}'), 3):g}"


def is_undecidable(smallest_p: float | None, level: float) -> bool:
    """Returns whether no adjusted p-value that these people can reach is below 1 - level."""
    return smallest_p is not None and smallest_p >= 1 - level


def undecided_text(smallest_p: float | None, identities: int, level: float) -> str:
    """Returns that a difference is undecided, or undecidable with so few identities, and their number."""
    people = f"{identities:,} {'identity' if identities == 1 else 'identities'}"
    if not is_undecidable(smallest_p, level):
        return f"undecided at {people}"
    return f"undecidable with {people} (the smallest adjusted p they can reach is {p_value(smallest_p)})"


def p_value(p: float | None) -> str:
    """Returns a p-value with two significant digits, a dash for None."""
    return EN_DASH if p is None else f"{float(f'{p:.2g}'):g}"
