"""What a model answers to the images of a split, with or without a way to reject some: a few numbers an image.

Shapes: N images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from facelt.engine.data import Preparation, Split, TrainingData
from facelt.engine.outputs import Outputs, each_output
from facelt.engine.reading import Reading
from facelt.methods import Method
from facelt.openset import Rejecter, Seen, Verdict


@dataclass(frozen=True)
class Respondent:
    """A trained method, how images become its input, and how they are read."""

    method: Method
    preparation: Preparation
    reading: Reading

    def outputs(self, split: Split, told: str) -> Iterator[tuple[Outputs, torch.Tensor]]:
        """Each batch's outputs and network input; `told` is what stands before the bar on a terminal."""
        console = Console(stderr=True)
        return track(
            each_output(self.method, split, self.preparation, self.reading),
            told,
            total=-(-len(split.members) // self.reading.batch),
            transient=True,
            console=console,
            disable=not console.is_terminal,
        )

    def logits_of(self, image_N3HW: torch.Tensor) -> torch.Tensor:
        """All classes' logits [N, C] on the CPU, with gradients into the input."""
        return self.method.logits(image_N3HW).whole_BC.float().cpu()


class Answers(NamedTuple):
    """Of the images that could be read, in order: label and dataset index; the class with the largest logit and its
    probability; and, by the rejecter, the class to name unless the image is rejected, what is held against its
    threshold, the score that is higher for known images, and who is rejected at any threshold. numpy vectors [N].
    """

    label_N: np.ndarray
    index_N: np.ndarray
    class_N: np.ndarray
    confidence_N: np.ndarray
    open_class_N: np.ndarray
    held_N: np.ndarray
    score_N: np.ndarray
    unknown_N: np.ndarray

    def at(self, threshold: float) -> np.ndarray:
        """The classes named where images below the threshold are rejected as -1, int64 [N]."""
        return np.where(self.unknown_N | (self.held_N < threshold), -1, self.open_class_N)

    def some(self, place_M: np.ndarray) -> "Answers":
        """Those of some images, by place or by a mask."""
        return Answers(*(value_N[place_M] for value_N in self))


def fit_rejecter(rejecter: Rejecter, asked: Respondent, data: TrainingData) -> None:
    """Lets a method that learns from the training images do so; they are not augmented."""
    if rejecter.wants_training:
        told = "training images"
        rejecter.fit(lambda: ((one.logit_NC, one.label_N) for one, _ in asked.outputs(data.train_plain, told)))


def answers(asked: Respondent, split: Split, rejecter: Rejecter, told: str) -> Answers:
    """Asks the model for every image of the split. Raises UserError where it lacks what the rejecter goes by."""
    parts = [_nothing()]
    for one, image_B3HW in asked.outputs(split, told):
        std = asked.preparation.data.std
        verdict = rejecter.judge(Seen(one.logit_NC, one.reachability_N, image_B3HW, std, asked.logits_of))
        confidence_N, class_N = one.logit_NC.double().softmax(dim=1).amax(dim=1), one.logit_NC.argmax(dim=1)
        parts.append((one.label_N, one.index_N, class_N, confidence_N, *verdict))
    return Answers(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


def _nothing() -> tuple[torch.Tensor, ...]:
    integers, numbers = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    verdict = Verdict(integers, numbers, numbers, torch.empty(0, dtype=torch.bool))
    return integers, integers, integers, numbers, *verdict
