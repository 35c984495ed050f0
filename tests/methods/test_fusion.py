"""Fusion of a linear classifier and the nearest class mean, against plain loops over images and classes."""

import json
import math

import pytest
import torch

from facelt.config.registry import METHODS
from facelt.config.train import TrainConfig
from facelt.errors import UserError
from facelt.methods.base import StepContext
from facelt.methods.fusion import (
    FusionAsmSettings,
    FusionSettings,
    LinearAndNcmSettings,
    match_range,
    selector_loss,
)
from facelt.training.run import run
from tests.methods.small import CLASSES, FIRST, linear_head, reloaded, run_dataset_passes, small_network, training_set

CONFIGS = {"fusion": FusionSettings, "fusion_asm": FusionAsmSettings, "fusion_llw": LinearAndNcmSettings}


def build(name, **config):
    return METHODS[name](CONFIGS[name](name=name, **config), small_network(), CLASSES)


def fitted(name, **config):
    method = build(name, **config)
    method.load_stage(linear_head())
    run_dataset_passes(method, training_set())
    return method.eval()


def plain_answers(network, image, scaled):
    """(linear, nearest mean) [images][classes] as lists of floats."""
    data, head = training_set(), linear_head()
    network.eval()
    with torch.no_grad():
        train_ND, query_ND = network(data.image_B3HW).double(), network(image).double()
    unit = train_ND / train_ND.norm(dim=1, keepdim=True)
    means = [unit[data.label_B == c].mean(0) for c in range(5)]
    linear, nearest = [], []
    for row in query_ND:
        z_l = [
            float(row @ w + b) for w, b in zip(head["head.weight"].double(), head["head.bias"].double(), strict=True)
        ]
        z_d = [float(row @ m / row.norm() / m.norm()) for m in means] + [-1.0]
        if scaled:
            share = [(value - min(z_d)) / (max(z_d) - min(z_d)) for value in z_d]
            z_d = [min(z_l) + part * (max(z_l) - min(z_l)) for part in share]
        linear.append(z_l)
        nearest.append(z_d)
    return linear, nearest


def softmax(values):
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


RULES = {
    "sum": lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
    "softmax_sum": lambda a, b: [x + y for x, y in zip(softmax(a), softmax(b), strict=True)],
    "max": lambda a, b: [max(x, y) for x, y in zip(a, b, strict=True)],
    "w_mix": lambda a, b: [0.3 * x + 0.7 * y for x, y in zip(a, b, strict=True)],
}


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_puts_both_answers_together(rule, scaled):
    method, image = fitted("fusion", rule=rule, scaled=scaled, weight=0.3), torch.randn(5, 3, 2, 2)
    logits = method.logits(image)
    expected = [RULES[rule](*pair) for pair in zip(*plain_answers(method.network, image, scaled), strict=True)]
    assert torch.allclose(logits.full_BC.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-4)
    again = reloaded(method, lambda: build("fusion", rule=rule, scaled=scaled))
    assert torch.equal(again.logits(image).full_BC, logits.full_BC)


def test_only_the_mixture_has_a_weight_to_try():
    assert list(build("fusion", rule="w_mix").tunable_values) == pytest.approx([0.1 * step for step in range(11)])
    assert not build("fusion", rule="sum").tunable_values
    method, image = fitted("fusion", rule="w_mix", scaled=False), torch.randn(3, 3, 2, 2)
    for weight, index in ((1.0, 0), (0.0, 1)):
        method.set_value(weight)
        expected = torch.tensor(plain_answers(method.network, image, False)[index])
        assert torch.allclose(method.logits(image).full_BC, expected, atol=1e-4)


def test_the_range_of_one_class_is_a_point():
    assert match_range(torch.tensor([[3.0]]), torch.tensor([[0.2]])).tolist() == [[3.0]]


