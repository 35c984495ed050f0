"""Going through a split: every image once and in order, each rank a share of every batch.

What a trained method says about the images of a split: one pass, collected on the CPU.

N images, C classes.

Closed-set predictions of a method on a split. N images.

What each expert of a method says of a split, beside what they say together.

N images, K experts.

What a model answers to the images of a split, with or without a way to reject some: a few numbers an image.

Shapes: N images.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from facelt.data.batch import BadImage, BadImageTracker, Batch
from facelt.data.loader import Loader
from facelt.data.module import Preprocessing, Split, TrainingData
from facelt.data.samplers import SequentialSampler
from facelt.distributed.comm import is_distributed, rank, stack_ranks, world_size
from facelt.distributed.launch import Interrupted, all_gather_str, stop_requested
from facelt.errors import UserError
from facelt.methods.base import Method
from facelt.methods.multi_expert import Experts
from facelt.openset.rejection import Rejecter, Seen, Verdict
from recordio_tools.progress import ProgressFn, no_progress, track


@dataclass(frozen=True)
class Reading:
    """How a split is gone through: images at once, processes that decode, where the network is, how many bad images."""

    batch: int
    workers: int
    device: torch.device
    bad: BadImageTracker
    progress: ProgressFn = no_progress


def evaluation_batches(split: Split, reading: Reading) -> Iterator[Batch]:
    """Every member once, in order, on the device; the last batch may be smaller, empty ones are left out.

    Each rank gets its share of every batch, which may be empty where another's is not: all make the same steps.
    """
    sampler = SequentialSampler(len(split.dataset), reading.batch, members=split.members)
    is_pinned = reading.device.type == "cuda"
    loader = Loader(split.dataset, sampler, workers=reading.workers, pin=is_pinned, rank=rank(), world=world_size())
    try:
        for item in loader.batches(0):
            sizes, unusable = sync_step_info([item])
            reading.bad.add(unusable)
            if sum(map(sum, sizes)):
                yield item.to(reading.device)
    finally:
        loader.close()


@contextmanager
def evaluating(method: Method) -> Iterator[None]:
    """The method is in evaluation mode, and afterwards in its own again."""
    was_training = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(was_training)


class Outputs(NamedTuple):
    """Of images that could be read, in the split's order: label and index in the dataset, int64 [N]; logits, float32
    [N, C], whose softmax are the probabilities; reachability, float32 [N], where the method has one. All on the CPU.
    """

    label_N: torch.Tensor
    index_N: torch.Tensor
    logit_NC: torch.Tensor
    reachability_N: torch.Tensor | None


def each_output(
    method: Method, split: Split, preparation: Preprocessing, reading: Reading
) -> Iterator[tuple[Outputs, torch.Tensor]]:
    """The outputs of each batch, without gradients, beside its network input [N,3,H,W] on the device.

    For what is reduced batch by batch: all logits together need 4 N C bytes. Every rank gets those of all images, and
    the input of its own.
    """
    with evaluating(method):
        for item in evaluation_batches(split, reading):
            image_B3HW = preparation.for_evaluation(item)
            yield _outputs(method, item, image_B3HW), image_B3HW


def outputs(method: Method, split: Split, preparation: Preprocessing, reading: Reading) -> Outputs | None:
    """The outputs of a whole split; None where none of its images could be read."""
    parts = [part for part, _ in each_output(method, split, preparation, reading)]
    if not parts:
        return None
    return Outputs(*(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def _outputs(method: Method, item: Batch, image_B3HW: torch.Tensor) -> Outputs:
    logits, reachability_b = method.logits_and_reachability(image_B3HW)
    gather = logits.batch_split.gather
    reachability_B = None if reachability_b is None else gather(reachability_b).float().cpu()
    return Outputs(gather(item.label_B).cpu(), gather(item.index_B).cpu(), logits.full_BC.float().cpu(), reachability_B)


@torch.no_grad()
def predict(
    method: Method, split: Split, preparation: Preprocessing, reading: Reading
) -> tuple[np.ndarray, np.ndarray]:
    """(labels, predictions), int64 [N] each, of all ranks' images that could be read, in order; the method is left in
    its mode.
    """
    none = torch.empty(0, dtype=torch.int64)
    labels, predictions = [none], [none]
    with evaluating(method):
        for item in evaluation_batches(split, reading):
            logits = method.logits(preparation.for_evaluation(item))
            predictions.append(logits.batch_split.gather(logits.argmax()).cpu())
            labels.append(logits.batch_split.gather(item.label_B).cpu())
    return torch.cat(labels).numpy(), torch.cat(predictions).numpy()


@torch.no_grad()
def expert_predictions(
    method: Method, split: Split, preparation: Preprocessing, reading: Reading
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels [N], every expert's predictions [K, N], predictions of all together [N]), int64, of the images that
    could be read, in order.

    Raises UserError for a method without experts.
    """
    if not isinstance(method, Experts):
        raise UserError(f"{type(method).__name__} has no experts: train a method with several, such as independent")
    labels, apart, together = [], [], []
    with evaluating(method):
        for item in evaluation_batches(split, reading):
            experts, average = method.answers(preparation.for_evaluation(item))
            gather = experts[0].batch_split.gather
            labels.append(gather(item.label_B).cpu())
            apart.append(torch.stack([gather(expert.argmax()) for expert in experts]).cpu())
            together.append(gather(average.argmax()).cpu())
    if not labels:
        none_N = np.empty(0, np.int64)
        return none_N, np.empty((len(method.heads), 0), np.int64), none_N
    return torch.cat(labels).numpy(), torch.cat(apart, dim=1).numpy(), torch.cat(together).numpy()


@dataclass(frozen=True)
class Respondent:
    """A trained method, how images become its input, and how they are read."""

    method: Method
    preparation: Preprocessing
    reading: Reading

    def outputs(self, split: Split, label: str) -> Iterator[tuple[Outputs, torch.Tensor]]:
        """Each batch's outputs and network input; progress is reported under `label`."""
        batches = each_output(self.method, split, self.preparation, self.reading)
        return track(batches, label, -(-len(split.members) // self.reading.batch), self.reading.progress)

    def logits_of(self, image_N3HW: torch.Tensor) -> torch.Tensor:
        """All classes' logits [N, C] on the CPU, with gradients into the input."""
        return self.method.logits(image_N3HW).full_BC.float().cpu()


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


def sync_step_info(batches: Sequence[Batch]) -> tuple[list[list[int]], tuple[BadImage, ...]]:
    """Of one step: how many images each rank has of each batch, [W][batches], and the bad images of all ranks.

    Raises Interrupted on all ranks where one of them was asked to stop.
    """
    bad = tuple(image for batch in batches for image in batch.bad)
    sizes = [len(batch) for batch in batches]
    table = stack_ranks(torch.tensor([*sizes, len(bad), stop_requested()])).tolist()
    if any(row[-1] for row in table):
        raise Interrupted
    if is_distributed() and any(row[-2] for row in table):
        bad = tuple(BadImage(*image) for told in all_gather_str(json.dumps(bad)) for image in json.loads(told))
    return [row[:-2] for row in table], bad
