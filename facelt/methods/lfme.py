"""LFME: learning from multiple experts, each trained on one shot band (Xiang et al., ECCV 2020).

B images of all ranks, E bands (many, medium, few), C classes, G classes of one band.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from facelt.config.base import NamedSettings
from facelt.config.registry import HEADS, LOSSES, SamplerName, register_method
from facelt.config.train import MethodSettings, StageConfig
from facelt.distributed.comm import BatchSplit
from facelt.errors import UserError
from facelt.losses.classification import LossConfig
from facelt.losses.experts import distillation_kl
from facelt.methods.base import Method, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.methods.classify import check_ldam_scale
from facelt.metrics.classification import SHOT_BANDS, shot_bands
from facelt.models.network import Network

_TEMPERATURE = 2.0
# An expert has full weight until the student reaches this fraction of its accuracy.
_FULL_WEIGHT_FRACTION = 0.3


class _ExpertLogits(NamedTuple):
    """Logits [B, G] of an expert for the classes [G] of its band."""

    band: int
    class_G: torch.Tensor
    logit_BG: torch.Tensor


class LfmeSettings(MethodSettings):
    """A student of experts: the stage's `teachers`, stages of the method classify with `shots`.

    `sampler` draws the images of an epoch, `head` is the student's classifier, trained by `loss`. `scale` multiplies
    the cosines of the head `cosine`.
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
            return "is not an expert: lfme needs stages of the method classify with shots: many, medium or few"
        return None

    @model_validator(mode="after")
    def _margins_fit_the_logits(self) -> "LfmeSettings":
        check_ldam_scale(self.loss, self.head, self.scale)
        return self


