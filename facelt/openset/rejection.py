"""Open-set rejection: maximum softmax probability, reachability, ODIN and OpenMax.

N images, C known classes, T distances in the tail of a class.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from facelt.config.registry import register_openset
from facelt.errors import UserError

LogitsFn = Callable[[torch.Tensor], torch.Tensor]
TrainingPass = Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]
"""Starts a pass over the training images: batches of (logits [N, C], labels [N])."""


class ModelOutputs(NamedTuple):
    """Outputs for some images: logits [N, C] and, if the model has a memory, reachability [N].

    `image_N3HW` is the network input, normalized channel by channel with `std`. `logits_fn` computes logits of such
    input, with gradients, for methods that perturb the images.
    """

    logit_NC: torch.Tensor
    reachability_N: torch.Tensor | None
    image_N3HW: torch.Tensor
    std: tuple[float, float, float]
    logits_fn: LogitsFn


class OpenSetScores(NamedTuple):
    """Scores of each image, on the CPU.

    `class_N`, int64, is the best known class. `decision_score_N`, float64, is compared with the threshold: lower ones
    are rejected. `score_N`, float64, ranks images, higher for known classes. `unknown_N`, bool, marks images that are
    rejected at any threshold.
    """

    class_N: torch.Tensor
    decision_score_N: torch.Tensor
    score_N: torch.Tensor
    unknown_N: torch.Tensor

    @classmethod
    def from_score(cls, class_N: torch.Tensor, score_N: torch.Tensor) -> "OpenSetScores":
        """Scores of a method whose ranking score is also its decision score."""
        score_N = score_N.detach().double().cpu()
        return cls(class_N.cpu(), score_N, score_N, torch.zeros(len(score_N), dtype=torch.bool))


class OpenSetScorer(ABC):
    """An open-set method.

    `threshold` is its default threshold; None if it must be set on known images. With `needs_training_images` it has
    to be fitted first.
    """

    threshold: float | None = None
    needs_training_images = False

    @abstractmethod
    def score(self, outputs: ModelOutputs) -> OpenSetScores:
        """Scores images. Raises UserError if the model lacks an output that the method needs."""

    def fit(self, training_pass: TrainingPass) -> None:
        """Fits the method to the training images, in one or more passes."""
        raise TypeError(f"{type(self).__name__} is not fitted")


@register_openset("threshold")
class MaxSoftmax(OpenSetScorer):
    """Scores by the largest softmax probability (Hendrycks and Gimpel, ICLR 2017).

    The default threshold, 0.1, is that of OLTR's released code. In an OLTR model the reachability scales the classified
    vector, so that an image far from all centroids gets a flat softmax.
    """

    threshold = 0.1

    def score(self, outputs: ModelOutputs) -> OpenSetScores:
        probability_N, class_N = outputs.logit_NC.double().softmax(dim=1).amax(dim=1), outputs.logit_NC.argmax(dim=1)
        return OpenSetScores.from_score(class_N, probability_N)


@register_openset("reachability")
class Reachability(OpenSetScorer):
    """Scores by the reachability, scale / distance to the nearest centroid (OLTR, CVPR 2019, section 3.2).

    Distances depend on the norms of the features, so there is no default threshold.
    """

    def score(self, outputs: ModelOutputs) -> OpenSetScores:
        if outputs.reachability_N is None:
            raise UserError("reachability: this model has no memory; choose another open-set method")
        return OpenSetScores.from_score(outputs.logit_NC.argmax(dim=1), outputs.reachability_N)


@register_openset("odin")
class Odin(OpenSetScorer):
    """ODIN (Liang et al., ICLR 2018): scores by max softmax(z(x') / T) with x' = x - step * sign(gradient) / std.

    The gradient is that of -log max softmax(z(x) / T) with respect to the network input, and the sign of 0 is +1. As in
    the released code the perturbation is divided by the std of each channel: `step` is in units of the full pixel
    range. T 1000 and step 0.0028 are its settings for DenseNet-BC-100 with CIFAR-100 against TinyImageNet (resized).
    The predicted class is that of the unperturbed image.
    """

    temperature = 1000.0
    step = 0.0028

    def score(self, outputs: ModelOutputs) -> OpenSetScores:
        with torch.enable_grad():
            image_N3HW = outputs.image_N3HW.detach().requires_grad_()
            logit_NC = outputs.logits_fn(image_N3HW)
            # With a sum, the gradient of an image does not depend on the batch.
            loss = F.cross_entropy(logit_NC.double() / self.temperature, logit_NC.argmax(dim=1), reduction="sum")
            (gradient_N3HW,) = torch.autograd.grad(loss, image_N3HW)
        with torch.no_grad():
            std_311 = image_N3HW.new_tensor(outputs.std)[:, None, None]
            sign_N3HW = torch.where(gradient_N3HW >= 0, 1.0, -1.0)
            perturbed_NC = outputs.logits_fn(image_N3HW - self.step * sign_N3HW / std_311)
            score_N = (perturbed_NC.double() / self.temperature).softmax(dim=1).amax(dim=1)
        return OpenSetScores.from_score(outputs.logit_NC.argmax(dim=1), score_N)


TAIL_SIZE = 20
# Two images have the same distance to their mean up to rounding, one has none: no distribution can be fitted.
_MIN_TAIL = 3
# Smaller differences between distances are due to float32 rounding of the logits.
_MIN_SPREAD = 1e-6
_SHIFT = 1e4


@dataclass(frozen=True, eq=False)
class WeibullTails:
    """Weibull shape, location and scale of each class, float64 [C]; NaN for a class that could not be fitted.

    The fit is libmr's `fit_high`, which the authors of OpenMax use: the tail is shifted so that its smallest distance
    is 10,000, and a two-parameter Weibull is fitted by maximum likelihood. That is scipy's weibull_min with location
    (smallest distance - 10,000). With such a shift it is close to a Gumbel distribution of minima, and distances below
    the tail have a positive probability too. The likelihood equation is solved here, because scipy's gradient-free
    `fit` stops far from the maximum at such shapes.
    """

    shape_C: np.ndarray
    location_C: np.ndarray
    scale_C: np.ndarray

    @classmethod
    def fit(cls, distance_N: np.ndarray, class_N: np.ndarray, classes: int) -> "WeibullTails":
        """Fits each class to its `TAIL_SIZE` largest distances, or to all if it has fewer."""
        order_N = np.lexsort((distance_N, class_N))
        ends_C = np.cumsum(np.bincount(class_N, minlength=classes))
        fitted = [_fit_weibull(part[-TAIL_SIZE:]) for part in np.split(distance_N[order_N], ends_C[:-1])]
        return cls(*np.array(fitted, dtype=np.float64).T)

    def cdf(self, distance_N: np.ndarray, class_N: np.ndarray) -> np.ndarray:
        """Probability that an image at this distance from the class mean is an outlier, float64 [N]; 0 for a class that
        could not be fitted.
        """
        from scipy.stats import weibull_min

        parameters = (value_C[class_N] for value_C in (self.shape_C, self.location_C, self.scale_C))
        return np.nan_to_num(weibull_min.cdf(distance_N, *parameters), nan=0.0)


def _fit_weibull(distance_T: np.ndarray) -> tuple[float, float, float]:
    """Shape, location and scale of ascending distances."""
    from scipy.optimize import brentq

    if len(distance_T) < _MIN_TAIL or distance_T[-1] - distance_T[0] < _MIN_SPREAD:
        return np.nan, np.nan, np.nan
    # Logarithms of the shifted distances relative to the largest: they are near 0 and lose no precision to the shift.
    log_T = np.log1p((distance_T - distance_T[-1]) / (_SHIFT + distance_T[-1] - distance_T[0]))

    def slope(inverse_shape: float) -> float:
        """Derivative of the likelihood, up to a positive factor."""
        weight_T = np.exp(log_T / inverse_shape)
        return float(weight_T @ log_T / weight_T.sum() - inverse_shape - log_T.mean())

    # The slope tends to -mean > 0 at 0 and is negative from -mean on, since the weighted mean of the logarithms is.
    inverse_shape = brentq(slope, -1e-3 * log_T.mean(), -log_T.mean(), xtol=1e-18, rtol=1e-12)
    largest = _SHIFT + distance_T[-1] - distance_T[0]
    scale = largest * float(np.exp(log_T / inverse_shape).mean() ** inverse_shape)
    return 1 / inverse_shape, distance_T[0] - _SHIFT, scale


# The mean logit vectors of all classes are a C x C matrix.
_MAX_CLASSES = 20_000


@register_openset("openmax")
class OpenMax(OpenSetScorer):
    """OpenMax (Bendale and Boult, CVPR 2016): moves logits of classes with distant images to an unknown class.

    Each of the 10 largest logits (all, if there are fewer), rank i from 1, becomes z'_c = z_c (1 - a_i W_c(d_c)), with
    a_i falling from 1 to 1/10. The logit of the unknown class is the sum of z_c - z'_c, negative logits included; then
    comes a softmax over C + 1 classes.

    d_c is the distance between the logit vector and the mean logit vector of the correctly classified training images
    of the class, Euclidean / 200 + cosine; W_c is the Weibull CDF of the 20 largest such distances in training. A class
    with fewer than 3 such images has W_c = 0 and keeps its logit.

    An image is rejected if the unknown class wins, or if the best known class has a probability below the threshold,
    0.1 as for the plain softmax. The ranking score is log((1 - p_unknown) / p_unknown).
    """

    threshold = 0.1
    needs_training_images = True
    alpha = 10

    def fit(self, training_pass: TrainingPass) -> None:
        """Takes two passes: class means, then distances to them. Raises UserError for too many classes."""
        sum_CC, count_C, images = None, None, 0
        for logit_NC, label_N in training_pass():
            images += len(label_N)
            is_correct_N = logit_NC.argmax(dim=1) == label_N
            if sum_CC is None:
                sum_CC = _zero_sums(logit_NC.shape[1])
                count_C = torch.zeros(logit_NC.shape[1], dtype=torch.float64)
            sum_CC.index_add_(0, label_N[is_correct_N], logit_NC[is_correct_N].double())
            count_C += label_N[is_correct_N].bincount(minlength=len(count_C))
        if not images:
            raise UserError("openmax: none of the training images can be read, and it is fitted on them")
        self.mean_CC = sum_CC / count_C.clamp_min(1)[:, None]
        distances, labels = [], []
        for logit_NC, label_N in training_pass():
            is_correct_N = logit_NC.argmax(dim=1) == label_N
            distances.append(logit_distance(logit_NC[is_correct_N].double(), self.mean_CC[label_N[is_correct_N]]))
            labels.append(label_N[is_correct_N])
        self.tails = WeibullTails.fit(torch.cat(distances).numpy(), torch.cat(labels).numpy(), len(self.mean_CC))

    def score(self, outputs: ModelOutputs) -> OpenSetScores:
        logit_NC = outputs.logit_NC.double()
        moved_NC = logit_NC.clone()
        alpha = min(self.alpha, logit_NC.shape[1])
        ranked_NA = logit_NC.topk(alpha, dim=1).indices
        for rank in range(alpha):
            class_N = ranked_NA[:, rank]
            distance_N = logit_distance(logit_NC, self.mean_CC[class_N])
            outlier_N = torch.from_numpy(self.tails.cdf(distance_N.numpy(), class_N.numpy()))
            class_logit_N = logit_NC.gather(1, class_N[:, None])[:, 0]
            moved_NC.scatter_(1, class_N[:, None], (class_logit_N * (1 - (alpha - rank) / alpha * outlier_N))[:, None])
        unknown_N = (logit_NC - moved_NC).sum(dim=1)
        known_N = moved_NC.logsumexp(dim=1)
        best_N, class_N = moved_NC.max(dim=1)
        probability_N = (best_N - torch.logaddexp(known_N, unknown_N)).exp()
        return OpenSetScores(class_N, probability_N, known_N - unknown_N, unknown_N > best_N)


def logit_distance(first_NC: torch.Tensor, second_NC: torch.Tensor) -> torch.Tensor:
    """Euclidean distance / 200 + (1 - cosine) of each pair of rows, [N]."""
    return (first_NC - second_NC).norm(dim=1) / 200 + 1 - F.cosine_similarity(first_NC, second_NC, dim=1)


def _zero_sums(classes: int) -> torch.Tensor:
    if classes > _MAX_CLASSES:
        raise UserError(
            f"openmax: needs a matrix of classes x classes, too large for {classes:,} classes (at most "
            f"{_MAX_CLASSES:,}); choose another open-set method"
        )
    return torch.zeros(classes, classes, dtype=torch.float64)
