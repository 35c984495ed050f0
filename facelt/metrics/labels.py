"""True and predicted classes as the accuracy figures take them: checked once, in one place.

Shapes: N test images.
"""

import numpy as np

from facelt.errors import UserError

# The label of an image of no known class, and the prediction of a model that rejects an image.
OPEN_LABEL = -1


def integer_vector(values: np.ndarray, name: str) -> np.ndarray:
    """`values` as an int64 vector; ValueError, naming it, where it is no vector or holds no integers."""
    vector = np.asarray(values)
    if vector.ndim != 1:
        raise ValueError(f"{name} must be a vector, not of shape {vector.shape}")
    if vector.size and not np.issubdtype(vector.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, not {vector.dtype}")
    return vector.astype(np.int64)


def checked_pair(
    label_N: np.ndarray, prediction_N: np.ndarray, classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions as int64 vectors of one length, each value from -1 to `classes` - 1.

    Raises:
        UserError: a value outside the range, with its position.
        ValueError: different lengths, no vector or no integers.
    """
    label_N = integer_vector(label_N, "labels")
    prediction_N = integer_vector(prediction_N, "predictions")
    if len(label_N) != len(prediction_N):
        raise ValueError(f"{len(label_N)} labels but {len(prediction_N)} predictions")
    for name, value_N in (("label", label_N), ("prediction", prediction_N)):
        outside_N = value_N < OPEN_LABEL
        if classes is not None:
            outside_N |= value_N >= classes
        if outside_N.any():
            first = int(np.argmax(outside_N))
            allowed = f"-1 to {classes - 1}" if classes is not None else "-1 and up"
            raise UserError(
                f"{name} {value_N[first]} of image {first} is outside {allowed}: check that the list and the model "
                "were made for the same classes"
            )
    return label_N, prediction_N
