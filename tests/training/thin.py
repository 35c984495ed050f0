"""Thin backbone that replaces ResNet-10 in fast tests."""

from collections import OrderedDict

from torch import nn

from facelt.config.registry import BACKBONES
from facelt.models.backbones import Backbone


def _thin() -> nn.Module:
    """Its parts are named like a ResNet's first ones."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, channels, stride) in enumerate([(3, 8, 2), (8, 8, 2), (8, 8, 2), (8, 16, 2)], start=1):
        parts[f"conv{number}"] = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        parts[f"bn{number}"] = nn.BatchNorm2d(channels)
        parts[f"relu{number}"] = nn.ReLU()
    parts["pool"] = nn.AvgPool2d(2, ceil_mode=True)
    return nn.Sequential(parts)


THIN = {"resnet10": Backbone(_thin, channels=16, stride=32)}


def make_thin() -> None:
    """Replaces the backbone permanently; for child processes."""
    BACKBONES.update(THIN)
