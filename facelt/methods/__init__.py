"""What one training step is, by name."""

from facelt.methods.base import Embeddings, Inputs, Method, Progress, StepOutput, Stream
from facelt.methods.classify import Classify
from facelt.methods.dynamic_meta import DynamicMeta

METHODS: dict[str, type[Method]] = {"classify": Classify, "dynamic_meta": DynamicMeta}

__all__ = ["METHODS", "Embeddings", "Inputs", "Method", "Progress", "StepOutput", "Stream"]
