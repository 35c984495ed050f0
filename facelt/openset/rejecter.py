"""What every way to reject unknown images is: from what a trained model says of images to a class and how sure it is.

N images, C known classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

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
