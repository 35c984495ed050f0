"""The samplers a method can be told to train with."""

from typing import Literal

Sampler = Literal[
    "instance", "class_aware", "class_balanced", "square_root", "progressive", "reversed", "oversample", "undersample"
]
