"""From features to logits."""

from facelt.heads.cosine import CosineHead, cosine_logits
from facelt.heads.dynamic_meta import CONVENTIONS, Convention, DynamicMetaHead, MetaEmbedding
from facelt.heads.linear import LinearHead

HEADS = {"linear": LinearHead, "cosine": CosineHead}

__all__ = [
    "CONVENTIONS",
    "HEADS",
    "Convention",
    "CosineHead",
    "DynamicMetaHead",
    "LinearHead",
    "MetaEmbedding",
    "cosine_logits",
]
