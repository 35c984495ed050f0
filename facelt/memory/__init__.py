"""The identity memory: one centroid an identity."""

from facelt.memory.identity_memory import IdentityMemory

__all__ = ["IdentityMemory"]
