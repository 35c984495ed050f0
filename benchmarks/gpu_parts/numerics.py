"""The fused normalisation, and SyncBatchNorm and NCCL in a world of one, against plain computations."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.nn.modules._functions import SyncBatchNorm

from benchmarks.gpu_parts.workload import Figures, Workload
from benchmarks.memory_stage import MEMORY, PROGRESS
from facelt.config.registry import METHODS
from facelt.data.batch import Batch
from facelt.data.transforms import Preprocessing
from facelt.distributed.comm import BatchSplit
from facelt.distributed.ddp import convert_batch_norms, wrap_ddp
from facelt.distributed.launch import process_group
from facelt.methods.base import Method, TrainBatch
from facelt.models.network import build_network

CONSTANTS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def fused_normalisation(workload: Workload) -> Figures:
    """Compares flips and normalisation as one compiled kernel, which facelt uses on GPUs only, with the expression."""
    images = workload.count(512, least=8)
    shape = (images, workload.side, workload.side, 3)
    image_BHW3 = torch.randint(256, shape, dtype=torch.uint8)
    number_B = torch.arange(images)
    batch = Batch(image_BHW3, number_B, number_B, number_B).to(workload.device)
    fused, plain = (Preprocessing(*CONSTANTS, flip=True, fused=fused) for fused in (True, False))
    difference_B3HW = fused.for_training(batch) - plain.for_training(batch)
    steps = workload.count(100, least=2)
    fused_s, plain_s = (workload.seconds(lambda way=way: way.for_training(batch), steps) for way in (fused, plain))
    return {
        "difference": difference_B3HW.abs().max().item(),
        "times_plain": fused_s / plain_s,
        "gb_per_s": (image_BHW3.nbytes + difference_B3HW.nbytes) / fused_s / 1e9,
    }


def world_of_one(workload: Workload) -> Figures:
    """Compares collectives, batch norm and a step of the memory stage in a process group with those outside.

    facelt leaves collectives out in a world of one, so they are forced. Convolutions do not use TF32, so that the
    rounding of two runs differs little.
    """
    _set_launch_variables()
    generator = torch.Generator().manual_seed(0)
    image_B3HW = torch.randn(workload.count(64, least=4), 3, workload.side, workload.side, generator=generator)
    image_B3HW = image_B3HW.to(workload.device).contiguous(memory_format=torch.channels_last)
    torch.backends.cudnn.allow_tf32 = False
    alone = _step_values(_build_method(workload), image_B3HW)
    with process_group(workload.device.type, timedelta(minutes=1)) as device, forced_collectives():
        method = _build_method(workload)
        convert_batch_norms(method, device)
        method.training_network = wrap_ddp(method.network, device).__call__
        together = _step_values(method, image_B3HW)
        figures: Figures = {
            "collectives": _collective_error(device),
            "loss": _relative_error(together[0], alone[0]),
            "gradient": _relative_error(together[1], alone[1]),
        }
        if device.type == "cuda":
            figures["batch_norm"] = _batch_norm_error(image_B3HW)
    return figures


def _set_launch_variables() -> None:
    """Sets the variables that torchrun sets for a single process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ |= {"TORCHELASTIC_RUN_ID": "gpu-check", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


@contextmanager
def forced_collectives() -> Iterator[None]:
    """Makes facelt communicate as if there were several ranks."""
    with ExitStack() as patches:
        for name, module in list(sys.modules.items()):
            if name.startswith("facelt.") and hasattr(module, "is_distributed"):
                patches.enter_context(patch.object(module, "is_distributed", lambda: True))
        yield


def _build_method(workload: Workload) -> Method:
    """Returns a memory stage in training mode with a filled memory, the same at each call."""
    torch.manual_seed(0)
    size = (workload.side, workload.side)
    network = build_network(workload.backbone, image_size=size, attention=True, embedding="linear_bn", dim=512)
    method = METHODS[MEMORY.name](MEMORY, network, workload.count(10_000, least=50))
    method.memory.centroid_CD.normal_()
    method.memory.filled_C.fill_(True)
    return method.to(workload.device, memory_format=torch.channels_last).train()


def _step_values(method: Method, image_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of a step and the gradients of all parameters as one vector."""
    label_B = torch.arange(len(image_B3HW), device=image_B3HW.device)
    loss = method.step([TrainBatch(image_B3HW, label_B)], PROGRESS).loss
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in method.parameters() if parameter.grad is not None]
    return loss.detach(), torch.cat(gradients)


def _collective_error(device: torch.device) -> float:
    """Returns the largest change of values by collectives that leave them as they are in a world of one."""
    value_BD = torch.randn(64, 512, device=device)
    split = BatchSplit.gather_sizes(len(value_BD))
    results = [split.gather(value_BD), split.reduce_scatter(value_BD)]
    for operation in (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN):
        results.append(value_BD.clone())
        dist.all_reduce(results[-1], operation)
    return max((result - value_BD).abs().max().item() for result in results)


def _batch_norm_error(image_B3HW: torch.Tensor) -> float:
    """Returns the largest relative error of torch's synchronised batch norm: output, gradients, running statistics.

    torch.nn.SyncBatchNorm falls back to batch norm in a world of one, so its autograd function is called.
    """
    channels = image_B3HW.shape[1]

    def run(synchronised: bool) -> list[torch.Tensor]:
        norm = torch.nn.BatchNorm2d(channels, device=image_B3HW.device).train()
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, channels))
        input_B3HW = image_B3HW.clone().requires_grad_()
        if synchronised:
            statistics = (norm.running_mean, norm.running_var, norm.eps, norm.momentum)
            output_B3HW = SyncBatchNorm.apply(input_B3HW, norm.weight, norm.bias, *statistics, dist.group.WORLD, 1)
        else:
            output_B3HW = norm(input_B3HW)
        (output_B3HW * image_B3HW.cos()).sum().backward()
        return [output_B3HW, input_B3HW.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]

    return max(map(_relative_error, run(True), run(False)))


def _relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns |result - expected| / |expected|, of the tensors as vectors."""
    return ((result - expected).norm() / expected.norm()).item()
