"""Methods on the features of a trained network, which stays as it is."""

from collections.abc import Mapping, Sequence

from torch import nn

from facelt.methods.base import Inputs, Method, Progress, StepOutput, Stream
from facelt.models.network import Network


class OnFrozenNetwork(Method):
    """No weight of the network moves and none of its running statistics, so what was made of its features stays valid.

    All that is learned belongs to the head.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        network.requires_grad_(False)

    def train(self, mode: bool = True) -> "OnFrozenNetwork":
        """The network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def streams(self) -> Sequence[Stream]:
        return (Stream("class_aware"),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        network = list(self.network.parameters())
        owned = {id(parameter) for parameter in network}
        return {"network": network, "head": [value for value in self.parameters() if id(value) not in owned]}


class PostHoc(OnFrozenNetwork):
    """Fitted by a pass over the training set, or by nothing but what it starts from: it takes no steps."""

    def streams(self) -> Sequence[Stream]:
        return (Stream("instance"),)

    def step(self, batches: Sequence[Inputs], progress: Progress) -> StepOutput:
        raise TypeError(f"{type(self).__name__} takes no steps: a stage of it has epochs: 0")
