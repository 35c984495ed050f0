"""How many ranks there are and which one this is; one process without torch.distributed is rank 0 of 1."""

import torch.distributed as dist


def is_split() -> bool:
    """Whether more than one rank shares the work."""
    return world() > 1


def world() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This rank, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
