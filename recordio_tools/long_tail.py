"""Long-tailed selections from a set of labelled images, reproducible on every machine from the seed.

- proportional (MS1M-LT): images are drawn without replacement with weight (images of the identity) ^ power; with power
  1 an identity's share of the draw is proportional to its images, and the tail grows longer than the source's.
- Pareto (ImageNet-LT): image counts are quantiles of a Pareto distribution between two bounds.
- exponential (CIFAR-LT): counts fall by a constant factor from class to class.
- step (CIFAR-LT): the second half of the classes has a fixed fraction of the first half's counts.

N images of the source, C identities (labels 0..C-1), K images drawn.
"""

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from recordio_tools.deterministic_random import exponential_variates, hash64, portable_power
from recordio_tools.errors import RecordIOError

IMAGE_STREAM, IDENTITY_STREAM, HELD_OUT_STREAM = 0, 1, 2  # of the hash, for independent draws
_ROUNDING_SLACK = Decimal("1e-9")  # keeps a quotient that is mathematically whole from being rounded down


class Selection(NamedTuple):
    """Images drawn, int64 [K] each, ordered by new label and key. New labels number the kept identities from 0."""

    keys: np.ndarray
    labels: np.ndarray
    new_labels: np.ndarray

    @property
    def num_identities(self) -> int:
        """The number of identities kept."""
        return int(self.new_labels[-1]) + 1


def sample_proportional(
    keys: np.ndarray, labels: np.ndarray, images: int, seed: int, power: float = 1.0, identities: int | None = None
) -> Selection:
    """Draws `images` of the images `keys`, `labels` (int64 [N]) with weight (images of the identity) ^ power.

    Weighted sampling without replacement: each image gets an exponential arrival time with its weight as rate, from a
    hash of its key and the seed, and the first `images` are taken (Efraimidis and Spirakis, Information Processing
    Letters 2006).

    `identities` sets the number of identities: those with the most images in such a draw are kept (ties by hash), and
    the images are drawn again within them; each keeps at least its first image.

    Raises RecordIOError if the source has too few images or identities.
    """
    counts_C = _checked_counts(keys, labels, seed)
    if not 1 <= images <= len(keys):
        raise RecordIOError(f"{images} images cannot be drawn from {len(keys)}: images must be in 1..{len(keys)}")
    if not (math.isfinite(power) and power >= 0):
        raise RecordIOError(f"power must be a number of at least 0, not {power}")
    time_N = exponential_variates(hash64(keys, seed, IMAGE_STREAM)) / _weights(counts_C, power)[labels]
    drawn = _earliest(time_N, keys, images)
    if identities is not None:
        drawn = _draw_within(keys, labels, time_N, _top_identities(labels[drawn], counts_C, identities, seed), images)
    return _selection(keys[drawn], labels[drawn])


