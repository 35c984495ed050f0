"""Learning what a classifier of few images would become with many.

B images of all ranks, D feature, C classes, E = D + 1 weights of a class, U classes that are learned from.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch

from facelt.config import MetaModelNetConfig, ModelRegressionConfig
from facelt.errors import UserError
from facelt.memory import FeatureBank
from facelt.methods.base import Inputs, Progress, StepOutput
from facelt.methods.frozen_network import OnFrozenNetwork
from facelt.methods.softmax_regression import softmax_regression, with_one
from facelt.models.network import Network
from facelt.parallel import ClassRange, ProductLogits, Rows, SharedFeature


class ShotRegression(OnFrozenNetwork):
    """A regression from weights fitted to 2^level images of a class to those fitted to all, for every level.

    All classifiers are softmax regressions on the features, fitted alike: `many` to all training images, the few-shot
    ones to 2^level of each class. A step draws such images anew, fits, and learns from the classes that have at least
    twice as many: |grown - many|^2 over the mean of |many|^2, plus the loss of the answers to the batch, in which
    grown weights stand for these classes and `many` for the others. A class with fewer than 2^levels images answers
    by weights fitted to the largest 2^level of them and grown; the others by `many`. Every rank computes the whole.

    The papers' settings for long-tailed sets are not published: fits, episodes and scaling are our own.
    """

    many_CE: torch.Tensor
    few_CE: torch.Tensor
    level_C: torch.Tensor
    count_C: torch.Tensor

    def __init__(
        self,
        config: ModelRegressionConfig | MetaModelNetConfig,
        network: Network,
        num_classes: int,
        counts_C: torch.Tensor | None,
    ) -> None:
        super().__init__(network)
        self.config = config
        self.length = network.dim + 1
        if counts_C is not None and counts_C.max() < 2**config.levels:
            raise UserError(
                f"levels: the last of {config.levels} learns from classes of {2**config.levels} training images, and "
                f"the largest has {int(counts_C.max())}; lower levels"
            )
        counts_C = torch.zeros(num_classes, dtype=torch.int64) if counts_C is None else counts_C.clone()
        self.register_buffer("count_C", counts_C, persistent=False)
        level_C = counts_C.clamp_min(1).double().log2().floor().long().clamp_max(config.levels)
        # Without images there is nothing to grow from.
        self.register_buffer("level_C", torch.where(counts_C > 0, level_C, config.levels))
        self.register_buffer("many_CE", torch.zeros(num_classes, self.length))
        self.register_buffer("few_CE", torch.zeros(num_classes, self.length))
        self._bank = FeatureBank()

    @abstractmethod
    def grow(self, weight_UE: torch.Tensor, level: int) -> torch.Tensor:
        """What weights fitted to 2^level images would be with many."""

    @abstractmethod
    def level(self, progress: Progress, generator: torch.Generator) -> int:
        """The level to learn from in this step."""

    @abstractmethod
    def answer_loss(self, logit_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        """The loss of the answers, a scalar."""

    @property
    def wants_pass(self) -> bool:
        return not self._bank.is_closed

    def accumulate(self, batch: Inputs) -> None:
        self._bank.add(SharedFeature.of(self.features(batch.image_B3HW)), batch.label_B)

    def finish_pass(self) -> None:
        """A resumed stage has its classifiers already."""
        self._bank.close()
        if self.many_CE.any():
            return
        self.many_CE.copy_(self._fit(self._bank.feature_ND, self._bank.label_N))
        generator = torch.Generator(self.many_CE.device).manual_seed(torch.initial_seed())
        for level in range(self.config.levels):
            at_C1 = (self.level_C == level)[:, None]
            if at_C1.any():
                self.few_CE.copy_(torch.where(at_C1, self._fit(*self._bank.few(2**level, generator)), self.few_CE))

    def step(self, batches: Sequence[Inputs], progress: Progress) -> StepOutput:
        (batch,) = batches
        feature = SharedFeature.of(self.features(batch.image_B3HW))
        label_B = feature.shares.gather(batch.label_B)
        generator = progress.generator(label_B.device, alike=True)
        level = self.level(progress, generator)
        few_CE = self._fit(*self._bank.few(2**level, generator))
        enough_C = self.count_C >= 2 ** (level + 1)
        grown_UE, many_UE = self.grow(few_CE[enough_C], level), self.many_CE[enough_C]
        regression = (grown_UE - many_UE).square().sum() / many_UE.square().sum()
        weight_CE = self.many_CE.masked_scatter(enough_C[:, None], grown_UE)
        answers = self.answer_loss(with_one(feature.all_BD) @ weight_CE.t(), label_B)
        parts = {"regression_loss": regression.detach(), "answer_loss": answers.detach()}
        # Fewer images are harder to learn from: losses of different levels are not to be compared.
        parts["level"] = regression.new_tensor(level)
        return StepOutput(regression + self.config.answer_weight * answers, parts)

    def logits(self, image_B3HW: torch.Tensor) -> ProductLogits:
        feature = SharedFeature.of(self.features(image_B3HW))
        weight_CE = self.weights()
        classes = ClassRange.own(len(weight_CE))
        own_CE = weight_CE[classes.first : classes.stop]
        return ProductLogits(feature.all_BD, Rows(own_CE[:, :-1], own_CE[:, -1]), classes, feature.shares)

    def weights(self) -> torch.Tensor:
        """The classifier that answers, [C, E]."""
        weight_CE = self.many_CE
        for level in range(self.config.levels):
            at_C1 = (self.level_C == level)[:, None]
            weight_CE = torch.where(at_C1, self.grow(self.few_CE, level), weight_CE)
        return weight_CE

    def _fit(self, feature_ND: torch.Tensor, label_N: torch.Tensor) -> torch.Tensor:
        settings = {"decay": self.config.decay, "steps": self.config.fit_steps}
        return softmax_regression(feature_ND, label_N, len(self.many_CE), **settings)
