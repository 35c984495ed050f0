"""Few-shot learning without forgetting (Gidaris and Komodakis, Dynamic Few-Shot Visual Learning, CVPR 2018).

B images of all ranks, Q queries, D feature, C classes.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from facelt.config import FslwfConfig
from facelt.errors import UserError
from facelt.heads.weight_generator import WeightGenerator
from facelt.memory import FeatureBank
from facelt.memory.feature_bank import turn_in_class
from facelt.methods.base import Inputs, Progress, StepOutput
from facelt.methods.frozen_network import OnFrozenNetwork
from facelt.models.network import Network
from facelt.parallel import ClassRange, ProductLogits, Rows, SharedFeature


class Fslwf(OnFrozenNetwork):
    """A cosine classifier whose weights of novel classes are generated from their training images.

    Each step is an episode made of a class-aware batch: some of its base classes are pretended to be novel, the first
    half of their images are the exemplars of which their weights are generated, without help from these classes, and
    all other images of base classes are the queries. Images of novel classes take no part. Every rank computes the
    whole episode. The method's bias, one number for all classes, changes no answer and is left out.

    The base and novel classes of long-tailed sets are not stated by OLTR, which compares with this method; few-shot
    classes are the novel ones here unless told otherwise.
    """

    novel_C: torch.Tensor
    generated_CD: torch.Tensor

    def __init__(
        self, config: FslwfConfig, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.config = config
        self.weight_CD = nn.Parameter(torch.zeros(num_classes, network.dim))
        self.scale = nn.Parameter(torch.tensor([config.scale]))
        self.generator = WeightGenerator(network.dim, num_classes, config.attention_scale)
        if counts_C is not None and counts_C.max() < config.novel_below:
            raise UserError(
                f"novel_below: all classes have fewer than {config.novel_below} training images; lower it, so that "
                "some are base classes"
            )
        novel_C = torch.zeros(num_classes, dtype=torch.bool) if counts_C is None else counts_C < config.novel_below
        self.register_buffer("novel_C", novel_C)
        self.register_buffer("generated_CD", torch.zeros(num_classes, network.dim))
        self._bank = FeatureBank()

    def start_from(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises UserError where the earlier stage has no cosine head."""
        weight = state.get("head.weight")
        if weight is None or "head.bias" in state or tuple(weight.shape) != tuple(self.weight_CD.shape):
            raise UserError("start: the earlier stage has no cosine head of these classes; give it head: cosine")
        with torch.no_grad():
            self.weight_CD.copy_(weight[:])
            if "head.learned_scale.value" in state:
                self.scale.copy_(state["head.learned_scale.value"][:])

    @property
    def wants_pass(self) -> bool:
        return not self._bank.is_closed

    def accumulate(self, batch: Inputs) -> None:
        self._bank.add(SharedFeature.of(self.features(batch.image_B3HW)), batch.label_B, self.novel_C)

    def finish_pass(self) -> None:
        self._bank.close()
        self.end_epoch()

    @torch.no_grad()
    def end_epoch(self) -> None:
        """The novel classes' weights, from all their training images, by the generator as it is now."""
        bank = self._bank
        self.generated_CD.copy_(self.generator(bank.feature_ND, bank.label_N, self.weight_CD, ~self.novel_C))

    def step(self, batches: Sequence[Inputs], progress: Progress) -> StepOutput:
        (batch,) = batches
        feature = SharedFeature.of(self.features(batch.image_B3HW))
        label_B = feature.shares.gather(batch.label_B)
        generator = progress.generator(label_B.device, alike=True)
        kept_BD = torch.rand(feature.all_BD.shape, generator=generator, device=label_B.device) >= self.config.dropout
        feature_BD = feature.all_BD * kept_BD / (1 - self.config.dropout)
        pretended_C = self._pretended(label_B, generator)
        exemplar_B = pretended_C[label_B] & _first_half(label_B)
        query_B = ~self.novel_C[label_B] & ~exemplar_B
        if not query_B.any():
            return StepOutput(0 * self.weight_CD.sum())
        generated_CD = self.generator(
            feature_BD[exemplar_B], label_B[exemplar_B], self.weight_CD, ~self.novel_C & ~pretended_C
        )
        weight_CD = torch.where(pretended_C[:, None], generated_CD, self.weight_CD)
        cosine_QC = F.normalize(feature_BD[query_B]) @ F.normalize(weight_CD).t()
        logit_QC = (self.scale * cosine_QC).masked_fill(self.novel_C, -torch.inf)
        return StepOutput(F.cross_entropy(logit_QC, label_B[query_B]))

    def logits(self, image_B3HW: torch.Tensor) -> ProductLogits:
        feature = SharedFeature.of(self.features(image_B3HW))
        weight_CD = torch.where(self.novel_C[:, None], self.generated_CD, self.weight_CD)
        classes = ClassRange.own(len(weight_CD))
        rows = Rows(weight_CD[classes.first : classes.stop], unit=True)
        return ProductLogits(self.scale * F.normalize(feature.all_BD), rows, classes, feature.shares)

    def _pretended(self, label_B: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Which classes are pretended to be novel, bool [C]: some of the base classes with two images in the batch."""
        count_C = torch.bincount(label_B, minlength=len(self.novel_C))
        (able_U,) = ((count_C > 1) & ~self.novel_C).nonzero(as_tuple=True)
        order_U = torch.randperm(len(able_U), generator=generator, device=label_B.device)
        pretended_C = torch.zeros_like(self.novel_C)
        pretended_C[able_U[order_U[: int(self.config.pretended * len(able_U))]]] = True
        return pretended_C


def _first_half(label_B: torch.Tensor) -> torch.Tensor:
    """Which images are among the first half of their class's in the batch, rounded down."""
    return turn_in_class(label_B) < torch.bincount(label_B)[label_B] // 2
