"""Time of a memory-stage step, compared with a plain cosine classifier's and with the network alone.

python benchmarks/memory_stage.py --device cuda                                      # the documented figures
python benchmarks/memory_stage.py --backbone resnet10 --batch 16 --identities 2000 --precision float32 --compile off
python benchmarks/memory_stage.py --account                                          # bytes and FLOPs, no timing

All programs alternate in one run, each with and without channels-last memory and a compiled backbone
(`--channels-last` and `--compile`: on, off or both). Figures are those of the best round; a ratio is of two figures.
Prints one JSON object per line.
"""

import argparse
import itertools
import json
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from facelt.config.registry import METHODS
from facelt.config.train import OptimConfig, StageConfig
from facelt.data.batch import Batch
from facelt.data.records import RecordData
from facelt.data.transforms import Preprocessing
from facelt.methods.base import Method, SamplerSpec, StepContext, StepOutput, TrainBatch
from facelt.methods.classify import ClassifySettings
from facelt.methods.oltr import DynamicMetaSettings
from facelt.models.network import build_network
from facelt.training.optim import Optimisers
from facelt.training.step_check import BufferSnapshot, HostCopy, find_inf

MEMORY = DynamicMetaSettings(name="dynamic_meta", centroid_update="tracking")
COSINE = ClassifySettings(name="classify", head="cosine")
PROGRESS = StepContext(epoch=0, epochs=1, step=0, steps=1)
SWITCH = {"on": (True,), "off": (False,), "both": (True, False)}


class NetworkAlone(Method):
    """A network without a head; the mean square of its features is the loss."""

    def sampler_specs(self):
        return (SamplerSpec("instance"),)

    def parameter_groups(self):
        return {"network": list(self.network.parameters())}

    def step(self, batches, progress):
        return StepOutput(self.features(batches[0].image_B3HW).square().mean())

    def logits(self, image_B3HW):
        raise TypeError("there is no head")


class RowsFirst(Preprocessing):
    """Network input in torch's default order of dimensions."""

    def for_training(self, batch):
        return super().for_training(batch).contiguous()


def build(program: str, arguments: argparse.Namespace) -> Method:
    """The method of a program, its memory filled."""
    size = (arguments.side, arguments.side)
    network = build_network(arguments.backbone, image_size=size, attention=True, embedding="linear_bn", dim=512)
    if program == "network alone":
        return NetworkAlone(network)
    config = MEMORY if program == "memory stage" else COSINE
    method = METHODS[config.name](config, network, arguments.identities)
    if program == "memory stage":
        method.memory.centroid_CD.normal_()
        method.memory.filled_C.fill_(True)
    return method


def make_step(program: str, channels_last: bool, compiled: bool, arguments: argparse.Namespace) -> Callable[[], None]:
    """One whole step as the trainer makes it: preparation, both passes, the check for finite numbers, the update."""
    device = torch.device(arguments.device)
    method = build(program, arguments).to(device).train()
    method.bf16 = arguments.precision == "bf16"
    if channels_last:
        method.network.to(memory_format=torch.channels_last)
    if compiled:
        method.network.backbone.compile()
    optim = OptimConfig(lr=1e-3, batch=arguments.batch)
    optimisers = Optimisers(method, optim, StageConfig(name="timed", method=COSINE, epochs=1))
    data = RecordData(kind="record", train=Path("unused"), image_size=(arguments.side, arguments.side))
    preparation = (Preprocessing if channels_last else RowsFirst)(data.mean, data.std, flip=True)
    running_statistics, checks = BufferSnapshot(method.network), deque()
    images = torch.randint(0, 256, (arguments.batch, arguments.side, arguments.side, 3), dtype=torch.uint8)
    numbers = torch.arange(arguments.batch)
    batch = Batch(images, numbers % arguments.identities, numbers, numbers).to(device)

    def step() -> None:
        running_statistics.take()
        optimisers.zero_grad()
        output = method.step([TrainBatch(preparation.for_training(batch), batch.label_B)], PROGRESS)
        output.loss.backward()
        found_inf = find_inf(output.loss, optimisers.gradient_norm())
        running_statistics.restore(found_inf == 0)
        optimisers.step(PROGRESS, found_inf)
        output.after(found_inf == 0)
        checks.append(HostCopy(found_inf[None]))
        # The device still has the newest step.
        if len(checks) > 1 and any(checks.popleft().read()):
            raise ArithmeticError("the loss or its gradient is not finite")

    return step


