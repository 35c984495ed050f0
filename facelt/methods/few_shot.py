"""Classifier weights of classes that have few images (Gidaris and Komodakis, CVPR 2018, section 3.2).

E exemplars, D feature, C classes.

Few-shot learning without forgetting (Gidaris and Komodakis, Dynamic Few-Shot Visual Learning, CVPR 2018).

B images of all ranks, Q queries, D feature, C classes.

A linear classifier fitted to features that stand still.

N images, D feature, C classes, E = D + 1 weights of a class, the last one its bias.

Learning what a classifier of few images would become with many.

B images of all ranks, D feature, C classes, E = D + 1 weights of a class, U classes that are learned from.

Model regression (Wang and Hebert, Learning to Learn, ECCV 2016): one network for any few images.

B images of all ranks, C classes, E weights of a class, U classes that are learned from.

MetaModelNet (Wang, Ramanan and Hebert, Learning to Model the Tail, NIPS 2017): a chain of doublings.

B images of all ranks, C classes, E weights of a class, U classes that are learned from.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from facelt.config.registry import register_method
from facelt.config.train import SecondStageSettings
from facelt.distributed.class_shards import ClassRange
from facelt.distributed.logits import ClassifierLogits, ClassWeights, GatheredFeatures
from facelt.errors import UserError
from facelt.heads.memory import FeatureBank, count_previous
from facelt.methods.base import FrozenBackboneMethod, StepContext, StepOutput, TrainBatch
from facelt.models.network import Network

# The query layer begins as the identity plus noise of this size, as in the released code.
NOISE = 0.001


class WeightGenerator(nn.Module):
    """w = phi_avg * mean_i f_i + phi_att * mean_i sum_b attention(phi_q f_i, key_b) w_b over exemplars i of a class.

    Exemplars and base weights have length 1. The attention is the softmax over the base classes of scale times cosine;
    phi_avg and phi_att are one factor a dimension.
    """

    def __init__(self, dim: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        with torch.no_grad():
            self.query.weight.copy_(torch.eye(dim) + NOISE * torch.randn(dim, dim))
            self.query.bias.zero_()
        self.key_CD = nn.Parameter(torch.randn(num_classes, dim) * (2 / dim) ** 0.5)
        self.scale = nn.Parameter(torch.tensor([scale]))
        self.average_D = nn.Parameter(torch.ones(dim))
        self.attention_D = nn.Parameter(torch.ones(dim))

    def forward(
        self, exemplar_ED: torch.Tensor, label_E: torch.Tensor, weight_CD: torch.Tensor, base_C: torch.Tensor
    ) -> torch.Tensor:
        """Weights [C, D], 0 for a class without exemplars; `base_C` says which rows of `weight_CD` may be read."""
        exemplar_ED = F.normalize(exemplar_ED)
        query_ED = F.normalize(self.query(exemplar_ED))
        score_EC = self.scale * query_ED @ F.normalize(self.key_CD).t()
        read_ED = score_EC.masked_fill(~base_C, -torch.inf).softmax(dim=1) @ F.normalize(weight_CD)
        made_ED = self.average_D * exemplar_ED + self.attention_D * read_ED
        count_C1 = torch.bincount(label_E, minlength=len(weight_CD)).clamp_min(1)[:, None]
        return torch.zeros_like(weight_CD).index_add(0, label_E, made_ED) / count_C1


class FslwfSettings(SecondStageSettings):
    """Few-shot learning without forgetting: rare classes' weights are generated from their images.

    Novel classes have fewer than `novel_below` training images; the others are base classes. Each step treats the
    fraction `novel_fraction` of its base classes as novel, with `dropout` on the features. `scale` is the initial scale
    of the cosines if the earlier stage has not learned one, `attention_scale` that of the attention.
    """

    novel_below: int = Field(20, ge=1)
    novel_fraction: float = Field(0.64, gt=0, lt=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    scale: float = Field(10.0, gt=0)
    attention_scale: float = Field(30.0, gt=0)


@register_method("fslwf", FslwfSettings)
class Fslwf(FrozenBackboneMethod):
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
        self, config: FslwfSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
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

    def load_stage(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises UserError where the earlier stage has no cosine head."""
        weight = state.get("head.weight")
        if weight is None or "head.bias" in state or tuple(weight.shape) != tuple(self.weight_CD.shape):
            raise UserError("init_from: the earlier stage has no cosine head of these classes; give it head: cosine")
        with torch.no_grad():
            self.weight_CD.copy_(weight[:])
            if "head.learned_scale.value" in state:
                self.scale.copy_(state["head.learned_scale.value"][:])

    @property
    def needs_dataset_pass(self) -> bool:
        return not self._bank.is_closed

    def observe(self, batch: TrainBatch) -> None:
        self._bank.add(GatheredFeatures.gather(self.features(batch.image_B3HW)), batch.label_B, self.novel_C)

    def end_dataset_pass(self) -> None:
        self._bank.close()
        self.end_epoch()

    @torch.no_grad()
    def end_epoch(self) -> None:
        """The novel classes' weights, from all their training images, by the generator as it is now."""
        bank = self._bank
        self.generated_CD.copy_(self.generator(bank.feature_ND, bank.label_N, self.weight_CD, ~self.novel_C))

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = GatheredFeatures.gather(self.features(batch.image_B3HW))
        label_B = feature.batch_split.gather(batch.label_B)
        generator = context.generator(label_B.device, same_on_all_ranks=True)
        kept_BD = torch.rand(feature.global_BD.shape, generator=generator, device=label_B.device) >= self.config.dropout
        feature_BD = feature.global_BD * kept_BD / (1 - self.config.dropout)
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

    def logits(self, image_B3HW: torch.Tensor) -> ClassifierLogits:
        feature = GatheredFeatures.gather(self.features(image_B3HW))
        weight_CD = torch.where(self.novel_C[:, None], self.generated_CD, self.weight_CD)
        classes = ClassRange.local(len(weight_CD))
        rows = ClassWeights(weight_CD[classes.first : classes.stop], normalize=True)
        return ClassifierLogits(self.scale * F.normalize(feature.global_BD), rows, classes, feature.batch_split)

    def _pretended(self, label_B: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Which classes are pretended to be novel, bool [C]: some of the base classes with two images in the batch."""
        count_C = torch.bincount(label_B, minlength=len(self.novel_C))
        (able_U,) = ((count_C > 1) & ~self.novel_C).nonzero(as_tuple=True)
        order_U = torch.randperm(len(able_U), generator=generator, device=label_B.device)
        pretended_C = torch.zeros_like(self.novel_C)
        pretended_C[able_U[order_U[: int(self.config.novel_fraction * len(able_U))]]] = True
        return pretended_C


def _first_half(label_B: torch.Tensor) -> torch.Tensor:
    """Which images are among the first half of their class's in the batch, rounded down."""
    return count_previous(label_B) < torch.bincount(label_B)[label_B] // 2


# Past gradients that a step of the solver looks back at.
HISTORY = 10


def softmax_regression(
    feature_ND: torch.Tensor, label_N: torch.Tensor, num_classes: int, *, decay: float, steps: int
) -> torch.Tensor:
    """Weights [C, E] that minimise cross-entropy + decay / 2 * |w|^2, in so many steps of L-BFGS from 0.

    Every class counts alike, however many images it has: the cross-entropy is the mean of the classes' means.
    """
    row_NE = with_one(feature_ND)
    count_C = torch.bincount(label_N, minlength=num_classes)
    share_N = 1 / (count_C[label_N] * (count_C > 0).sum())
    weight_CE = row_NE.new_zeros(num_classes, row_NE.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight_CE], max_iter=steps, history_size=HISTORY, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        term_N = F.cross_entropy(row_NE @ weight_CE.t(), label_N, reduction="none")
        value = (share_N * term_N).sum() + decay / 2 * weight_CE.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weight_CE.detach()


def with_one(feature_ND: torch.Tensor) -> torch.Tensor:
    """Features with a 1 behind them, [N, E]."""
    return F.pad(feature_ND, (0, 1), value=1.0)


class _ShotRegressionSettings(SecondStageSettings):
    """From classifiers of few images to those of many: 1, 2, 4, ... images in so many `levels`.

    Classifiers are fitted on the features by softmax regression with `decay` in `fit_steps` steps. The loss is the
    squared distance of the weights plus `answer_weight` times that of the answers.
    """

    levels: int = Field(5, ge=1, le=16)
    decay: float = Field(1e-3, gt=0)
    fit_steps: int = Field(30, ge=1)
    answer_weight: float = Field(1.0, ge=0)


class ShotRegression(FrozenBackboneMethod):
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
        config: _ShotRegressionSettings,
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
    def level(self, context: StepContext, generator: torch.Generator) -> int:
        """The level to learn from in this step."""

    @abstractmethod
    def answer_loss(self, logit_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        """The loss of the answers, a scalar."""

    @property
    def needs_dataset_pass(self) -> bool:
        return not self._bank.is_closed

    def observe(self, batch: TrainBatch) -> None:
        self._bank.add(GatheredFeatures.gather(self.features(batch.image_B3HW)), batch.label_B)

    def end_dataset_pass(self) -> None:
        """A resumed stage has its classifiers already."""
        self._bank.close()
        if self.many_CE.any():
            return
        self.many_CE.copy_(self._fit(self._bank.feature_ND, self._bank.label_N))
        generator = torch.Generator(self.many_CE.device).manual_seed(torch.initial_seed())
        for level in range(self.config.levels):
            at_C1 = (self.level_C == level)[:, None]
            if at_C1.any():
                self.few_CE.copy_(
                    torch.where(at_C1, self._fit(*self._bank.sample_per_class(2**level, generator)), self.few_CE)
                )

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = GatheredFeatures.gather(self.features(batch.image_B3HW))
        label_B = feature.batch_split.gather(batch.label_B)
        generator = context.generator(label_B.device, same_on_all_ranks=True)
        level = self.level(context, generator)
        few_CE = self._fit(*self._bank.sample_per_class(2**level, generator))
        enough_C = self.count_C >= 2 ** (level + 1)
        grown_UE, many_UE = self.grow(few_CE[enough_C], level), self.many_CE[enough_C]
        regression = (grown_UE - many_UE).square().sum() / many_UE.square().sum()
        weight_CE = self.many_CE.masked_scatter(enough_C[:, None], grown_UE)
        answers = self.answer_loss(with_one(feature.global_BD) @ weight_CE.t(), label_B)
        parts = {"regression_loss": regression.detach(), "answer_loss": answers.detach()}
        # Fewer images are harder to learn from: losses of different levels are not to be compared.
        parts["level"] = regression.new_tensor(level)
        return StepOutput(regression + self.config.answer_weight * answers, parts)

    def logits(self, image_B3HW: torch.Tensor) -> ClassifierLogits:
        feature = GatheredFeatures.gather(self.features(image_B3HW))
        weight_CE = self.weights()
        classes = ClassRange.local(len(weight_CE))
        own_CE = weight_CE[classes.first : classes.stop]
        return ClassifierLogits(
            feature.global_BD, ClassWeights(own_CE[:, :-1], own_CE[:, -1]), classes, feature.batch_split
        )

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


class ModelRegressionSettings(_ShotRegressionSettings):
    """One network of `hidden` numbers a layer maps the weights of any few images to those of many; hinge loss."""

    hidden: int = Field(256, ge=1)


@register_method("model_regression", ModelRegressionSettings)
class ModelRegression(ShotRegression):
    """A perceptron of two hidden layers; each step draws its level, the answers' loss is the hinge over all classes."""

    def __init__(
        self, config: ModelRegressionSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(config, network, num_classes, counts_C)
        self.transform = nn.Sequential(
            nn.Linear(self.length, config.hidden),
            nn.LeakyReLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.LeakyReLU(),
            nn.Linear(config.hidden, self.length),
        )

    def grow(self, weight_UE: torch.Tensor, level: int) -> torch.Tensor:
        return self.transform(weight_UE)

    def level(self, context: StepContext, generator: torch.Generator) -> int:
        return int(torch.randint(self.config.levels, (), generator=generator, device=generator.device))

    def answer_loss(self, logit_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        return F.multi_margin_loss(logit_BC, label_B)


class Doubling(nn.Module):
    """From weights of k images to those of 2 k: a residual block that begins as the identity."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.first = nn.Linear(length, length)
        self.second = nn.Linear(length, length)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, weight_UE: torch.Tensor) -> torch.Tensor:
        return weight_UE + self.second(F.leaky_relu(self.first(F.leaky_relu(weight_UE))))


class MetaModelNetSettings(_ShotRegressionSettings):
    """A chain of residual blocks, each doubling the images the weights are as if of; cross-entropy."""

    levels: int = Field(7, ge=1, le=16)


@register_method("meta_model_net", MetaModelNetSettings)
class MetaModelNet(ShotRegression):
    """Weights of 2^i images go through the blocks i, i + 1, ... to the last one, which leads to many.

    The blocks are trained one after another, from the last to the first, each for an equal part of the stage; those
    behind it stand still. The answers' loss is cross-entropy.
    """

    def __init__(
        self, config: MetaModelNetSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(config, network, num_classes, counts_C)
        self.blocks = nn.ModuleList(Doubling(self.length) for _ in range(config.levels))

    def grow(self, weight_UE: torch.Tensor, level: int) -> torch.Tensor:
        for block in self.blocks[level:]:
            weight_UE = block(weight_UE)
        return weight_UE

    def level(self, context: StepContext, generator: torch.Generator) -> int:
        """The block whose turn it is; the others get no gradient."""
        over = context.global_step * len(self.blocks) // (context.epochs * context.steps)
        active = len(self.blocks) - 1 - over
        for place, block in enumerate(self.blocks):
            block.requires_grad_(place == active)
        return active

    def answer_loss(self, logit_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logit_BC, label_B)
