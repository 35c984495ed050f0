"""Few-shot methods: few-shot learning without forgetting, model regression, MetaModelNet.

B images of all ranks, N of a feature bank, E exemplars or D + 1 weights of a class with the bias last, Q queries, D
feature, C classes, U classes learned from.
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
from facelt.distributed.logits import ClassifierLogits, ClassWeights
from facelt.errors import UserError
from facelt.heads.memory import FeatureBank, count_previous
from facelt.methods.base import FrozenBackboneMethod, StepContext, StepOutput, TrainBatch
from facelt.models.network import Network

# The query layer starts as the identity plus noise of this standard deviation, as in the released code.
_NOISE = 0.001


class WeightGenerator(nn.Module):
    """w = phi_avg * mean_i f_i + phi_att * mean_i sum_b attention(phi_q f_i, key_b) w_b over exemplars i of a class.

    Exemplars and base weights are normalised. The attention is the softmax over the base classes of scale * cosine;
    phi_avg and phi_att have one factor per dimension. Source: Gidaris and Komodakis, CVPR 2018, section 3.2.
    """

    def __init__(self, dim: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        with torch.no_grad():
            self.query.weight.copy_(torch.eye(dim) + _NOISE * torch.randn(dim, dim))
            self.query.bias.zero_()
        self.key_CD = nn.Parameter(torch.randn(num_classes, dim) * (2 / dim) ** 0.5)
        self.scale = nn.Parameter(torch.tensor([scale]))
        self.average_D = nn.Parameter(torch.ones(dim))
        self.attention_D = nn.Parameter(torch.ones(dim))

    def forward(
        self,
        exemplar_ED: torch.Tensor,
        label_E: torch.Tensor,
        weight_CD: torch.Tensor,
        base_C: torch.Tensor,
        is_used_E: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns weights [C, D], 0 for classes without exemplars; only rows of `weight_CD` in `base_C` are used.

        With `is_used_E` the others of these images are no exemplars.
        """
        exemplar_ED = F.normalize(exemplar_ED)
        query_ED = F.normalize(self.query(exemplar_ED))
        score_EC = self.scale * query_ED @ F.normalize(self.key_CD).t()
        read_ED = score_EC.masked_fill(~base_C, -torch.inf).softmax(dim=1) @ F.normalize(weight_CD)
        made_ED = self.average_D * exemplar_ED + self.attention_D * read_ED
        one_E = torch.ones_like(label_E)
        if is_used_E is not None:
            made_ED, one_E = made_ED.masked_fill(~is_used_E[:, None], 0), is_used_E.long()
        count_C1 = label_E.new_zeros(len(weight_CD)).index_add(0, label_E, one_E).clamp_min(1)[:, None]
        return torch.zeros_like(weight_CD).index_add(0, label_E, made_ED) / count_C1


