"""How far a model's confidence is from how often it is right.

Shapes: N images.
"""

import numpy as np

BINS = 15


def expected_calibration_error(confidence_N: np.ndarray, right_N: np.ndarray, bins: int = BINS) -> float | None:
    """The mean over images of |accuracy - mean confidence| of the bin an image is in (Guo et al., ICML 2017, eq. 3).

    Bins are of equal width and hold their upper edge; a confidence of 0 is in the first.

    Args:
        confidence_N: the probability of the predicted class, 0 to 1.
        right_N: whether that class is the true one, bool.

    Returns:
        A fraction, None without an image.

    Raises:
        ValueError: different lengths, or a confidence outside 0 to 1.
    """
    confidence_N, right_N = np.asarray(confidence_N, dtype=np.float64), np.asarray(right_N, dtype=bool)
    if confidence_N.shape != right_N.shape or confidence_N.ndim != 1:
        raise ValueError(f"confidences of shape {confidence_N.shape} for answers of shape {right_N.shape}")
    if not confidence_N.size:
        return None
    # Not within also where it is no number.
    if not ((confidence_N >= 0) & (confidence_N <= 1)).all():
        raise ValueError("confidences must be from 0 to 1")
    upper = np.linspace(0, 1, bins + 1)[1:]
    bin_N = np.searchsorted(upper, confidence_N, side="left")
    confidence, right = (np.bincount(bin_N, weights=value, minlength=bins) for value in (confidence_N, right_N))
    return float(np.abs(right - confidence).sum() / len(right_N))
