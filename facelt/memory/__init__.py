"""What is remembered of the training images: one centroid an identity, or features for a while."""

from facelt.memory.feature_bank import FeatureBank
from facelt.memory.identity_memory import IdentityMemory

__all__ = ["FeatureBank", "IdentityMemory"]
