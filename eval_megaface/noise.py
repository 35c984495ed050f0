"""MegaFace's noise lists, and the three ways to treat what they name.

`drop` leaves noisy probes and distractors out. `raw` keeps everything. `insightface` is what most published figures
rest on: noisy distractors are dropped, a noisy probe is replaced by its identity's clean mean. It then meets the very
images it was made of as mates: that flatters, so use it for comparison only.

P probes, D feature.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from facelt.store.image_lists import read_noise_names

MODES = ("drop", "raw", "insightface")
# Half the width of the uniform noise that published evaluations add to the clean mean.
JITTER = 0.001


def read_noise_list(path: Path, *, stems: bool) -> frozenset[str]:
    """The images a noise list names: file stems for FaceScrub (`stems`), else paths below the distractors' folder.

    FaceScrub's list names .png files whatever the images are, so they are matched by stem. Raises UserError naming the
    file.
    """
    return frozenset(PurePosixPath(name).stem if stems else name for name in read_noise_names(path))


def noisy_probes(paths: Iterable[str], stems: frozenset[str]) -> np.ndarray:
    """Which probes are named by the list, bool [P]."""
    return np.array([PurePosixPath(path).stem in stems for path in paths], dtype=bool)


def replace_noisy(
    probe_PD: np.ndarray, identity_P: np.ndarray, noisy_P: np.ndarray, *, unit: bool, seed: int
) -> np.ndarray:
    """Probes with each noisy row replaced by the normalised mean of its identity's clean rows, plus uniform noise.

    The noise is drawn from [-0.001, 0.001) for every value, in the order of the probes. Rows of a unit kind are brought
    back to length one; of another kind, to the mean length of the identity's clean rows, lest the stand-in be longer
    than any real one. Every identity with a noisy row must have a clean one.
    """
    probe_PD = probe_PD.astype(np.float32)
    if not noisy_P.any():
        return probe_PD
    clean_PD = np.where(noisy_P[:, None], 0, probe_PD).astype(np.float64)
    identities = int(identity_P.max()) + 1
    sum_ID = np.zeros((identities, probe_PD.shape[1]))
    np.add.at(sum_ID, identity_P, clean_PD)
    length_I = np.ones(identities)
    if not unit:
        clean_I = np.bincount(identity_P[~noisy_P], minlength=identities)
        length_I = np.bincount(identity_P, np.linalg.norm(clean_PD, axis=1), identities) / np.maximum(clean_I, 1)
    noise_ND = np.random.default_rng(seed).uniform(-JITTER, JITTER, (int(noisy_P.sum()), probe_PD.shape[1]))
    stand_in_ND = _normalised(_normalised(sum_ID[identity_P[noisy_P]]) + noise_ND)
    probe_PD[noisy_P] = stand_in_ND * length_I[identity_P[noisy_P], None]
    return probe_PD


def _normalised(rows_ND: np.ndarray) -> np.ndarray:
    return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)
