"""Few-shot learning without forgetting: generated weights and episodes against plain loops."""

import math

import pytest
import torch
from pydantic import ValidationError

from facelt.config.train import TrainConfig
from facelt.distributed.logits import GatheredFeatures
from facelt.errors import UserError
from facelt.inference.model import load_model
from facelt.methods.base import TrainBatch
from facelt.methods.classify import Classify, ClassifySettings
from facelt.methods.few_shot import Fslwf, FslwfSettings, WeightGenerator
from facelt.training.run import run
from tests.methods.small import (
    CLASSES,
    COUNTS,
    DIM,
    FIRST,
    linear_head,
    reloaded,
    run_dataset_passes,
    small_network,
    training_set,
)

NOVEL = [3, 4, 5]


def plain_weights(generator, exemplar_ED, label_E, weight_CD, base):
    """The generator's formula, exemplar by exemplar and base class by base class: {class: weight}."""
    unit = [row / row.norm() for row in exemplar_ED]
    made: dict[int, list[torch.Tensor]] = {}
    for row, label in zip(unit, label_E.tolist(), strict=True):
        query = generator.query.weight @ row + generator.query.bias
        score = {
            b: generator.scale * (query @ k) / query.norm() / k.norm()
            for b, k in zip(base, generator.key_CD[base], strict=True)
        }
        total = sum(torch.exp(value) for value in score.values())
        read = sum(torch.exp(score[b]) / total * weight_CD[b] / weight_CD[b].norm() for b in base)
        made.setdefault(label, []).append(generator.average_D * row + generator.attention_D * read)
    return {label: sum(rows) / len(rows) for label, rows in made.items()}


@pytest.fixture
def method():
    return filled()


def build(counts=COUNTS, **config):
    counts_C = None if counts is None else torch.tensor(counts)
    return Fslwf(FslwfSettings(name="fslwf", novel_below=4, **config), small_network(), CLASSES, counts_C)


def filled(**config):
    method = build(**config)
    method.load_stage({"head.weight": linear_head()["head.weight"]})
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in (method.generator.average_D, method.generator.attention_D):
            value.copy_(torch.rand(DIM, generator=random) + 0.5)
    run_dataset_passes(method, training_set())
    return method.eval()


def test_the_generator_begins_near_the_identity():
    generator = WeightGenerator(DIM, CLASSES, scale=30.0)
    assert (generator.query.weight - torch.eye(DIM)).abs().max() < 0.01
    assert generator.scale.item() == 30
    assert (generator.average_D == 1).all()
    assert (generator.attention_D == 1).all()


def test_novel_classes_answer_by_weights_made_of_all_their_images(method):
    data, image = training_set(), torch.randn(4, 3, 2, 2)
    with torch.no_grad():
        feature_ND, asked_QD = method.network(data.image_B3HW), method.network(image)
        few_N = torch.isin(data.label_B, torch.tensor(NOVEL))
        made = plain_weights(method.generator, feature_ND[few_N], data.label_B[few_N], method.weight_CD, [0, 1, 2])
    assert set(made) == {3, 4}
    for label in range(5):
        row_D = made.get(label, method.weight_CD[label])
        expected_Q = 10 * (asked_QD @ row_D) / asked_QD.norm(dim=1) / row_D.norm()
        assert torch.allclose(method.logits(image).local_BC[:, label], expected_Q, atol=1e-4)
    again = reloaded(method, lambda: build(counts=None))
    assert torch.equal(again.logits(image).local_BC, method.logits(image).local_BC)


def test_an_epochs_end_renews_the_weights(method):
    before = method.generated_CD.clone()
    with torch.no_grad():
        method.generator.average_D.mul_(2)
    assert torch.equal(method.generated_CD, before)
    method.end_epoch()
    assert not torch.equal(method.generated_CD[3:5], before[3:5])
    assert not method.generated_CD[5].any()