class FslwfSettings(SecondStageSettings):
    """Split into base and novel classes, and the training episodes.

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
    """Few-shot learning without forgetting (Gidaris and Komodakis, Dynamic Few-Shot Visual Learning, CVPR 2018).

    A cosine classifier, in which the weights of novel classes are generated from their training images. Each step is an
    episode from a class-aware batch: some of its base classes are treated as novel; the first half of their images are
    the exemplars from which their weights are generated, without attention to these classes; all other images of base
    classes are queries. Images of novel classes are ignored. Every rank computes the whole episode. The bias of the
    paper, one number for all classes, does not affect predictions and is omitted.

    OLTR compares with this method without stating base and novel classes; by default few-shot classes are novel here.
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
        """Loads the cosine head. Raises UserError if the earlier stage has none."""
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
        self._bank.add(self.gathered_features(batch.image_B3HW), batch.label_B, self.novel_C)

    def end_dataset_pass(self) -> None:
        self._bank.close()
        self.end_epoch()

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Generates the weights of the novel classes from all their training images."""
        bank = self._bank
        self.generated_CD.copy_(self.generator(bank.feature_ND, bank.label_N, self.weight_CD, ~self.novel_C))

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = self.gathered_features(batch.image_B3HW)
        label_B = feature.batch_split.gather(batch.label_B)
        generator = context.generator(label_B.device, same_on_all_ranks=True)
        kept_BD = torch.rand(feature.global_BD.shape, generator=generator, device=label_B.device) >= self.config.dropout
        feature_BD = feature.global_BD * kept_BD / (1 - self.config.dropout)
        count_C = label_B.new_zeros(len(self.novel_C)).index_add_(0, label_B, torch.ones_like(label_B))
        pseudo_novel_C = self._sample_pseudo_novel(count_C, generator)
        # The first half of the images of a class, rounded down.
        exemplar_B = pseudo_novel_C[label_B] & (count_previous(label_B) < count_C[label_B] // 2)
        query_B = ~self.novel_C[label_B] & ~exemplar_B
        base_C = ~self.novel_C & ~pseudo_novel_C
        generated_CD = self.generator(feature_BD, label_B, self.weight_CD, base_C, exemplar_B)
        weight_CD = torch.where(pseudo_novel_C[:, None], generated_CD, self.weight_CD)
        # Images that are no queries get some base class as target; their losses are masked.
        target_B = torch.where(query_B, label_B, (~self.novel_C).long().argmax())
        cosine_BC = F.normalize(feature_BD) @ F.normalize(weight_CD).t()
        logit_BC = (self.scale * cosine_BC).masked_fill(self.novel_C, -torch.inf)
        loss_B = F.cross_entropy(logit_BC, target_B, reduction="none").masked_fill(~query_B, 0)
        return StepOutput(loss_B.sum() / query_B.sum().clamp_min(1))

    def logits(self, image_B3HW: torch.Tensor) -> ClassifierLogits:
        feature = self.gathered_features(image_B3HW)
        weight_CD = torch.where(self.novel_C[:, None], self.generated_CD, self.weight_CD)
        classes = ClassRange.local(len(weight_CD))
        weights = ClassWeights(weight_CD[classes.first : classes.stop], normalize=True)
        return ClassifierLogits(self.scale * F.normalize(feature.global_BD), weights, classes, feature.batch_split)

    def _sample_pseudo_novel(self, count_C: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Samples classes to treat as novel, bool [C], among base classes with two or more images in the batch."""
        candidate_C = (count_C > 1) & ~self.novel_C
        priority_C = torch.rand(count_C.shape, generator=generator, device=count_C.device)
        rank_C = priority_C.masked_fill_(~candidate_C, -1).argsort(descending=True).argsort()
        return candidate_C & (rank_C < (self.config.novel_fraction * candidate_C.sum().double()).floor())


_LBFGS_HISTORY = 10


def softmax_regression(
    feature_ND: torch.Tensor, label_N: torch.Tensor, num_classes: int, *, decay: float, steps: int
) -> torch.Tensor:
    """Returns weights [C, E] that minimise cross-entropy + decay / 2 * |w|^2, by `steps` L-BFGS steps from 0.

    The cross-entropy is the mean of the class means: all classes have equal weight.
    """
    row_NE = append_one(feature_ND)
    count_C = torch.bincount(label_N, minlength=num_classes)
    weight_N = 1 / (count_C[label_N] * (count_C > 0).sum())
    weight_CE = row_NE.new_zeros(num_classes, row_NE.shape[1], requires_grad=True)
    options = {"max_iter": steps, "history_size": _LBFGS_HISTORY, "line_search_fn": "strong_wolfe"}
    optimiser = torch.optim.LBFGS([weight_CE], **options)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        loss_N = F.cross_entropy(row_NE @ weight_CE.t(), label_N, reduction="none")
        value = (weight_N * loss_N).sum() + decay / 2 * weight_CE.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weight_CE.detach()


def append_one(feature_ND: torch.Tensor) -> torch.Tensor:
    """Returns the features with a trailing 1, [N, E]."""
    return F.pad(feature_ND, (0, 1), value=1.0)


class ShotRegressionSettings(SecondStageSettings):
    """`levels` is the number of few-shot levels: 1, 2, 4, ... images per class.

    Classifiers are fitted by softmax regression with weight decay `decay` in `fit_steps` steps. The loss is the squared
    distance of the weights plus `classification_weight` times the classification loss.
    """

    levels: int = Field(5, ge=1, le=16)
    decay: float = Field(1e-3, gt=0)
    fit_steps: int = Field(30, ge=1)
    classification_weight: float = Field(1.0, ge=0)


