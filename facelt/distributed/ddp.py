"""One network on every rank, trained as one.

W ranks, b images of this rank, B of all ranks.
"""

import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from facelt.distributed.comm import all_reduce, is_distributed, world_size

# Batch norm needs two images to have a variance.
MIN_BATCH = 2


def wrap_ddp(network: nn.Module, device: torch.device) -> DistributedDataParallel | None:
    """What runs the network in training so that its gradients are those of all ranks; None where there is one rank.

    The network itself is kept as it is: its state has the same names with and without this. On GPUs its batch norms
    become synchronised ones, over the global batch. torch has these for GPUs only, so CPU ranks normalise each its own
    share, and `sync_batch_norm_stats` puts together what they have run up.
    """
    if not is_distributed():
        return None
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        return None
    with warnings.catch_warnings():
        # The newer name of the argument is not in every torch this runs on.
        warnings.simplefilter("ignore", FutureWarning)
        replicas = DistributedDataParallel(
            network, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
        )
    replicas.register_comm_hook(None, _sum_gradients)
    return replicas


def _sum_gradients(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Gradients are summed over the ranks, not averaged.

    Every rank differentiates the same mean loss of the global batch, so each has the part that flows through its own
    images, already divided by B. Averaging instead asks each rank for the mean loss of its own b images: its gradient
    times W * b / B, divided by W, is the same part, b / B times the mean over b.
    """
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def has_enough_images(sizes: Sequence[Sequence[int]], device: torch.device) -> bool:
    """Whether a step can be made of so many images, [W][batches]; all ranks come to the same answer.

    On GPUs batch norm looks at the global batch, on CPU ranks at each share.
    """
    if device.type == "cuda":
        return min(map(sum, zip(*sizes, strict=True))) >= MIN_BATCH
    return min(map(min, sizes)) >= MIN_BATCH


@torch.no_grad()
def sync_batch_norm_stats(network: nn.Module, device: torch.device) -> None:
    """Makes the running statistics of CPU ranks equal: their mean, in one message.

    They are moving averages, so the mean of the ranks' is the moving average of the batches' means, whenever it is
    taken.
    """
    statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if not is_distributed() or device.type == "cuda" or not statistics:
        return
    flat = torch.cat([buffer.flatten() for buffer in statistics])
    parts = (all_reduce(flat, dist.ReduceOp.SUM) / world_size()).split([buffer.numel() for buffer in statistics])
    for buffer, part in zip(statistics, parts, strict=True):
        buffer.copy_(part.view_as(buffer))
