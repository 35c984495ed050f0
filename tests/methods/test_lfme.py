"""LFME: its step against the loss computed image by image, and the weights of experts and images.

B images, C classes.
"""

import math

import pytest
import torch
from torch import nn

from facelt.config.registry import METHODS
from facelt.errors import UserError
from facelt.methods.base import StepContext, TrainBatch
from facelt.methods.classify import ClassifySettings
from facelt.methods.lfme import LfmeSettings, weight_floors
from tests.methods.small import run_dataset_passes, small_network

# Two classes of many shots, two of medium, two of few.
COUNTS = torch.tensor([150, 110, 60, 40, 16, 8])
GROUPS = {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}
MEAN = {"many": 130, "medium": 50, "few": 12}
CLASSES, DIM, EPOCHS = 6, 4, 10


def expert(shots: str | None, classes: int = CLASSES) -> nn.Module:
    config = ClassifySettings(name="classify", shots=shots)
    method = METHODS["classify"](config, small_network(DIM), classes).double()
    torch.manual_seed(len(shots or ""))
    for parameter in method.parameters():
        nn.init.normal_(parameter)
    return method.eval().requires_grad_(False)


def lfme(teachers=("many", "medium", "few"), counts_C=COUNTS, **config) -> nn.Module:
    method = METHODS["lfme"](LfmeSettings(name="lfme", **config), small_network(DIM), CLASSES, counts_C).double().eval()
    method.set_teachers([expert(shots) for shots in teachers])
    return method


def images(count: int, seed: int) -> TrainBatch:
    random = torch.Generator().manual_seed(seed)
    image_B = torch.randn(count, 3, 2, 2, generator=random, dtype=torch.float64)
    return TrainBatch(image_B, torch.arange(count) % CLASSES)


def at(epoch: int, step: int = 0) -> StepContext:
    return StepContext(epoch, EPOCHS, step, 2)


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


def group_of(label: int) -> str:
    return next(name for name, classes in GROUPS.items() if label in classes)


def confidence(method: nn.Module, image, label: int) -> float:
    """Returns the label's probability by the image's expert, among that expert's classes."""
    group = group_of(label)
    teacher = next(teacher for teacher in method.teachers if teacher.shots == group)
    logits = teacher.logits(image[None]).full_BC[0].tolist()
    return softmax([logits[c] for c in GROUPS[group]])[GROUPS[group].index(label)]


def ranges(method: nn.Module, shown: TrainBatch) -> list[tuple[float, float]]:
    confidences = [[] for _ in range(CLASSES)]
    for image, label in zip(*shown, strict=True):
        confidences[label].append(confidence(method, image, int(label)))
    return [(min(values), max(values)) for values in confidences]


def instance_weight(method: nn.Module, image, label: int, shown: TrainBatch, over: float) -> float:
    least, most = ranges(method, shown)[label]
    position = min(max((confidence(method, image, label) - least) / (most - least), 0), 1)
    floor = MEAN["few"] / MEAN[group_of(label)]
    first = floor + (1 - floor) * position
    return first + (1 - first) * over


@pytest.mark.parametrize("order", [("many", "medium", "few"), ("few", "many", "medium")])
@pytest.mark.parametrize("epoch", [0, 7])
def test_the_loss_is_weighed_images_and_experts_of_their_groups(epoch, order):
    method, shown, batch = lfme(order), images(24, seed=1), images(9, seed=2)
    run_dataset_passes(method, shown)
    method.eval()
    weights = {"many": 0.3, "medium": 1.0, "few": 0.6}
    method.weight_E.copy_(torch.tensor(list(weights.values()), dtype=torch.float64))
    own = followed = 0.0
    for image, label in zip(batch.image_B3HW, batch.label_B.tolist(), strict=True):
        student = method.logits(image[None]).full_BC[0].tolist()
        v = instance_weight(method, image, label, shown, over=epoch / EPOCHS)
        own -= v * math.log(softmax(student)[label])
        for teacher in method.teachers:
            teacher_logits, classes = teacher.logits(image[None]).full_BC[0].tolist(), GROUPS[teacher.shots]
            p, q = (softmax([logits[c] / 2 for c in classes]) for logits in (teacher_logits, student))
            followed += weights[teacher.shots] * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    output = method.step([batch], at(epoch))
    assert output.loss.item() == pytest.approx((own + followed) / 9, rel=1e-7)
    assert output.parts["instance_loss"].item() == pytest.approx(own / 9, rel=1e-7)
    assert output.parts["expert_loss"].item() == pytest.approx(followed / 9, rel=1e-7)