def test_llw_weighs_every_class_of_both_and_learns_that_alone():
    method, data = fitted("fusion_llw"), training_set()
    (w1, w2), (b1, b2) = method.weight_2C.detach().tolist(), method.offset_2C.detach().tolist()
    linear, nearest = plain_answers(method.network, data.image_B3HW, True)
    mixed = [
        [w1[c] * a[c] + b1[c] + w2[c] * b[c] + b2[c] for c in range(CLASSES)]
        for a, b in zip(linear, nearest, strict=True)
    ]
    assert torch.allclose(method.logits(data.image_B3HW).full_BC, torch.tensor(mixed), atol=1e-4)
    label_N = data.label_B.tolist()
    expected = -sum(math.log(softmax(row)[y]) for row, y in zip(mixed, label_N, strict=True)) / len(mixed)
    output = method.train().step([data], FIRST)
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    output.loss.backward()
    learning = {name for name, value in method.named_parameters() if value.requires_grad}
    assert learning == {"weight_2C", "offset_2C"}
    # d loss / d b_c is the mean of p_c - [y = c], the same for both offsets.
    missed = [
        sum(softmax(row)[c] - (y == c) for row, y in zip(mixed, label_N, strict=True)) / len(mixed) for c in range(6)
    ]
    assert torch.allclose(method.offset_2C.grad, torch.tensor([missed, missed]), atol=1e-5)
    again = reloaded(method, lambda: build("fusion_llw"))
    assert torch.equal(again.logits(data.image_B3HW).full_BC, method.eval().logits(data.image_B3HW).full_BC)


def test_llws_numbers_begin_as_normal_ones():
    torch.manual_seed(3)
    network = small_network()
    drawn = METHODS["fusion_llw"](LinearAndNcmSettings(name="fusion_llw"), network, 5000)
    for value in (*drawn.weight_2C.detach(), *drawn.offset_2C.detach()):
        assert abs(value.mean()) < 0.1
        assert value.std().item() == pytest.approx(1, abs=0.1)


