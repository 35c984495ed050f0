"""What each expert of a method says of a split, beside what they say together.

N images, K experts.
"""

import numpy as np
import torch

from facelt.engine.data import Preparation, Split
from facelt.engine.reading import Reading, evaluating, evaluation_batches
from facelt.errors import UserError
from facelt.methods import Method
from facelt.methods.experts import Experts


@torch.no_grad()
def expert_predictions(
    method: Method, split: Split, preparation: Preparation, reading: Reading
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
            gather = experts[0].shares.gather
            labels.append(gather(item.label_B).cpu())
            apart.append(torch.stack([gather(expert.argmax()) for expert in experts]).cpu())
            together.append(gather(average.argmax()).cpu())
    if not labels:
        none_N = np.empty(0, np.int64)
        return none_N, np.empty((len(method.heads), 0), np.int64), none_N
    return torch.cat(labels).numpy(), torch.cat(apart, dim=1).numpy(), torch.cat(together).numpy()
