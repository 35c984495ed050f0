"""What every way to reject unknown images is: from what a trained model says of images to a class and how sure it is.

N images, C known classes.

Rejects by the largest softmax probability: the baseline of Hendrycks and Gimpel (ICLR 2017), and OLTR's own rule.

N images, C known classes.

Rejects images far from every centroid of the memory (OLTR, CVPR 2019, section 3.2: reachability).

ODIN (Liang et al., ICLR 2018): a softmax at high temperature, of the image moved a little towards its own class.

N images, C known classes.

How far images of a class stray from its mean: a Weibull distribution of the largest distances.

C classes, T distances of a tail.

OpenMax (Bendale and Boult, CVPR 2016): an unknown class takes what far classes lose.

N images, B images of a batch, C known classes.

Ways to say that an image is of no known class, by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from facelt.errors import UserError

Logits = Callable[[torch.Tensor], torch.Tensor]
Passes = Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]


class Seen(NamedTuple):
    """Some images, for the asking: their logits [N, C] and, where the model has a memory, reachability [N].

    `image_N3HW` is the network's input, whose channels were divided by `std`, and `logits_of` gives logits of such
    input, with gradients, for whoever looks at the images again.
    """

    logit_NC: torch.Tensor
    reachability_N: torch.Tensor | None
    image_N3HW: torch.Tensor
    std: tuple[float, float, float]
    logits_of: Logits


class Verdict(NamedTuple):
    """Of each image: the best known class, int64 [N]; what a threshold is held against, float64 [N]; how known the
    image looks, float64 [N], higher for known ones, to rank images by; and whether it is rejected at any threshold,
    bool [N]. On the CPU.
    """

    class_N: torch.Tensor
    held_N: torch.Tensor
    score_N: torch.Tensor
    unknown_N: torch.Tensor

    @classmethod
    def by_score(cls, class_N: torch.Tensor, score_N: torch.Tensor) -> "Verdict":
        """A verdict in which the score itself is held against the threshold, and that alone rejects."""
        score_N = score_N.detach().double().cpu()
        return cls(class_N.cpu(), score_N, score_N, torch.zeros(len(score_N), dtype=torch.bool))

    def answers(self, threshold: float) -> torch.Tensor:
        """The class of each image, int64 [N], -1 where it is rejected: below the threshold or unknown anyway."""
        return self.class_N.masked_fill(self.unknown_N | (self.held_N < threshold), -1)


class Rejecter(ABC):
    """Judges images. `threshold` is the method's own, None where it has to be set on known images.

    With `wants_training` the method is fitted on the training images before it judges.
    """

    threshold: float | None = None
    wants_training = False

    @abstractmethod
    def judge(self, seen: Seen) -> Verdict:
        """Raises UserError where the model lacks what the method goes by."""

    def fit(self, passes: Passes) -> None:
        """Learns from the training images: each call of `passes` goes through all of them, as (logits [N, C], labels
        [N]).
        """
        raise TypeError(f"{type(self).__name__} is not fitted")


class Threshold(Rejecter):
    """The score is the largest probability. 0.1 is the threshold of OLTR's released code.

    An OLTR model has its reachability in these probabilities: it scales the vector that is classified, and a far image
    gets a flat softmax.
    """

    threshold = 0.1

    def judge(self, seen: Seen) -> Verdict:
        return Verdict.by_score(seen.logit_NC.argmax(dim=1), seen.logit_NC.double().softmax(dim=1).amax(dim=1))


class Reachability(Rejecter):
    """The score is scale / distance to the nearest centroid, in the unit of the model's convention.

    Distances depend on the features' length, so no threshold fits every model: it is set on known images.
    """

    def judge(self, seen: Seen) -> Verdict:
        if seen.reachability_N is None:
            raise UserError("reachability: this model has no memory to measure it by; choose another open-set method")
        return Verdict.by_score(seen.logit_NC.argmax(dim=1), seen.reachability_N)


class Odin(Rejecter):
    """The score is max softmax(z(x') / T) with x' = x - step * sign(gradient) / std, the sign of 0 being +1.

    The gradient is that of -log max softmax(z(x) / T) by the network's input, and the division, channel by channel, as
    in the released code: the step is one of pixels' full range. T 1000 and step 0.0028 are its settings for
    DenseNet-BC-100 with CIFAR-100 against TinyImageNet (resized). The class is that of the image as it is.
    """

    temperature = 1000.0
    step = 0.0028

    def judge(self, seen: Seen) -> Verdict:
        with torch.enable_grad():
            image_N3HW = seen.image_N3HW.detach().requires_grad_()
            logit_NC = seen.logits_of(image_N3HW)
            # A sum: each image's gradient is its own, whatever the batch.
            loss = F.cross_entropy(logit_NC.double() / self.temperature, logit_NC.argmax(dim=1), reduction="sum")
            (gradient_N3HW,) = torch.autograd.grad(loss, image_N3HW)
        with torch.no_grad():
            std_311 = image_N3HW.new_tensor(seen.std)[:, None, None]
            sign_N3HW = torch.where(gradient_N3HW >= 0, 1.0, -1.0)
            moved_NC = seen.logits_of(image_N3HW - self.step * sign_N3HW / std_311)
            score_N = (moved_NC.double() / self.temperature).softmax(dim=1).amax(dim=1)
        return Verdict.by_score(seen.logit_NC.argmax(dim=1), score_N)


TAIL = 20
# Two images are equally far from their mean but for rounding, one not at all: neither shows how distances vary.
FEWEST = 3
# Distances nearer to each other than this differ by the rounding of float32 logits.
EQUAL = 1e-6
SHIFT = 1e4


@dataclass(frozen=True, eq=False)
class Tails:
    """Weibull shape, location and scale of each class, float64 [C]; NaN where a class could not be fitted, and such a
    class finds no distance far.

    The fit is libmr's `fit_high`, which OpenMax's authors use: the tail is shifted so that its smallest distance
    becomes 10,000, and a Weibull of two parameters is fitted to it by maximum likelihood. It is scipy's weibull_min
    with the location (smallest distance - 10,000). With so large a shift it is a Gumbel distribution of minima in all
    but name, and a distance below the tail's smallest has a probability above 0 too. The likelihood's equation is
    solved here, because scipy's `fit`, which searches without gradients, ends far from the maximum at such shapes.
    """

    shape_C: np.ndarray
    location_C: np.ndarray
    scale_C: np.ndarray

    @classmethod
    def fit(cls, distance_N: np.ndarray, class_N: np.ndarray, classes: int) -> "Tails":
        """Fits each class to its `TAIL` largest distances, or to all where it has fewer."""
        order_N = np.lexsort((distance_N, class_N))
        ends_C = np.cumsum(np.bincount(class_N, minlength=classes))
        fitted = [_fit(part[-TAIL:]) for part in np.split(distance_N[order_N], ends_C[:-1])]
        return cls(*np.array(fitted, dtype=np.float64).T)

    def strays(self, distance_N: np.ndarray, class_N: np.ndarray) -> np.ndarray:
        """How likely it is, float64 [N], that an image so far from the mean of that class is none of its own."""
        from scipy.stats import weibull_min

        parameters = (value_C[class_N] for value_C in (self.shape_C, self.location_C, self.scale_C))
        return np.nan_to_num(weibull_min.cdf(distance_N, *parameters), nan=0.0)


def _fit(distance_T: np.ndarray) -> tuple[float, float, float]:
    """Shape, location and scale for ascending distances."""
    from scipy.optimize import brentq

    if len(distance_T) < FEWEST or distance_T[-1] - distance_T[0] < EQUAL:
        return np.nan, np.nan, np.nan
    # Logarithms of the shifted distances, less the largest one's: near 0, where nothing is lost to the shift.
    log_T = np.log1p((distance_T - distance_T[-1]) / (SHIFT + distance_T[-1] - distance_T[0]))

    def slope(inverse: float) -> float:
        """Zero at the likelihood's maximum; `inverse` is 1 / shape."""
        weight_T = np.exp(log_T / inverse)
        return float(weight_T @ log_T / weight_T.sum() - inverse - log_T.mean())

    # The slope is near -mean > 0 at 0 and below 0 from -mean on, for the weighted mean of the logarithms is below 0.
    inverse = brentq(slope, -1e-3 * log_T.mean(), -log_T.mean(), xtol=1e-18, rtol=1e-12)
    largest = SHIFT + distance_T[-1] - distance_T[0]
    scale = largest * float(np.exp(log_T / inverse).mean() ** inverse)
    return 1 / inverse, distance_T[0] - SHIFT, scale


# A class's mean vector has a number for each class.
MOST_CLASSES = 20_000


class OpenMax(Rejecter):
    """Of the 10 largest logits (all where there are fewer), rank i from 1, each becomes z'_c = z_c (1 - a_i W_c(d_c)),
    a_i falling from 1 to 1/10. The unknown class's logit is the sum of z_c - z'_c, negative logits included; then comes
    the softmax over all C + 1.

    d_c is the distance of the logit vector to the mean logit vector of the class's rightly classified training images,
    Euclidean / 200 + cosine; W_c the Weibull distribution of the 20 largest such distances in training. Where a class
    has fewer than 3 such images nothing says how far its images stray: W_c is 0, and it keeps its logit.

    An image is rejected where the unknown class wins, or the best known one has a probability below the threshold,
    which is 0.1 as for plain softmax. The score is log((1 - p_unknown) / p_unknown).
    """

    threshold = 0.1
    wants_training = True
    alpha = 10

    def fit(self, passes: Passes) -> None:
        """Two passes: means, then distances to them. Raises UserError where too many classes are known."""
        sum_CC, count_C, images = None, None, 0
        for logit_BC, label_B in passes():
            images += len(label_B)
            right_B = logit_BC.argmax(dim=1) == label_B
            if sum_CC is None:
                sum_CC = _zeros(logit_BC.shape[1])
                count_C = torch.zeros(logit_BC.shape[1], dtype=torch.float64)
            sum_CC.index_add_(0, label_B[right_B], logit_BC[right_B].double())
            count_C += label_B[right_B].bincount(minlength=len(count_C))
        if not images:
            raise UserError("openmax: none of the training images can be read, and it is fitted on them")
        self.mean_CC = sum_CC / count_C.clamp_min(1)[:, None]
        distances, labels = [], []
        for logit_BC, label_B in passes():
            right_B = logit_BC.argmax(dim=1) == label_B
            distances.append(distance(logit_BC[right_B].double(), self.mean_CC[label_B[right_B]]))
            labels.append(label_B[right_B])
        self.tails = Tails.fit(torch.cat(distances).numpy(), torch.cat(labels).numpy(), len(self.mean_CC))

    def judge(self, seen: Seen) -> Verdict:
        logit_NC = seen.logit_NC.double()
        moved_NC = logit_NC.clone()
        alpha = min(self.alpha, logit_NC.shape[1])
        ranked_NA = logit_NC.topk(alpha, dim=1).indices
        for place in range(alpha):
            class_N = ranked_NA[:, place]
            distance_N = distance(logit_NC, self.mean_CC[class_N])
            stray_N = torch.from_numpy(self.tails.strays(distance_N.numpy(), class_N.numpy()))
            own_N = logit_NC.gather(1, class_N[:, None])[:, 0]
            moved_NC.scatter_(1, class_N[:, None], (own_N * (1 - (alpha - place) / alpha * stray_N))[:, None])
        unknown_N = (logit_NC - moved_NC).sum(dim=1)
        known_N = moved_NC.logsumexp(dim=1)
        best_N, class_N = moved_NC.max(dim=1)
        probability_N = (best_N - torch.logaddexp(known_N, unknown_N)).exp()
        return Verdict(class_N, probability_N, known_N - unknown_N, unknown_N > best_N)


def distance(one_NC: torch.Tensor, other_NC: torch.Tensor) -> torch.Tensor:
    """Euclidean / 200 + (1 - cosine) of vectors side by side, [N]."""
    return (one_NC - other_NC).norm(dim=1) / 200 + 1 - F.cosine_similarity(one_NC, other_NC, dim=1)


def _zeros(classes: int) -> torch.Tensor:
    if classes > MOST_CLASSES:
        raise UserError(
            f"openmax: it keeps a vector of all classes for each, too much for {classes:,} classes (at most "
            f"{MOST_CLASSES:,}); choose another open-set method"
        )
    return torch.zeros(classes, classes, dtype=torch.float64)


OPENSET: dict[str, type[Rejecter]] = {
    "threshold": Threshold,
    "reachability": Reachability,
    "openmax": OpenMax,
    "odin": Odin,
}
