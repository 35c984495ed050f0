"""Made-up people with known error rates, to see how often an interval covers the truth.

People differ in how often they are mistaken and in how many images they have, and the trials of one image are alike
again, as in the face sets this package measures. I identities, M images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Draws the images of so many identities: int64 [I].
ImageCounts = Callable[[np.random.Generator, int], np.ndarray]


def even_images(random: np.random.Generator, identities: int) -> np.ndarray:
    """10 to 59 images a person, as in FaceScrub's MegaFace probes: [I]."""
    return random.integers(10, 60, identities)


def uneven_images(random: np.random.Generator, identities: int) -> np.ndarray:
    """2 to 200 images a person, log-normal about 12: a few people have most of the pairs. [I]."""
    return np.clip(np.rint(random.lognormal(2.5, 0.9, identities)), 2, 200).astype(np.int64)


@dataclass(frozen=True)
class SearchWorld:
    """Searches, or mated pairs: every two images of a person, either of them searched with, may go wrong.

    A person's rate is drawn about `rate` with the intraclass correlation `likeness` (beta), an image's about its
    person's with 1 / 6.
    """

    rate: float
    likeness: float
    images: ImageCounts

    def draw(self, random: np.random.Generator, identities: int) -> tuple[np.ndarray, np.ndarray]:
        """Errors and trials of each identity, [I] each."""
        error_MI, trial_I = self.draw_models(random, identities, (1.0,))
        return error_MI[0], trial_I

    def draw_models(
        self, random: np.random.Generator, identities: int, shares: tuple[float, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Errors of several models on the same people, [models,I], and trials, [I]: `shares` of the rates are theirs.

        Who is difficult for one model is so for the others; which of their images are, differs.
        """
        image_I = self.images(random, identities)
        person_I = _beta(random, np.full(identities, self.rate), self.likeness)
        owner_M = np.repeat(np.arange(identities), image_I)
        errors = []
        for share in shares:
            rate_M = share * _beta(random, person_I[owner_M], 1 / 6)
            wrong_M = random.binomial(image_I[owner_M] - 1, rate_M)
            errors.append(np.bincount(owner_M, weights=wrong_M, minlength=identities))
        return np.stack(errors), image_I * (image_I - 1.0)


@dataclass(frozen=True)
class PairWorld:
    """Non-mated pairs: the log odds of a false match are the sum of both people's offsets and one of their pair.

    `person` and `pair` are the standard deviations of the offsets, `middle` the log odds without them.
    """

    middle: float
    person: float
    pair: float
    images: ImageCounts

    @property
    def rate(self) -> float:
        """The expected rate over all people, by Gauss-Hermite quadrature."""
        node_K, weight_K = np.polynomial.hermite_e.hermegauss(80)
        spread = np.sqrt(2 * self.person**2 + self.pair**2)
        return float(weight_K @ _logistic(self.middle + spread * node_K) / weight_K.sum())

    def draw(self, random: np.random.Generator, identities: int) -> tuple[np.ndarray, np.ndarray]:
        """Errors and trials of each two people, symmetric [I,I] each with nothing on the diagonal."""
        image_I = self.images(random, identities)
        offset_I = random.normal(0, self.person, identities)
        offset_II = offset_I[:, None] + offset_I + random.normal(0, self.pair, (identities, identities))
        trial_II = np.triu(np.outer(image_I, image_I), 1)
        error_II = random.binomial(trial_II, _logistic(self.middle + offset_II))
        return (error_II + error_II.T).astype(np.float64), (trial_II + trial_II.T).astype(np.float64)


def _beta(random: np.random.Generator, mean: np.ndarray, likeness: float) -> np.ndarray:
    """Rates about `mean` with variance mean (1 - mean) likeness; the smallest number for a mean of 0."""
    strength = (1 - likeness) / likeness
    mean = np.clip(mean, 1e-12, 1 - 1e-12)
    return random.beta(mean * strength, (1 - mean) * strength)


def _logistic(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))
