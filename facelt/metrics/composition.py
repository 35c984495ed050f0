"""What a labelled split is made of: images, classes, and how both spread over the bands of training shots.

Shapes: C classes, N images of the split.
"""

import numpy as np

from facelt.metrics.accuracy import BANDS, SHOT_CONVENTIONS, shot_bands
from facelt.metrics.labels import OPEN_LABEL


def composition(train_counts_C: np.ndarray, label_N: np.ndarray) -> dict:
    """Counts of a split whose labels lie in -1..C-1, -1 the open set.

    `classes` are those with an image in the split, `largest` and `smallest` their images (None without a class). For
    each convention `shots` says how many classes and images of the split belong to each band, which a class's training
    images decide.
    """
    known_K = label_N[label_N != OPEN_LABEL]
    images_C = np.bincount(known_K, minlength=len(train_counts_C))
    present_C = images_C > 0
    shots = {}
    for convention in SHOT_CONVENTIONS:
        band_C = shot_bands(train_counts_C, convention)
        members = {band: present_C & (band_C == place) for place, band in enumerate(BANDS)}
        shots[convention] = {
            band: {"classes": int(member_C.sum()), "images": int(images_C[member_C].sum())}
            for band, member_C in members.items()
        }
    return {
        "images": len(label_N),
        "open_images": len(label_N) - len(known_K),
        "classes": int(present_C.sum()),
        "largest": int(images_C.max()) if len(known_K) else None,
        "smallest": int(images_C[present_C].min()) if len(known_K) else None,
        "shots": shots,
    }