def test_asm_hands_over_what_the_selector_points_at():
    method, data = fitted("fusion_asm", top=3, hidden=4), training_set()
    linear, nearest = plain_answers(method.network, data.image_B3HW, True)
    with torch.no_grad():
        feature_ND = method.network(data.image_B3HW)
    selector = method.selector
    scores = []
    for row, z_l in zip(feature_ND, linear, strict=True):
        look = selector.look.weight @ (row / row.norm()) + selector.look.bias
        seen = [x if x > 0 else 0.1 * x for x in look.tolist()] + sorted(z_l, reverse=True)[:3]
        scores.append(sum(w * x for w, x in zip(selector.decide.weight[0].tolist(), seen, strict=True)))
    scores = [score + selector.decide.bias.item() for score in scores]
    # Half of the images on either side of the threshold.
    middle = sorted(scores)[len(scores) // 2] - 1e-4
    with torch.no_grad():
        selector.decide.bias -= middle
    handed = [score > middle for score in scores]
    assert 0 < sum(handed) < len(handed)
    expected = [b if over else a for a, b, over in zip(linear, nearest, handed, strict=True)]
    assert torch.allclose(method.logits(data.image_B3HW).full_BC, torch.tensor(expected), atol=1e-4)
    again = reloaded(method, lambda: build("fusion_asm", top=3, hidden=4))
    assert torch.equal(again.logits(data.image_B3HW).full_BC, method.logits(data.image_B3HW).full_BC)

    # The step: where the linear classifier is wrong and the nearest mean right, and its count.
    def best(row):
        return max(range(CLASSES), key=row.__getitem__)

    labels = data.label_B.tolist()
    wanted = [best(a) != y and best(b) == y for a, b, y in zip(linear, nearest, labels, strict=True)]
    assert 0 < sum(wanted) < len(wanted)
    terms = [
        math.log1p(math.exp(-(score - middle) if want else score - middle))
        for score, want in zip(scores, wanted, strict=True)
    ]
    yes = sum(term for term, want in zip(terms, wanted, strict=True) if want) / sum(wanted)
    no = sum(term for term, want in zip(terms, wanted, strict=True) if not want) / (len(wanted) - sum(wanted))
    method.train().begin_epoch(FIRST, {})
    output = method.step([data], FIRST)
    assert output.loss.item() == pytest.approx((yes + no) / 2, rel=1e-4)
    output.after(torch.tensor(True))
    right = sum(want and over for want, over in zip(wanted, handed, strict=True))
    f1 = 2 * right / (sum(wanted) + sum(handed))
    assert method.diagnostics()["selector_f1"] == pytest.approx(f1)
    output.loss.backward()
    assert {name for name, value in method.named_parameters() if value.grad is not None} == {
        f"selector.{part}.{kind}" for part in ("look", "decide") for kind in ("weight", "bias")
    }


def test_asms_linear_logits_are_those_of_the_feature_at_its_length():
    method, data = fitted("fusion_asm", top=3, feature_length=20.0, scaled=False), training_set()
    with torch.no_grad():
        feature = method.gathered_features(data.image_B3HW)
        unit_BD = feature.global_BD / feature.global_BD.norm(dim=1, keepdim=True)
        expected_BC = 20 * unit_BD @ method.linear.weight.T + method.linear.bias
        pair = method.logit_pair(feature)
        assert torch.allclose(pair.linear_BC, expected_BC, atol=1e-4)
        assert torch.equal(pair.ncm_BC, fitted("fusion_asm", scaled=False).logit_pair(feature).ncm_BC)
        # The selector reads them, and they are what it chooses.
        selected_B = method.selector(feature.global_BD, expected_BC) > 0
        chosen_BC = torch.where(selected_B[:, None], pair.ncm_BC, expected_BC)
        assert torch.allclose(method.logits(data.image_B3HW).full_BC, chosen_BC, atol=1e-4)


def test_asm_without_balance_weighs_all_images_alike():
    score_B, positive_B = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([True, False, False])
    terms = [math.log1p(math.exp(-0.5)), math.log1p(math.exp(-1)), math.log1p(math.exp(2))]
    assert selector_loss(score_B, positive_B, balance=False).item() == pytest.approx(sum(terms) / 3)
    balanced = (terms[0] + (terms[1] + terms[2]) / 2) / 2
    assert selector_loss(score_B, positive_B).item() == pytest.approx(balanced)


def test_asms_count_begins_with_each_epoch_and_continues_within_it():
    method = fitted("fusion_asm")
    method.hits_3.fill_(4)
    method.begin_epoch(StepContext(1, 2, 5, 9), {})
    assert method.diagnostics()["selector_f1"] == pytest.approx(0.5)
    method.begin_epoch(StepContext(1, 2, 0, 9), {})
    assert method.diagnostics()["selector_f1"] == 0


def test_a_batch_with_nothing_to_hand_over_has_a_finite_loss():
    score_B = torch.tensor([0.0, 2.0], requires_grad=True)
    loss = selector_loss(score_B, torch.tensor([False, False]))
    assert loss.item() == pytest.approx((math.log(2) + math.log1p(math.exp(2))) / 4)
    loss.backward()
    assert score_B.grad.isfinite().all()


@pytest.mark.parametrize("name", ["fusion", "fusion_llw", "fusion_asm"])
def test_an_earlier_stage_without_a_linear_head_is_refused(name):
    with pytest.raises(UserError, match="init_from: the earlier stage has no head like this one"):
        build(name).load_stage({"head.weight": linear_head()["head.weight"]})


def test_a_run_mixes_both_by_the_weight_that_validates_best_and_takes_kts_means_while_it_trains(recipe, tmp_path):
    plain = {"name": "plain", "method": {"name": "fusion_kt", "memory_start": 0.5}, "epochs": 2}
    mix = {"name": "mix", "init_from": "plain", "method": {"name": "fusion", "rule": "w_mix"}, "epochs": 0}
    folder = run(TrainConfig.model_validate(recipe(tmp_path / "run", stages=[plain, mix])))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tried = {line["setting"]: line["validation_accuracy"] for line in lines if "setting" in line}
    assert len(tried) == 11
    assert json.loads((folder / "mix/card.json").read_text())["best"]["validation_accuracy"] == max(tried.values())
    steps = [line for line in lines if line["stage"] == "plain" and "transfer_loss" in line]
    assert {line["epoch"] for line in steps} == {0, 1}