@register_method("lfme", LfmeSettings)
class Lfme(Method):
    """Loss: mean of v_i * loss_i over the images, plus w_e KL(expert || student's logits of its band) for each expert.

    - The divergence is over all images at temperature 2, without the factor T^2.
    - The weight w_e is 1 until the student reaches 0.3 of the expert's accuracy in its band, and then falls linearly to
      0 at equal accuracy. Accuracies are validation accuracies, updated each epoch. If the student or the expert has
      none, a case the released code does not cover, both are counted on the training batches of the last epoch.
    - The weight v_i is the confidence of the expert of the image's band, rescaled from its range within the class to
      [floor, 1]; it increases linearly to 1 over the epochs. The floor is 1 for few-shot classes, otherwise the mean
      number of images of few-shot classes over that of the band: 12/53 and 12/230 on ImageNet-LT. As in the paper, v_i
      weights the loss of the image and ends at 1; in the released code it multiplies the logits, reaches 1 after half
      of the epochs and exceeds it.
    - The range is over the training images of the class without augmentation; the confidence is that of the augmented
      image, clamped to the range. The released code uses the confidence of the image without augmentation.
    """

    def __init__(
        self, config: LfmeSettings, network: Network, num_classes: int, counts_C: torch.Tensor | None = None
    ) -> None:
        super().__init__(network)
        self.sampler = config.sampler
        options = {"scale": config.scale} if config.head == "cosine" else {}
        self.head = HEADS[config.head](network.dim, num_classes, **options)
        # Persistent buffers: resuming within a stage needs them.
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
            self.bands = [SHOT_BANDS[band] for band in band_C[counts_C > 0].unique().tolist()]
            self.register_buffer("band_C", band_C, persistent=False)
            self.register_buffer("by_band_C", band_C.argsort(stable=True), persistent=False)
            self.register_buffer("floor_C", weight_floors(counts_C, band_C), persistent=False)

    def sampler_specs(self) -> Sequence[SamplerSpec]:
        return (SamplerSpec(self.sampler),)

    def set_teachers(self, teachers: Sequence[Method]) -> None:
        """Sets the experts. Raises UserError unless there is one for each band with training images, in any order."""
        bands = [getattr(teacher, "shots", None) or "all" for teacher in teachers]
        if sorted(bands) != sorted(self.bands):
            raise UserError(
                f"teachers: lfme needs one stage of classify for each of method.shots: {', '.join(self.bands)}; "
                f"the given ones have shots: {', '.join(bands) or 'none'}"
            )
        for teacher in teachers:
            if teacher.head.classes.total != self.head.classes.total:
                raise UserError(
                    f"teachers: the {teacher.shots}-shot expert has {teacher.head.classes.total} classes, the data "
                    f"{self.head.classes.total}; name a stage trained on these data"
                )
        super().set_teachers(teachers)

    def begin_epoch(self, context: StepContext, validation: Mapping[str, float]) -> None:
        """Updates the weights of the experts; a resumed epoch keeps its weights."""
        if context.step or not context.epoch:
            return
        for teacher in self.teachers:
            band, figure = SHOT_BANDS.index(teacher.shots), f"validation_{teacher.shots}"
            student, expert = self.student_right_E[band].item(), self.expert_right_E[band].item()
            if figure in validation and figure in teacher.validation:
                student, expert = validation[figure], teacher.validation[figure]
            if expert:
                self.weight_E[band] = min(max((expert - student) / ((1 - _FULL_WEIGHT_FRACTION) * expert), 0.0), 1.0)
        self.student_right_E.zero_()
        self.expert_right_E.zero_()

    @property
    def needs_dataset_pass(self) -> bool:
        return not bool(self.ranged)

    def observe(self, batch: TrainBatch) -> None:
        """Extends the confidence ranges of the classes."""
        label_B = BatchSplit.gather_sizes(len(batch.label_B)).gather(batch.label_B)
        confidence_B = self._confidence(self._expert_logits(batch.image_B3HW), label_B)
        self.least_C.scatter_reduce_(0, label_B, confidence_B, "amin")
        self.most_C.scatter_reduce_(0, label_B, confidence_B, "amax")

    def end_dataset_pass(self) -> None:
        self.ranged.fill_(True)

    def step(self, batches: Sequence[TrainBatch], context: StepContext) -> StepOutput:
        (batch,) = batches
        feature = self.gathered_features(batch.image_B3HW)
        student_BC = self.head(feature).full_BC
        label_B = feature.batch_split.gather(batch.label_B)
        experts = self._expert_logits(batch.image_B3HW)
        weight_B = self._image_weights(self._confidence(experts, label_B), label_B, context.epoch_fraction)
        loss_B = self.loss.per_image(student_BC, label_B, context.generator(student_BC.device, same_on_all_ranks=True))
        instance_loss = (weight_B * loss_B).mean()
        expert_loss = sum(
            self.weight_E[expert.band]
            * distillation_kl(student_BC[:, expert.class_G], expert.logit_BG, _TEMPERATURE).mean()
            for expert in experts
        )
        prediction_B = student_BC.argmax(dim=1)
        return StepOutput(
            instance_loss + expert_loss,
            {"instance_loss": instance_loss.detach(), "expert_loss": expert_loss.detach()},
            after=lambda is_finite: self._count(prediction_B, experts, label_B, is_finite),
        )

    def diagnostics(self) -> Mapping[str, float]:
        """Returns the weight of each expert in the epoch."""
        weight_E = self.weight_E.tolist()
        return {f"weight_{teacher.shots}": weight_E[SHOT_BANDS.index(teacher.shots)] for teacher in self.teachers}

    @torch.no_grad()
    def _expert_logits(self, image_B3HW: torch.Tensor) -> list[_ExpertLogits]:
        """Returns the logits of each expert for the classes of its band."""
        classes = self.by_band_C.split(self.sizes)
        bands = [SHOT_BANDS.index(teacher.shots) for teacher in self.teachers]
        return [
            _ExpertLogits(band, classes[band], teacher.logits(image_B3HW).full_BC[:, classes[band]])
            for band, teacher in zip(bands, self.teachers, strict=True)
        ]

    def _confidence(self, experts: Sequence[_ExpertLogits], label_B: torch.Tensor) -> torch.Tensor:
        """Returns the probability [B] of the target class according to the expert of its band."""
        probability_BC = experts[0].logit_BG.new_zeros(len(label_B), len(self.band_C))
        for expert in experts:
            probability_BC[:, expert.class_G] = expert.logit_BG.softmax(dim=1)
        return probability_BC.gather(1, label_B[:, None])[:, 0]

    def _image_weights(self, confidence_B: torch.Tensor, label_B: torch.Tensor, epoch_fraction: float) -> torch.Tensor:
        """Returns the weights [B] of the images; 1 in a class whose images all have the same confidence."""
        least_B, most_B, floor_B = self.least_C[label_B], self.most_C[label_B], self.floor_C[label_B]
        relative_B = ((confidence_B - least_B) / (most_B - least_B)).clamp(0, 1)
        relative_B = torch.where(most_B > least_B, relative_B, torch.ones_like(relative_B))
        initial_B = floor_B + (1 - floor_B) * relative_B
        return initial_B + (1 - initial_B) * epoch_fraction

    def _count(
        self,
        prediction_B: torch.Tensor,
        experts: Sequence[_ExpertLogits],
        label_B: torch.Tensor,
        is_finite: torch.Tensor,
    ) -> None:
        """Counts the correct predictions of the student and the experts in each band."""
        band_BE = F.one_hot(self.band_C[label_B], len(SHOT_BANDS)) * is_finite
        self.student_right_E += (band_BE * (prediction_B == label_B)[:, None]).sum(dim=0)
        for expert in experts:
            expert_prediction_B = expert.class_G[expert.logit_BG.argmax(dim=1)]
            self.expert_right_E += (band_BE * (expert_prediction_B == label_B)[:, None]).sum(dim=0)


def weight_floors(counts_C: torch.Tensor, band_C: torch.Tensor) -> torch.Tensor:
    """Returns the minimum weight of each class, [C]: the smallest mean class size of any band over that of its band."""
    image_E = torch.bincount(band_C, counts_C.double(), minlength=len(SHOT_BANDS))
    mean_E = image_E / torch.bincount(band_C[counts_C > 0], minlength=len(SHOT_BANDS)).clamp_min(1)
    fewest = mean_E[mean_E > 0].min()
    return (fewest / mean_E.clamp_min(fewest))[band_C].to(torch.get_default_dtype())
