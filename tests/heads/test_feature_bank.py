"""Feature bank: all features, those of some classes, and a sample of each class."""

import torch

from facelt.distributed.logits import GatheredFeatures
from facelt.heads.memory import FeatureBank, count_previous, first_of_class

LABELS = torch.tensor([2, 0, 2, 2, 1, 0, 2])


def bank(keep_C=None):
    """Each row's only value is its position."""
    kept = FeatureBank()
    for indices in torch.arange(7.0)[:, None].split(3):
        kept.add(GatheredFeatures.gather(indices), LABELS[indices[:, 0].long()], keep_C)
    assert not kept.is_closed
    kept.close()
    assert kept.is_closed
    return kept


def test_features_of_all_or_of_the_selected_classes_are_kept_in_order():
    assert bank().feature_ND[:, 0].tolist() == list(range(7))
    assert bank().label_N.tolist() == LABELS.tolist()
    some = bank(torch.tensor([True, False, True]))
    assert some.feature_ND[:, 0].tolist() == [0, 1, 2, 3, 5, 6]
    assert some.label_N.tolist() == [2, 0, 2, 2, 0, 2]
    assert bank(torch.zeros(3, dtype=torch.bool)).feature_ND.shape == (0, 1)


def test_a_sample_of_each_class_is_drawn_without_replacement_and_depends_on_the_seed():
    kept = bank()
    drawn_positions = set()
    for seed in range(30):
        feature, label = kept.sample_per_class(2, torch.Generator().manual_seed(seed))
        indices = feature[:, 0].long()
        assert len(indices.unique()) == len(indices)
        assert torch.equal(LABELS[indices], label)
        assert label.bincount().tolist() == [2, 1, 2]
        again, _ = kept.sample_per_class(2, torch.Generator().manual_seed(seed))
        assert torch.equal(again, feature)
        drawn_positions |= set(indices.tolist())
    assert drawn_positions == set(range(7))


def test_count_previous():
    assert count_previous(LABELS).tolist() == [0, 0, 1, 2, 0, 1, 3]
    assert count_previous(LABELS[:0]).tolist() == []


def test_first_of_class():
    label_N = LABELS.tolist()
    assert first_of_class(LABELS).tolist() == [label_N.index(label) for label in label_N]
    assert first_of_class(LABELS[:0]).tolist() == []
