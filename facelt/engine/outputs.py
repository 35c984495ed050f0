"""What a trained method says about the images of a split: one pass, collected on the CPU.

N images, C classes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from facelt.data.batch import Batch
from facelt.engine.data import Preparation, Split
from facelt.engine.reading import Reading, evaluating, evaluation_batches
from facelt.methods import Method


class Outputs(NamedTuple):
    """Of images that could be read, in the split's order: label and index in the dataset, int64 [N]; logits, float32
    [N, C], whose softmax are the probabilities; reachability, float32 [N], where the method has one. All on the CPU.
    """

    label_N: torch.Tensor
    index_N: torch.Tensor
    logit_NC: torch.Tensor
    reachability_N: torch.Tensor | None


def each_output(
    method: Method, split: Split, preparation: Preparation, reading: Reading
) -> Iterator[tuple[Outputs, torch.Tensor]]:
    """The outputs of each batch, without gradients, beside its network input [N,3,H,W] on the device.

    For what is reduced batch by batch: all logits together need 4 N C bytes. Every rank gets those of all images, and
    the input of its own.
    """
    with evaluating(method):
        for item in evaluation_batches(split, reading):
            image_B3HW = preparation.for_evaluation(item)
            yield _outputs(method, item, image_B3HW), image_B3HW


def outputs(method: Method, split: Split, preparation: Preparation, reading: Reading) -> Outputs | None:
    """The outputs of a whole split; None where none of its images could be read."""
    parts = [part for part, _ in each_output(method, split, preparation, reading)]
    if not parts:
        return None
    return Outputs(*(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def _outputs(method: Method, item: Batch, image_B3HW: torch.Tensor) -> Outputs:
    logits, reachability_b = method.logits_and_reachability(image_B3HW)
    gather = logits.shares.gather
    reachability_B = None if reachability_b is None else gather(reachability_b).float().cpu()
    return Outputs(
        gather(item.label_B).cpu(), gather(item.index_B).cpu(), logits.whole_BC.float().cpu(), reachability_B
    )