def timed(step: Callable[[], None], steps: int, device: str) -> float:
    """Seconds of `steps` steps."""
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    wait()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return time.perf_counter() - started


def measure_stage(arguments: argparse.Namespace) -> list[dict[str, str | bool | float]]:
    """Returns the figures of each program with each setting, best of the rounds, in which they alternate."""
    programs = ("network alone", "cosine classifier", "memory stage")
    settings = list(itertools.product(programs, SWITCH[arguments.channels_last], SWITCH[arguments.compile]))
    steps = {setting: make_step(*setting, arguments) for setting in settings}
    best, peak = dict.fromkeys(settings, float("inf")), dict.fromkeys(settings, 0)
    for step in steps.values():
        timed(step, 2, arguments.device)
    for _ in range(arguments.rounds):
        for setting, step in steps.items():
            if arguments.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            best[setting] = min(best[setting], timed(step, arguments.steps, arguments.device) / arguments.steps)
            if arguments.device == "cuda":
                peak[setting] = torch.cuda.max_memory_allocated()
    measured = []
    for setting, seconds in best.items():
        program, channels_last, compiled = setting
        figures = {"seconds": seconds, "images_per_s": arguments.batch / seconds}
        if arguments.device == "cuda":
            figures["peak_gb"] = peak[setting] / 1e9
        for baseline in ("cosine classifier", "network alone"):
            if program != baseline and program != "network alone":
                figures[f"times {baseline}"] = seconds / best[baseline, channels_last, compiled]
        if channels_last and (program, False, compiled) in best:
            figures["times rows first"] = seconds / best[program, False, compiled]
        if compiled and (program, channels_last, False) in best:
            figures["times not compiled"] = seconds / best[program, channels_last, False]
        measured.append({"program": program, "channels_last": channels_last, "compiled": compiled, **figures})
    return measured


def saved_bytes(method: Method, image_B3HW: torch.Tensor) -> int:
    """Bytes that autograd saves in the network's forward pass for its backward pass."""
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Holding the tensor keeps its storage's address from being reused and counted twice.
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        feature_BD = method.features(image_B3HW)
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    feature_BD.sum().backward()
    return total


def account(arguments: argparse.Namespace) -> None:
    """Prints the bytes saved by a memory-stage step and the FLOPs of its products, counted on the CPU."""
    method = build("memory stage", arguments).train()
    method.network.to(memory_format=torch.channels_last)
    method.bf16 = arguments.precision == "bf16"
    side = arguments.side
    image_B3HW = torch.randn(8, 3, side, side).contiguous(memory_format=torch.channels_last)
    # Weights and their bfloat16 copies do not depend on the batch: the difference is that of the activations.
    activations = (saved_bytes(method, image_B3HW) - saved_bytes(method, image_B3HW[:4])) / 4
    with FlopCounterMode(display=False) as both:
        with FlopCounterMode(display=False) as forward:
            feature_BD = method.features(image_B3HW)
        feature_BD.sum().backward()
    groups = method.parameter_groups()
    print(
        json.dumps(
            {
                "backbone": arguments.backbone,
                "side": side,
                "precision": arguments.precision,
                "parameters": {part: sum(map(torch.Tensor.numel, parameters)) for part, parameters in groups.items()},
                "memory_values": method.memory.centroid_CD.numel(),
                "activation_bytes_per_image": activations,
                "network_gflops_forward_per_image": forward.get_total_flops() / 8e9,
                "network_gflops_both_passes_per_image": both.get_total_flops() / 8e9,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--identities", type=int, default=74_500)
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    parser.add_argument("--channels-last", choices=SWITCH, default="both")
    parser.add_argument("--compile", choices=SWITCH, default="both")
    parser.add_argument("--steps", type=int, default=10, help="steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--account", action="store_true", help="count bytes and FLOPs instead of timing")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.account:
        account(arguments)
        return
    hardware = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(json.dumps({"torch": torch.__version__, "on": hardware, **vars(arguments)}))
    for figures in measure_stage(arguments):
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