class ShotRegression(FrozenBackboneMethod):
    """Base class: regression from classifiers fitted to 2^level images per class to those fitted to all images.

    All classifiers are softmax regressions on the features: the many-shot one is fitted to all training images, the
    few-shot ones to 2^level images per class. A step samples such images, fits them, and trains on the classes with at
    least twice that number: |predicted - many|^2 / |many|^2 plus the classification loss of the batch with predicted
    weights for these classes and many-shot weights for the others. At inference, a class with fewer than 2^levels
    images uses weights predicted from the largest 2^level of its images, the others their many-shot weights. Every rank
    computes everything.

    The settings of the papers for long-tailed sets are not published: fits, episodes and scaling are our own.
    """

    many_CE: torch.Tensor
    few_CE: torch.Tensor
    level_C: torch.Tensor
    count_C: torch.Tensor

    def __init__(
        self,
        config: ShotRegressionSettings,
        network: Network,
        num_classes: int,
        counts_C: torch.Tensor | None,
    ) -> None:
        super().__init__(network)
        self.config = config
        self.length = network.dim + 1
        if counts_C is not None and counts_C.max() < 2**config.levels:
            raise UserError(
                f"levels: {config.levels} levels need classes of {2**config.levels} training images, but the largest "
                f"class has {int(counts_C.max())}; lower levels"
            )
        counts_C = torch.zeros(num_classes, dtype=torch.int64) if counts_C is None else counts_C.clone()
        self.register_buffer("count_C", counts_C, persistent=False)
        level_C = counts_C.clamp_min(1).double().log2().floor().long().clamp_max(config.levels)
        # Classes without images have no few-shot weights.
        self.register_buffer("level_C", torch.where(counts_C > 0, level_C, config.levels))
        self.register_buffer("many_CE", torch.zeros(num_classes, self.length))
        self.register_buffer("few_CE", torch.zeros(num_classes, self.length))
        self._bank = FeatureBank()

    @abstractmethod
    def predict_weights(self, weight_UE: torch.Tensor, level: int) -> torch.Tensor:
        """Returns the many-shot weights predicted from weights fitted to 2^level images."""

    @abstractmethod
    def level(self, context: StepContext, generator: torch.Generator) -> int:
        """Returns the level to train in this step."""

    @abstractmethod
    def classification_loss(self, logit_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        """Returns the classification loss, a scalar."""

    @property
    def needs_dataset_pass(self) -> bool:
        return not self._bank.is_closed

    def observe(self, batch: TrainBatch) -> None:
        self._bank.add(self.gathered_features(batch.image_B3HW), batch.label_B)

    def end_dataset_pass(self) -> None:
        """Fits the classifiers; a resumed stage has loaded them."""
        self._bank.close()
        if self.many_CE.any():
            return
        self.many_CE.copy_(self._fit(self._bank.feature_ND, self._bank.label_N))
        generator = torch.Generator(self.many_CE.device).manual_seed(torch.initial_seed())
        for level in range(self.config.levels):
            is_level_C1 = (self.level_C == level)[:, None]
            if is_level_C1.any():
                fitted_CE = self._fit(*self._bank.sample_per_class(2**level, generator))
                self.few_CE.copy_(torch.where(is_level_C1, fitted_CE, self.few_CE))

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = self.gathered_features(batch.image_B3HW)
        label_B = feature.batch_split.gather(batch.label_B)
        generator = context.generator(label_B.device, same_on_all_ranks=True)
        level = self.level(context, generator)
        few_CE = self._fit(*self._bank.sample_per_class(2**level, generator))
        enough_C = self.count_C >= 2 ** (level + 1)
        predicted_UE, many_UE = self.predict_weights(few_CE[enough_C], level), self.many_CE[enough_C]
        regression = (predicted_UE - many_UE).square().sum() / many_UE.square().sum()
        weight_CE = self.many_CE.masked_scatter(enough_C[:, None], predicted_UE)
        classification = self.classification_loss(append_one(feature.global_BD) @ weight_CE.t(), label_B)
        parts = {"regression_loss": regression.detach(), "classification_loss": classification.detach()}
        # Losses of different levels are not comparable: fewer images are harder to learn from.
        parts["level"] = regression.new_tensor(level)
        return StepOutput(regression + self.config.classification_weight * classification, parts)

    def logits(self, image_B3HW: torch.Tensor) -> ClassifierLogits:
        feature = self.gathered_features(image_B3HW)
        weight_CE = self.weights()
        classes = ClassRange.local(len(weight_CE))
        local_CE = weight_CE[classes.first : classes.stop]
        return ClassifierLogits(
            feature.global_BD, ClassWeights(local_CE[:, :-1], local_CE[:, -1]), classes, feature.batch_split
        )

    def weights(self) -> torch.Tensor:
        """Returns the weights of the classifier used for prediction, [C, E]."""
        weight_CE = self.many_CE
        for level in range(self.config.levels):
            is_level_C1 = (self.level_C == level)[:, None]
            weight_CE = torch.where(is_level_C1, self.predict_weights(self.few_CE, level), weight_CE)
        return weight_CE

    def _fit(self, feature_ND: torch.Tensor, label_N: torch.Tensor) -> torch.Tensor:
        settings = {"decay": self.config.decay, "steps": self.config.fit_steps}
        return softmax_regression(feature_ND, label_N, len(self.many_CE), **settings)


class ModelRegressionSettings(ShotRegressionSettings):
    """`hidden` is the width of the regression network."""

    hidden: int = Field(256, ge=1)


@register_method("model_regression", ModelRegressionSettings)
class ModelRegression(ShotRegression):
    """Model regression (Wang and Hebert, Learning to Learn, ECCV 2016): one network for all levels.

    It is a perceptron with two hidden layers. Each step samples a level; the classification loss is the multi-class
    hinge loss.
    """

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

    def predict_weights(self, weight_UE: torch.Tensor, level: int) -> torch.Tensor:
        return self.transform(weight_UE)

    def level(self, context: StepContext, generator: torch.Generator) -> int:
        return int(torch.randint(self.config.levels, (), generator=generator, device=generator.device))

    def classification_loss(self, logit_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        return F.multi_margin_loss(logit_BC, label_B)


class ResidualBlock(nn.Module):
    """Maps weights of k images to weights of 2 k images; initially the identity."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.first = nn.Linear(length, length)
        self.second = nn.Linear(length, length)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, weight_UE: torch.Tensor) -> torch.Tensor:
        return weight_UE + self.second(F.leaky_relu(self.first(F.leaky_relu(weight_UE))))


class MetaModelNetSettings(ShotRegressionSettings):
    """`levels` is also the number of residual blocks."""

    levels: int = Field(7, ge=1, le=16)


@register_method("meta_model_net", MetaModelNetSettings)
class MetaModelNet(ShotRegression):
    """MetaModelNet (Wang, Ramanan and Hebert, Learning to Model the Tail, NIPS 2017): a chain of residual blocks.

    Each block maps weights of k images to those of 2 k; weights of 2^i images pass through the blocks i, i + 1, ... The
    blocks are trained from the last to the first, each for an equal part of the stage, with the later blocks frozen.
    The classification loss is cross-entropy.
    """

    def __init__(
        self, config: MetaModelNetSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(config, network, num_classes, counts_C)
        self.blocks = nn.ModuleList(ResidualBlock(self.length) for _ in range(config.levels))

    def predict_weights(self, weight_UE: torch.Tensor, level: int) -> torch.Tensor:
        for block in self.blocks[level:]:
            weight_UE = block(weight_UE)
        return weight_UE

    def level(self, context: StepContext, generator: torch.Generator) -> int:
        """Returns the level of the block to train and freezes the others."""
        finished = context.global_step * len(self.blocks) // (context.epochs * context.steps)
        active = len(self.blocks) - 1 - finished
        for index, block in enumerate(self.blocks):
            block.requires_grad_(index == active)
        return active

    def classification_loss(self, logit_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logit_BC, label_B)