def test_another_loss_is_weighed_image_by_image():
    shown, batch = images(24, seed=1), images(9, seed=2)
    method = lfme(head="cosine", scale=8.0, loss={"name": "ldam", "scale": 8.0})
    run_dataset_passes(method, shown)
    method.eval()
    method.weight_E.zero_()
    margin = [8 * 0.5 * (8 / n) ** 0.25 for n in COUNTS.tolist()]
    expected = 0.0
    for image, label in zip(batch.image_B3HW, batch.label_B.tolist(), strict=True):
        logits = method.logits(image[None]).full_BC[0].tolist()
        logits[label] -= margin[label]
        expected -= instance_weight(method, image, label, shown, over=0) * math.log(softmax(logits)[label])
    assert method.step([batch], at(0)).loss.item() == pytest.approx(expected / 9, rel=1e-6)


def test_the_pass_finds_each_classs_range_once():
    method, shown = lfme(), images(24, seed=1)
    assert method.needs_dataset_pass
    run_dataset_passes(method, shown)
    assert not method.needs_dataset_pass
    result = list(zip(method.least_C.tolist(), method.most_C.tolist(), strict=True))
    assert result == [pytest.approx(pair, rel=1e-12) for pair in ranges(method, shown)]


def test_images_of_equal_confidence_count_fully():
    method, shown = lfme(), images(CLASSES, seed=1)
    run_dataset_passes(method, shown)
    method.eval()
    method.weight_E.zero_()
    logits_BC = method.logits(shown.image_B3HW).full_BC
    expected = nn.functional.cross_entropy(logits_BC, shown.label_B)
    torch.testing.assert_close(method.step([shown], at(0)).loss, expected)


def test_floors_are_those_of_imagenet_lt():
    """12, 53 and 230 images a class on average; a class without images has no part in its group's mean."""
    counts = torch.tensor([200, 260, 50, 56, 10, 14, 0])
    floors = weight_floors(counts, torch.tensor([0, 0, 1, 1, 2, 2, 2])).tolist()
    assert floors == pytest.approx([12 / 230] * 2 + [12 / 53] * 2 + [1, 1, 1])


@pytest.mark.parametrize(
    ("student", "weight"), [(0.0, 1), (0.14, 1), (0.15, 1), (0.325, 0.5), (0.465, 0.1), (0.5, 0), (0.6, 0)]
)
def test_an_expert_weighs_less_as_the_student_comes_near(student, weight):
    method = lfme()
    for teacher in method.teachers:
        teacher.validation = {"validation_accuracy": 0.1, f"validation_{teacher.shots}": 0.5}
    method.begin_epoch(at(1), {"validation_accuracy": 0.9, "validation_medium": student})
    # Nothing is known of the two other groups.
    assert method.weight_E.tolist() == pytest.approx([1, weight, 1])
    assert method.diagnostics() == pytest.approx({"weight_many": 1, "weight_medium": weight, "weight_few": 1})


def test_an_expert_that_is_never_right_is_not_divided_by():
    method = lfme()
    method.teachers[0].validation = {"validation_many": 0.0}
    method.begin_epoch(at(1), {"validation_many": 0.0})
    assert method.weight_E.isfinite().all()


