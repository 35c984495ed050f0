"""Losses, one small file each."""

from facelt.losses.balanced_softmax import BalancedSoftmax
from facelt.losses.centroids import discriminative_centroids
from facelt.losses.distillation import distillation
from facelt.losses.focal import Focal
from facelt.losses.ldam import Ldam
from facelt.losses.lifted import lifted
from facelt.losses.loss import Loss
from facelt.losses.range import range_loss
from facelt.losses.reslt import reslt
from facelt.losses.ride import diversity_temperature, ride
from facelt.losses.seql import Seql
from facelt.losses.sigmoid_focal import SigmoidFocal
from facelt.losses.softmax import Softmax
from facelt.losses.weights import class_balanced, cost_sensitive

LOSSES: dict[str, type[Loss]] = {
    "softmax": Softmax,
    "focal": Focal,
    "sigmoid_focal": SigmoidFocal,
    "ldam": Ldam,
    "seql": Seql,
    "balanced_softmax": BalancedSoftmax,
}
WEIGHTS = {"class_balanced": class_balanced, "cost_sensitive": cost_sensitive}
METRIC_LOSSES = {"lifted": lifted, "range": range_loss}

__all__ = [
    "LOSSES",
    "METRIC_LOSSES",
    "WEIGHTS",
    "Loss",
    "discriminative_centroids",
    "distillation",
    "diversity_temperature",
    "reslt",
    "ride",
]
