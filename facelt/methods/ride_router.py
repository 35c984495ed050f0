"""RIDE's expert assignment: an image is shown to one expert after the other for as long as that is expected to help.

b images of this rank, B of all ranks, K experts, J = K - 1 decisions, C classes, D feature, H hidden units.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from facelt.config import RideRouterConfig
from facelt.heads.head import take_head
from facelt.methods.base import Inputs, Progress, StepOutput
from facelt.methods.experts import Experts, whole_logits
from facelt.models.network import Network
from facelt.parallel import ClassRange, GivenLogits, ProductLogits, ShardedLogits, SharedFeature


class Router(nn.Module):
    """Whether to ask the next expert, after each but the last: a layer of its own for each, and one they share.

    It reads the direction of the last expert's feature, and the largest of the mean logits so far.
    """

    def __init__(self, decisions: int, dim: int, hidden: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.hidden = nn.ModuleList(nn.Linear(dim, hidden) for _ in range(decisions))
        self.decide = nn.Linear(top + hidden, 1)
        for layer in (*self.hidden, self.decide):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, feature_BKD: torch.Tensor, so_far_JBC: torch.Tensor) -> torch.Tensor:
        """[J, B]: above 0 where the next expert is to be asked."""
        answers = []
        for layer, feature_BD, so_far_BC in zip(self.hidden, feature_BKD.unbind(dim=1)[:-1], so_far_JBC, strict=True):
            hidden_BH = layer(F.normalize(feature_BD, dim=1)).relu()
            answers.append(self.decide(torch.cat([so_far_BC.topk(self.top, dim=1).values, hidden_BH], dim=1))[:, 0])
        return torch.stack(answers)


class RideRouter(Experts):
    """Trains the router alone, on experts that stand still; answers with the mean of the experts an image is shown to.

    The network runs all its branches on every image, so that what routing would spare is counted and not spared.
    """

    def __init__(
        self, config: RideRouterConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network, num_classes, config.sampler, "cosine", scale=config.scale)
        self.classes = ClassRange.own(num_classes)
        self.requires_grad_(False)
        self.router = Router(network.branches - 1, network.dim, config.hidden, min(config.top, num_classes))
        self.register_buffer("pos_weight", torch.tensor(config.pos_weight), persistent=False)
        self._asked, self._images = 0, 0

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        groups = super().parameter_groups()
        return {**groups, "head": [*groups["head"], *self.router.parameters()]}

    def start_from(self, state: Mapping[str, torch.Tensor]) -> None:
        """The experts' heads are those of the stage it starts from. Raises UserError where that has no such ones."""
        for place, head in enumerate(self.heads):
            take_head(head, state, f"heads.{place}.")

    def train(self, mode: bool = True) -> "RideRouter":
        """The network stands still in training, its running statistics included."""
        super().train(mode)
        self.network.eval()
        return self

    def step(self, batches: Sequence[Inputs], progress: Progress) -> StepOutput:
        """Every rank computes the loss of the global batch, so that all have the router's whole gradient."""
        (batch,) = batches
        with torch.no_grad():
            feature = self.shared_features(batch.image_B3HW)
            so_far_KBC = means_so_far(whole_logits(self.experts_of(feature)))
        helped_JB = would_help(so_far_KBC.argmax(dim=2) == feature.shares.gather(batch.label_B))
        answer_JB = self.router(feature.all_BD, so_far_KBC[:-1])
        loss = F.binary_cross_entropy_with_logits(answer_JB, helped_JB.float(), pos_weight=self.pos_weight)
        return StepOutput(loss, {"experts_asked": experts_asked(answer_JB.detach()).float().mean()})

    def together(self, feature: SharedFeature, experts: Sequence[ProductLogits]) -> ShardedLogits:
        """The mean of the experts each image is shown to."""
        so_far_KBC = means_so_far(whole_logits(experts))
        asked_B = experts_asked(self.router(feature.all_BD, so_far_KBC[:-1]))
        self._asked += int(asked_B.sum())
        self._images += len(asked_B)
        chosen_BC = so_far_KBC[asked_B - 1, torch.arange(len(asked_B), device=asked_B.device)]
        return GivenLogits(chosen_BC, self.classes, feature.shares)

    def diagnostics(self) -> Mapping[str, float]:
        """The mean number of experts that the images answered since the last call were shown to."""
        asked, images = self._asked, self._images
        self._asked, self._images = 0, 0
        return {"experts_per_image": asked / images} if images else {}


def means_so_far(expert_KBC: torch.Tensor) -> torch.Tensor:
    """The mean logits of the first expert, of the first two, and so on, [K, B, C]."""
    count_K = torch.arange(1, len(expert_KBC) + 1, device=expert_KBC.device)
    return expert_KBC.cumsum(dim=0) / count_K[:, None, None]


def would_help(right_KB: torch.Tensor) -> torch.Tensor:
    """[J, B]: where the mean so far is wrong and that of more experts is right."""
    later_KB = right_KB.flip(0).cummax(dim=0).values.flip(0)
    return ~right_KB[:-1] & later_KB[1:]


def experts_asked(answer_JB: torch.Tensor) -> torch.Tensor:
    """How many experts an image is shown to, [B]: the first, and each next one until an answer is not above 0."""
    return 1 + (answer_JB > 0).long().cumprod(dim=0).sum(dim=0)