def test_without_validation_both_are_counted_on_the_epochs_batches():
    method = lfme()
    run_dataset_passes(method, images(24, seed=1))
    method.eval()
    right = {group: [0, 0] for group in GROUPS}
    for step in range(3):
        batch = images(40, seed=10 + step)
        predicted = method.logits(batch.image_B3HW).full_BC.argmax(dim=1).tolist()
        for index, label in enumerate(batch.label_B.tolist()):
            group = group_of(label)
            (teacher,) = (teacher for teacher in method.teachers if teacher.shots == group)
            logits = teacher.logits(batch.image_B3HW[index : index + 1]).full_BC[0].tolist()
            right[group][0] += predicted[index] == label
            right[group][1] += max(GROUPS[group], key=lambda c, logits=logits: logits[c]) == label
        output = method.step([batch], at(0, step))
        output.loss.backward()
        output.after(torch.tensor(True))
    # A resumed epoch keeps its weights and counts.
    method.begin_epoch(at(0, step=1), {})
    assert method.student_right_E.tolist() == [student for student, _ in right.values()]
    assert method.expert_right_E.tolist() == [taught for _, taught in right.values()]
    assert method.weight_E.tolist() == [1, 1, 1]
    method.begin_epoch(at(1), {})
    expected = [min(max((taught - student) / (0.7 * taught), 0), 1) for student, taught in right.values()]
    assert method.weight_E.tolist() == pytest.approx(expected)
    assert len({round(weight, 3) for weight in expected}) > 1
    assert not method.student_right_E.any()
    assert not method.expert_right_E.any()


def test_a_step_that_is_not_taken_is_not_counted():
    method = lfme()
    run_dataset_passes(method, images(24, seed=1))
    method.step([images(12, seed=2)], at(0))
    assert not method.expert_right_E.any()


def test_teachers_are_no_part_of_the_student_and_do_not_move():
    method = lfme()
    run_dataset_passes(method, images(24, seed=1))
    before = [parameter.clone() for teacher in method.teachers for parameter in teacher.parameters()]
    method.step([images(12, seed=2)], at(0)).loss.backward()
    after = [parameter for teacher in method.teachers for parameter in teacher.parameters()]
    assert all(torch.equal(*pair) and pair[1].grad is None for pair in zip(before, after, strict=True))
    grouped = [parameter for group in method.parameter_groups().values() for parameter in group]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in method.parameters()}
    assert not {id(parameter) for parameter in grouped} & {id(parameter) for parameter in after}
    noted = {"ranged", "least_C", "most_C", "weight_E", "student_right_E", "expert_right_E"}
    assert {name.partition(".")[0] for name in method.state_dict()} == {"network", "head", *noted}


def test_a_student_is_used_without_counts_and_teachers():
    trained = lfme()
    copy = METHODS["lfme"](LfmeSettings(name="lfme"), small_network(DIM), CLASSES).double().eval()
    copy.load_state_dict(trained.state_dict())
    image_B = images(5, seed=3).image_B3HW
    assert torch.equal(copy.logits(image_B).full_BC, trained.logits(image_B).full_BC)


@pytest.mark.parametrize(
    ("teachers", "shots"),
    [
        ((), "none"),
        (("many", "few"), "many, few"),
        (("many", "medium", "few", "few"), "many, medium, few, few"),
        (("many", "medium", None), "many, medium, all"),
    ],
)
def test_other_teachers_than_one_for_each_group_are_refused(teachers, shots):
    with pytest.raises(UserError, match=f"teachers: .* many, medium, few; the given ones have shots: {shots}$"):
        lfme(teachers)


def test_a_group_without_images_needs_no_expert():
    counts = COUNTS.clone()
    counts[4:] = 0
    assert len(lfme(("many", "medium"), counts).teachers) == 2


def test_experts_of_other_data_are_refused():
    method = lfme()
    with pytest.raises(UserError, match="teachers: the few-shot expert has 9 classes, the data 6"):
        method.set_teachers([expert("many"), expert("medium"), expert("few", classes=9)])


def test_margins_of_another_scale_are_refused():
    with pytest.raises(ValueError, match="ldam's 30 needs a cosine head with the same scale"):
        LfmeSettings(name="lfme", loss={"name": "ldam"})