def _checked_counts(keys: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    if len(keys) != len(labels) or not len(keys):
        raise RecordIOError(
            f"{len(keys)} keys and {len(labels)} labels: one label for each image, and at least one image"
        )
    if not 0 <= seed < 1 << 64:
        raise RecordIOError(f"seed must be in 0..2^64-1, not {seed}")
    return np.bincount(labels)


def _weights(counts_C: np.ndarray, power: float) -> np.ndarray:
    values, row_C = np.unique(counts_C, return_inverse=True)
    return np.array([float(portable_power(int(value), power)) if value else 0.0 for value in values])[row_C]


def _earliest(time_N: np.ndarray, keys: np.ndarray, images: int) -> np.ndarray:
    """Rows of the `images` earliest times; equal times by key."""
    limit = np.partition(time_N, images - 1)[images - 1]
    before, equal = np.flatnonzero(time_N < limit), np.flatnonzero(time_N == limit)
    equal = equal[np.argsort(keys[equal], kind="stable")]
    return np.concatenate([before, equal[: images - len(before)]])


def _top_identities(drawn_labels: np.ndarray, counts_C: np.ndarray, identities: int, seed: int) -> np.ndarray:
    """The `identities` labels with the most images drawn; ties by hash."""
    present = np.flatnonzero(counts_C)
    if not 1 <= identities <= len(present):
        raise RecordIOError(f"{identities} identities cannot be kept: the source has {len(present)} with images")
    drawn = np.bincount(drawn_labels, minlength=len(counts_C))[present]
    return present[np.lexsort((present, hash64(present, seed, IDENTITY_STREAM), -drawn))[:identities]]


def _draw_within(keys, labels, time_N, chosen, images: int) -> np.ndarray:
    inside = np.flatnonzero(np.isin(labels, chosen))
    if not len(chosen) <= images <= len(inside):
        raise RecordIOError(
            f"{images} images cannot be drawn within {len(chosen)} identities, which hold {len(inside)} images: "
            f"images must be in {len(chosen)}..{len(inside)}"
        )
    order = np.lexsort((keys[inside], time_N[inside], labels[inside]))
    sorted_labels = labels[inside][order]
    earliest = order[np.flatnonzero(np.diff(sorted_labels, prepend=-1))]
    times = time_N[inside].copy()
    times[earliest] = -1.0
    return inside[_earliest(times, keys[inside], images)]


def _selection(keys: np.ndarray, labels: np.ndarray) -> Selection:
    order = np.lexsort((keys, labels))
    keys, labels = keys[order].astype(np.int64), labels[order].astype(np.int64)
    return Selection(keys, labels, np.unique(labels, return_inverse=True)[1].astype(np.int64))


def sample_pareto(
    keys: np.ndarray,
    labels: np.ndarray,
    seed: int,
    alpha: float = 6.0,
    maximum: int = 1280,
    minimum: int = 5,
    identities: int | None = None,
) -> Selection:
    """Draws image counts from `maximum` down to `minimum`, the quantiles of a Pareto distribution of shape `alpha`.

    The identities with the most images get the largest counts (ties by hash); `identities` limits their number. Images
    of an identity are chosen by a hash of the key. Raises RecordIOError if an identity has too few images.
    """
    counts_C = _checked_counts(keys, labels, seed)
    ranked = _top_identities(labels, counts_C, np.count_nonzero(counts_C) if identities is None else identities, seed)
    return _take(keys, labels, counts_C, ranked, pareto_counts(len(ranked), alpha, maximum, minimum), seed)


def pareto_counts(identities: int, alpha: float, maximum: int, minimum: int) -> np.ndarray:
    """Returns image counts, int64 [identities], largest first: rounded quantiles of a Pareto distribution.

    Quantiles 0, 1/C .. (C-1)/C of the Pareto distribution of the second kind (survival (1 + x) ^ -alpha), scaled to the
    range `minimum`..`maximum`. OLTR names a 'Pareto distribution with the power value 6' and publishes only lists. With
    1000 classes, 1280 and 5, this form gives 406 classes above 100 images and 136 below 20; the published ImageNet-LT
    has 385 and 136. For Places-LT (365 classes, 4980 and 5) it gives more images than the published list.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise RecordIOError(f"alpha must be a number above 0, not {alpha}")
    if not 1 <= minimum <= maximum:
        raise RecordIOError(f"counts must be 1 <= min <= max, not min {minimum}, max {maximum}")
    power = 1 / Fraction(str(alpha))
    excess = [portable_power(Fraction(identities, rank), power) - 1 for rank in range(1, identities + 1)]
    stretch = (maximum - minimum) / excess[0] if identities > 1 else 0
    return np.array([maximum, *(round(minimum + stretch * value) for value in excess[1:])], np.int64)


def sample_exponential(
    keys: np.ndarray,
    labels: np.ndarray,
    seed: int,
    imbalance: float = 100.0,
    maximum: int | None = None,
    identities: int | None = None,
) -> Selection:
    """Draws counts falling from `maximum` (default: the largest count) by a constant factor to `maximum` / `imbalance`.

    Labels keep their order, label 0 has most images; `identities` keeps only the first identities with images. With
    one seed, smaller selections are subsets of larger ones. Raises RecordIOError if a label has too few images.
    """
    return _sample_falling(exponential_counts, keys, labels, seed, imbalance, maximum, identities)


def sample_step(
    keys: np.ndarray,
    labels: np.ndarray,
    seed: int,
    imbalance: float = 100.0,
    maximum: int | None = None,
    identities: int | None = None,
) -> Selection:
    """Draws `maximum` images (default: the largest count) of the first half of the identities, each, and `maximum` /
    `imbalance` of the second half; otherwise like `sample_exponential`.
    """
    return _sample_falling(step_counts, keys, labels, seed, imbalance, maximum, identities)


def _sample_falling(profile: Callable, keys, labels, seed: int, imbalance: float, maximum, identities) -> Selection:
    counts_C = _checked_counts(keys, labels, seed)
    present = np.flatnonzero(counts_C)
    if identities is not None and not 1 <= identities <= len(present):
        raise RecordIOError(f"{identities} identities cannot be kept: the source has {len(present)} with images")
    label_K = present[:identities]
    maximum = int(counts_C.max()) if maximum is None else maximum
    return _take(keys, labels, counts_C, label_K, profile(len(label_K), imbalance, maximum), seed)


def exponential_counts(identities: int, imbalance: float, maximum: int) -> np.ndarray:
    """Returns floor(maximum * imbalance ^ (-c / (C - 1))), int64 [identities]: CIFAR-LT in the code of LDAM-DRW."""
    steps = max(identities - 1, 1)
    return _falling_counts([Fraction(c, steps) for c in range(identities)], imbalance, maximum)


def step_counts(identities: int, imbalance: float, maximum: int) -> np.ndarray:
    """Returns int64 [identities]: `maximum` for the first half, floor(maximum / imbalance) for the rest."""
    return _falling_counts([Fraction(c >= identities // 2) for c in range(identities)], imbalance, maximum)


def _falling_counts(share_C: list[Fraction], imbalance: float, maximum: int) -> np.ndarray:
    """floor(maximum * imbalance ^ -share) of each share in [0, 1]."""
    if not (math.isfinite(imbalance) and imbalance >= 1) or maximum < 1:
        raise RecordIOError(f"imbalance and max must be at least 1, not {imbalance} and {maximum}")
    ratios = [portable_power(imbalance, share) for share in share_C]
    return np.array([int(maximum / ratio + _ROUNDING_SLACK) for ratio in ratios], np.int64)


def _take(keys, labels, counts_C, label_K, count_K, seed: int) -> Selection:
    """The first `count_K` images of the labels `label_K`, in the order of the hash."""
    if (short_K := counts_C[label_K] < count_K).any():
        label, has, needs = label_K[short_K][0], counts_C[label_K][short_K][0], count_K[short_K][0]
        raise RecordIOError(
            f"identity {label} has {has} images, the profile needs {needs}: lower --max or --identities"
        )
    count_C = np.zeros(len(counts_C), np.int64)
    count_C[label_K] = count_K
    drawn = np.flatnonzero(rank_within_label(keys, labels, seed) < count_C[labels])
    if not len(drawn):
        raise RecordIOError("the profile leaves no image: raise --max")
    return _selection(keys[drawn], labels[drawn])


def rank_within_label(keys: np.ndarray, labels: np.ndarray, seed: int, stream: int = IMAGE_STREAM) -> np.ndarray:
    """Returns the rank of each image within its label, int64 [N] from 0, by the hash of its key."""
    order = np.lexsort((keys, hash64(keys, seed, stream), labels))
    counts_C = np.bincount(labels)
    rank_N = np.empty(len(order), np.int64)
    rank_N[order] = np.arange(len(order)) - (np.cumsum(counts_C) - counts_C)[labels[order]]
    return rank_N


_PROFILE_DEFAULTS = {
    "proportional": {"images": None, "power": 1.0},
    "pareto": {"alpha": 6.0, "max": 1280, "min": 5},
    "exponential": {"imbalance": 100.0, "max": None},
    "step": {"imbalance": 100.0, "max": None},
}


def draw_selection(
    keys: np.ndarray,
    labels: np.ndarray,
    profile: str,
    seed: int,
    identities: int | None,
    options: dict[str, float | None],
) -> tuple[Selection, dict]:
    """Returns the selection from the images `keys`, `labels` (int64 [N]), and its profile with all parameters.

    `options` are those of the command line by name, None if not set. Raises RecordIOError for an option of another
    profile, a missing --images, and a source with too few images.
    """
    values = dict(_PROFILE_DEFAULTS[profile])
    for name, value in options.items():
        if value is not None and name not in values:
            raise RecordIOError(f"--{name} does not apply to --profile {profile}, which takes --{', --'.join(values)}")
        if value is not None:
            values[name] = value
    if profile == "proportional":
        if values["images"] is None:
            raise RecordIOError("--images is required: the number of images to draw (887500 for MS1M-LT)")
        selection = sample_proportional(keys, labels, values["images"], seed, values["power"], identities)
    elif profile == "pareto":
        bounds = (values["alpha"], values["max"], values["min"])
        selection = sample_pareto(keys, labels, seed, *bounds, identities)
    else:
        if values["max"] is None:
            values["max"] = int(np.bincount(labels).max(initial=0))
        falling = sample_exponential if profile == "exponential" else sample_step
        selection = falling(keys, labels, seed, values["imbalance"], values["max"], identities)
    return selection, {"name": profile, "seed": seed, **values, "identities": identities}