def test_a_step_is_an_episode_of_base_classes():
    """One of three base classes is treated as novel: its first images are exemplars, all others queries."""
    method, data = filled(dropout=0.0, novel_fraction=0.4), training_set()
    with torch.no_grad():
        feature_ND = method.network(data.image_B3HW)
    label_N = data.label_B.tolist()
    possible = []
    for pretended in range(3):
        base = [label for label in range(3) if label != pretended]
        own = [index for index, label in enumerate(label_N) if label == pretended]
        exemplars = own[: len(own) // 2]
        rows = {label: method.weight_CD[label] for label in base}
        rows |= plain_weights(method.generator, feature_ND[exemplars], data.label_B[exemplars], method.weight_CD, base)
        terms = []
        for index, label in enumerate(label_N):
            if label in NOVEL or index in exemplars:
                continue
            f = feature_ND[index]
            logits = [10 * (f @ rows[c] / f.norm() / rows[c].norm()).item() for c in range(3)]
            terms.append(math.log(sum(math.exp(z - logits[label]) for z in logits)))
        possible.append(sum(terms) / len(terms))
    output = method.train().step([data], FIRST)
    loss = output.loss.item()
    assert min(abs(loss - value) for value in possible) < 1e-4
    assert method.step([data], FIRST).loss.item() == loss
    output.loss.backward()
    learning = {name for name, value in method.named_parameters() if value.grad is not None and value.grad.any()}
    assert learning == {"weight_CD", "scale"} | {
        f"generator.{name}" for name in ("query.weight", "query.bias", "key_CD", "scale", "average_D", "attention_D")
    }


def test_dropout_changes_the_episode_and_is_redrawn_each_step():
    method, data = filled(dropout=0.5), training_set()
    steps = [FIRST, type(FIRST)(epoch=0, epochs=1, step=1, steps=2)]
    first, second = (method.step([data], progress).loss.item() for progress in steps)
    assert first != second


def test_a_batch_of_novel_classes_teaches_nothing(method):
    data = training_set()
    few_N = data.label_B >= 3
    loss = method.step([TrainBatch(data.image_B3HW[few_N], data.label_B[few_N])], FIRST).loss
    loss.backward()
    assert loss.item() == 0
    assert not method.weight_CD.grad.any()


def test_a_set_without_base_classes_and_a_stage_without_cosines_are_refused():
    with pytest.raises(UserError, match="novel_below: all classes have fewer than 4 training images"):
        build(counts=(3, 2, 1, 0, 0, 0))
    for state in (linear_head(), {}, {"head.weight": torch.zeros(CLASSES, DIM + 1)}):
        with pytest.raises(UserError, match="no cosine head of these classes; give it head: cosine"):
            build().load_stage(state)


def test_a_scale_that_was_learned_is_taken_over():
    config = ClassifySettings(name="classify", head="cosine", scale=10.0, learn_scale=True)
    first = Classify(config, small_network(), CLASSES, torch.tensor(COUNTS))
    data = training_set()
    first.eval()
    loss = first.step([data], FIRST).loss
    loss.backward()
    feature_BD, scale = first.network(data.image_B3HW).detach(), torch.tensor(10.0, requires_grad=True)
    cosine_BC = feature_BD @ first.head.weight.detach().T / feature_BD.norm(dim=1)[:, None]
    cosine_BC = cosine_BC / first.head.weight.detach().norm(dim=1)
    torch.nn.functional.cross_entropy(scale * cosine_BC, data.label_B).backward()
    assert first.head.learned_scale.value.grad.item() == pytest.approx(scale.grad.item(), rel=1e-3)
    with torch.no_grad():
        first.head.learned_scale.value.fill_(7.0)
    second = build()
    second.load_stage(first.state_dict())
    assert second.scale.item() == 7
    assert torch.equal(second.weight_CD, first.head.weight)
    logits = first.head(GatheredFeatures.gather(feature_BD)).local_BC
    assert torch.allclose(logits, 7 * cosine_BC, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"head": "linear"}, {"head": "margin"}])
def test_only_the_cosine_head_learns_its_scale(wrong):
    with pytest.raises(ValidationError, match="learn_scale: only the head cosine"):
        ClassifySettings(name="classify", learn_scale=True, **wrong)


def test_a_run_leaves_the_novel_classes_weights_in_its_model(recipe, tmp_path):
    plain = {"name": "plain", "method": {"name": "classify", "head": "cosine", "learn_scale": True}, "epochs": 1}
    few = {"name": "few", "init_from": "plain", "method": {"name": "fslwf", "novel_below": 6}, "epochs": 2}
    folder = run(TrainConfig.model_validate(recipe(tmp_path / "run", stages=[plain, few])))
    method = load_model(folder, torch.device("cpu")).method
    made = method.generated_CD.norm(dim=1) > 0
    # Of the six classes one has no images, and the novel ones of the others have weights.
    assert made.tolist() == (method.novel_C & torch.tensor([True] * 5 + [False])).tolist()
    assert made.any()
