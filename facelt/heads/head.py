"""What every classifier of the feature is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from facelt.errors import UserError
from facelt.parallel import ProductLogits, SharedFeature, split_entries


class Head(nn.Module, ABC):
    """Logits of a feature; in training a head may make it harder for the own identity."""

    @abstractmethod
    def forward(self, feature: SharedFeature) -> ProductLogits:
        """Logits as they are asked for after training."""

    def training_logits(self, feature: SharedFeature, label_b: torch.Tensor, step: int = 0) -> ProductLogits:
        """Logits of the training loss, for this rank's images with labels [b]; what is drawn is drawn for `step`."""
        return self(feature)


@torch.no_grad()
def take_head(head: nn.Module, state: Mapping[str, torch.Tensor], prefix: str = "head.") -> None:
    """Fills a head from an earlier stage's whole state, of which a rank reads its own classes' rows.

    Raises UserError, with nothing changed, where that stage has no head of the same shape.
    """
    split = split_entries(head)
    for name, value in head.state_dict().items():
        given, rows = state.get(prefix + name), split[name].total if name in split else len(value)
        if given is None or tuple(given.shape) != (rows, *value.shape[1:]):
            raise UserError(
                f"start: the earlier stage has no head like this one ({name} is missing or of another shape); "
                "give both stages the same head, or start it anew"
            )
    for name, value in head.state_dict().items():
        classes = split.get(name)
        value.copy_(state[prefix + name][slice(None) if classes is None else slice(classes.first, classes.stop)])
