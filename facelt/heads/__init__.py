"""From features to logits."""

from facelt.heads.cosine import CosineHead
from facelt.heads.dynamic_meta import CONVENTIONS, Convention, DynamicMetaHead, MetaEmbedding
from facelt.heads.linear import LinearHead
from facelt.heads.margin import Margin, MarginHead
from facelt.heads.ncm import NcmHead
from facelt.heads.scaled import ScaledHead

HEADS = {"linear": LinearHead, "cosine": CosineHead, "margin": MarginHead}

__all__ = [
    "CONVENTIONS",
    "HEADS",
    "Convention",
    "CosineHead",
    "DynamicMetaHead",
    "LinearHead",
    "Margin",
    "MarginHead",
    "MetaEmbedding",
    "NcmHead",
    "ScaledHead",
]
