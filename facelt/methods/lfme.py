"""LFME: one student of several experts, each of a group of classes with alike many images (Xiang et al., ECCV 2020).

B images of all ranks, E groups (many, medium, few), C classes, G classes of one group.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from facelt.config.base import NamedSettings
from facelt.config.registry import HEADS, LOSSES, SamplerName, register_method
from facelt.config.train import MethodSettings, StageConfig
from facelt.distributed.comm import BatchSplit
from facelt.distributed.logits import GatheredFeatures, ShardedLogits
from facelt.errors import UserError
from facelt.losses.classification import LossConfig
from facelt.losses.experts import distillation_kl
from facelt.methods.base import Method, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.methods.classify import check_scale
from facelt.metrics.classification import SHOT_BANDS, shot_bands
from facelt.models.network import Network

TEMPERATURE = 2.0
# Up to this share of the expert's accuracy the student follows it with full weight.
FOLLOWED = 0.3


class _Answer(NamedTuple):
    """An expert's logits [B, G] of its group's classes [G]."""

    group: int
    class_G: torch.Tensor
    logit_BG: torch.Tensor


class LfmeSettings(MethodSettings):
    """LFME: a student of experts, the stage's `teachers`, each trained on many-, medium- or few-shot classes alone.

    These are stages of the method classify with `shots`. `scale` belongs to the head `cosine`.
    """

    sampler: SamplerName = "class_aware"
    head: Literal["linear", "cosine"] = "linear"
    scale: float = Field(16.0, gt=0)
    loss: LossConfig = NamedSettings(name="softmax")

    @property
    def num_teachers(self) -> range:
        return range(1, 4)

    def teacher_error(self, stage: StageConfig) -> str | None:
        if getattr(stage.method, "shots", None) is None:
            return "is no expert: lfme learns from stages of the method classify with shots: many, medium or few"
        return None

    @model_validator(mode="after")
    def _margins_fit_the_logits(self) -> "LfmeSettings":
        check_scale(self.loss, self.head, self.scale)
        return self


@register_method("lfme", LfmeSettings)
class Lfme(Method):
    """mean v_i * loss_i of the images, plus for every expert w_e KL(expert || student's logits of its group).

    - The divergence is at temperature 2, of all images, without T^2.
    - w_e is 1 up to 0.3 of the expert's accuracy in its group and falls from there, linearly in the student's, to 0
      where both are equal. Accuracies are of the validation images, renewed each epoch. Where student or expert had
      none, which is not foreseen in the released code, both are counted on the last epoch's training batches, the
      student's as it learns.
    - v_i is the confidence of the image's own expert, mapped from its range in the class to floor ... 1, and moves from
      there linearly to 1 over the epochs. Floors are 1 for few shots, otherwise the few-shot classes' mean number of
      images over the group's: 12/53 and 12/230 on ImageNet-LT. As in the paper it weighs the image's loss and ends at
      1; in the released code it multiplies the logits, is 1 after half of the epochs and rises above it.
    - The range is that of the class's training images without augmentation, the confidence that of the image as the
      student sees it, clamped to the range; the released code keeps each image's confidence without augmentation.
    """

    def __init__(
        self, config: LfmeSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.sampler = config.sampler
        options = {"scale": config.scale} if config.head == "cosine" else {}
        self.head = HEADS[config.head](network.dim, num_classes, **options)
        # All that a stage must not forget where it goes on.
        self.register_buffer("ranged", torch.tensor(False))
        self.register_buffer("least_C", torch.ones(num_classes))
        self.register_buffer("most_C", torch.zeros(num_classes))
        self.register_buffer("weight_E", torch.ones(len(SHOT_BANDS)))
        self.register_buffer("student_right_E", torch.zeros(len(SHOT_BANDS), dtype=torch.int64))
        self.register_buffer("expert_right_E", torch.zeros(len(SHOT_BANDS), dtype=torch.int64))
        if counts_C is not None:
            self.loss = LOSSES[config.loss.name](counts_C, **config.loss.options)
            band_C = torch.from_numpy(shot_bands(counts_C.numpy(), "paper"))
            self.sizes = torch.bincount(band_C, minlength=len(SHOT_BANDS)).tolist()
            self.groups = [SHOT_BANDS[group] for group in band_C[counts_C > 0].unique().tolist()]
            self.register_buffer("band_C", band_C, persistent=False)
            self.register_buffer("by_band_C", band_C.argsort(stable=True), persistent=False)
            self.register_buffer("floor_C", floors(counts_C, band_C), persistent=False)

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec(self.sampler),)

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"network": list(self.network.parameters()), "head": list(self.head.parameters())}

    def set_teachers(self, teachers: Sequence[Method]) -> None:
        """Raises UserError unless there is one expert for each group that has images, in any order."""
        found = [getattr(teacher, "shots", None) or "all" for teacher in teachers]
        if sorted(found) != sorted(self.groups):
            raise UserError(
                f"teachers: lfme learns from one stage of classify for each of method.shots: {', '.join(self.groups)}; "
                f"here they are of the shots: {', '.join(found) or 'none'}"
            )
        for teacher in teachers:
            if teacher.head.classes.total != self.head.classes.total:
                raise UserError(
                    f"teachers: the expert of {teacher.shots} shots knows {teacher.head.classes.total} classes, the "
                    f"data have {self.head.classes.total}; name a stage trained on these data"
                )
        super().set_teachers(teachers)

    def begin_epoch(self, context: StepContext, validation: Mapping[str, float]) -> None:
        """Weighs the experts anew; an epoch that goes on keeps what it began with."""
        if context.step or not context.epoch:
            return
        for teacher in self.teachers:
            group, figure = SHOT_BANDS.index(teacher.shots), f"validation_{teacher.shots}"
            student, expert = self.student_right_E[group].item(), self.expert_right_E[group].item()
            if figure in validation and figure in teacher.validation:
                student, expert = validation[figure], teacher.validation[figure]
            if expert:
                self.weight_E[group] = min(max((expert - student) / ((1 - FOLLOWED) * expert), 0.0), 1.0)
        self.student_right_E.zero_()
        self.expert_right_E.zero_()

    @property
    def needs_dataset_pass(self) -> bool:
        return not bool(self.ranged)

    def observe(self, batch: TrainBatch) -> None:
        """Widens the classes' ranges of confidence."""
        label_B = BatchSplit.gather_sizes(len(batch.label_B), batch.label_B.device).gather(batch.label_B)
        confidence_B = self._confidence(self._answers(batch.image_B3HW), label_B)
        self.least_C.scatter_reduce_(0, label_B, confidence_B, "amin")
        self.most_C.scatter_reduce_(0, label_B, confidence_B, "amax")

    def end_dataset_pass(self) -> None:
        self.ranged.fill_(True)

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = GatheredFeatures.gather(self.features(batch.image_B3HW))
        student_BC = self.head(feature).full_BC
        label_B = feature.batch_split.gather(batch.label_B)
        answers = self._answers(batch.image_B3HW)
        pace_B = self._pace(self._confidence(answers, label_B), label_B, context.epoch_fraction)
        term_B = self.loss.per_image(student_BC, label_B, context.generator(student_BC.device, same_on_all_ranks=True))
        learnt = (pace_B * term_B).mean()
        followed = sum(
            self.weight_E[answer.group]
            * distillation_kl(student_BC[:, answer.class_G], answer.logit_BG, TEMPERATURE).mean()
            for answer in answers
        )
        said_B = student_BC.argmax(dim=1)
        return StepOutput(
            learnt + followed,
            {"instance_loss": learnt.detach(), "expert_loss": followed.detach()},
            after=lambda: self._count(said_B, answers, label_B),
        )

    def logits(self, image_B3HW: torch.Tensor) -> ShardedLogits:
        return self.head(GatheredFeatures.gather(self.features(image_B3HW)))

    def diagnostics(self) -> Mapping[str, float]:
        """How much each expert weighed in the epoch."""
        weight_E = self.weight_E.tolist()
        return {f"weight_{teacher.shots}": weight_E[SHOT_BANDS.index(teacher.shots)] for teacher in self.teachers}

    @torch.no_grad()
    def _answers(self, image_B3HW: torch.Tensor) -> list[_Answer]:
        """What each expert says of the images, of its own group's classes alone."""
        classes = self.by_band_C.split(self.sizes)
        groups = [SHOT_BANDS.index(teacher.shots) for teacher in self.teachers]
        return [
            _Answer(group, classes[group], teacher.logits(image_B3HW).full_BC[:, classes[group]])
            for group, teacher in zip(groups, self.teachers, strict=True)
        ]

    def _confidence(self, answers: Sequence[_Answer], label_B: torch.Tensor) -> torch.Tensor:
        """The probability [B] of each image's class by the expert of that class's group."""
        share_BC = answers[0].logit_BG.new_zeros(len(label_B), len(self.band_C))
        for answer in answers:
            share_BC[:, answer.class_G] = answer.logit_BG.softmax(dim=1)
        return share_BC.gather(1, label_B[:, None])[:, 0]

    def _pace(self, confidence_B: torch.Tensor, label_B: torch.Tensor, over: float) -> torch.Tensor:
        """The images' weights [B] when that share of the stage is over; 1 in a class whose images are all alike."""
        least_B, most_B, floor_B = self.least_C[label_B], self.most_C[label_B], self.floor_C[label_B]
        place_B = ((confidence_B - least_B) / (most_B - least_B)).clamp(0, 1)
        place_B = torch.where(most_B > least_B, place_B, torch.ones_like(place_B))
        first_B = floor_B + (1 - floor_B) * place_B
        return first_B + (1 - first_B) * over

    def _count(self, said_B: torch.Tensor, answers: Sequence[_Answer], label_B: torch.Tensor) -> None:
        """Notes how many images of each group the student and the expert had right."""
        group_BE = F.one_hot(self.band_C[label_B], len(SHOT_BANDS))
        self.student_right_E += group_BE[said_B == label_B].sum(dim=0)
        for answer in answers:
            expert_said_B = answer.class_G[answer.logit_BG.argmax(dim=1)]
            self.expert_right_E += group_BE[expert_said_B == label_B].sum(dim=0)


def floors(counts_C: torch.Tensor, band_C: torch.Tensor) -> torch.Tensor:
    """The least weight of an image of each class, [C]: the fewest images a class of any group over the own group's."""
    image_E = torch.bincount(band_C, counts_C.double(), minlength=len(SHOT_BANDS))
    mean_E = image_E / torch.bincount(band_C[counts_C > 0], minlength=len(SHOT_BANDS)).clamp_min(1)
    fewest = mean_E[mean_E > 0].min()
    return (fewest / mean_E.clamp_min(fewest))[band_C].to(torch.get_default_dtype())
