"""The base of every configuration model.

The samplers a method can be told to train with.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Unknown keys are errors, values do not change after loading, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


Sampler = Literal[
    "instance", "class_aware", "class_balanced", "square_root", "progressive", "reversed", "oversample", "undersample"
]
