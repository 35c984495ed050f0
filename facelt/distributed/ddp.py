"""DistributedDataParallel and batch norm over ranks. W ranks, b images of this rank, B of all ranks."""

from collections.abc import Sequence
from inspect import signature

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from facelt.distributed.comm import all_reduce, is_distributed, world_size

# Batch norm needs two images for a variance.
MIN_BATCH = 2
# torch 2.14 renamed the option. The new one still syncs buffers once at the start, where they are equal on all ranks.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in signature(DistributedDataParallel).parameters
)


def convert_batch_norms(module: nn.Module, device: torch.device) -> None:
    """Turns the batch norms of a module into SyncBatchNorm over the global batch if several GPUs train, in place.

    The module's state keeps its names. torch has no SyncBatchNorm for CPUs: CPU ranks normalise over their own images,
    and `sync_batch_norm_stats` averages their running statistics.
    """
    if is_distributed() and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)


def wrap_ddp(network: nn.Module, device: torch.device) -> DistributedDataParallel | None:
    """Returns the network in DDP with summed gradients; None for a single rank and for a network without gradients."""
    if not is_distributed() or not any(parameter.requires_grad for parameter in network.parameters()):
        return None
    ddp = DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None, **{_SYNC_BUFFERS: False}
    )
    ddp.register_comm_hook(None, _sum_gradients)
    return ddp


def _sum_gradients(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP hook that sums gradients over the ranks instead of averaging them.

    Every rank differentiates the mean loss of the global batch, so its gradient is already divided by B.
    """
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def has_enough_images(sizes: Sequence[Sequence[int]], device: torch.device) -> bool:
    """Returns whether batch norm has enough images, given sizes [W][batches]; the same result on all ranks.

    On GPUs batch norm spans the global batch, on CPUs one rank's images.
    """
    if device.type == "cuda":
        return min(map(sum, zip(*sizes, strict=True))) >= MIN_BATCH
    return min(map(min, sizes)) >= MIN_BATCH


@torch.no_grad()
def sync_batch_norm_stats(network: nn.Module, device: torch.device) -> None:
    """Averages the running statistics of CPU ranks, in one all-reduce.

    They are moving averages, so their mean is the moving average of the global batches' statistics. Statistics that are
    equal on all ranks, such as frozen ones, keep every bit: the sum in float64 is exact.
    """
    statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if not is_distributed() or device.type == "cuda" or not statistics:
        return
    flat = torch.cat([buffer.flatten().double() for buffer in statistics])
    parts = (all_reduce(flat, dist.ReduceOp.SUM) / world_size()).split([buffer.numel() for buffer in statistics])
    for buffer, part in zip(statistics, parts, strict=True):
        buffer.copy_(part.view_as(buffer))
