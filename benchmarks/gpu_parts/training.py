"""Training on the device: the memory stage, `facelt train` on resident and on decoded images, and CIFAR-100-LT."""

import os
import statistics
import time
from argparse import Namespace
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_parts.workload import Figures, Workload, write_record
from benchmarks.loader import open_dataset, programs, reading_speeds
from benchmarks.memory_stage import measure_stage
from facelt.config.loading import read_layers
from facelt.config.train import TrainConfig
from facelt.data.cifar import CIFAR_FILES, PROFILES
from facelt.distributed.launch import process_group
from facelt.inference.model import build_method
from facelt.methods.base import Method
from facelt.training.logs import NullLog
from facelt.training.run import run
from facelt.training.run_folder import RunFolder
from facelt.training.trainer import Trainer

# Where the recipe looks for it.
CIFAR = Path("data/cifar")
BATCH, IDENTITIES, EPOCHS, STEPS_PER_EPOCH = 512, 1000, 2, 64
# Lines of the log per epoch, and the first ones, which include the start of workers and the choice of kernels.
LINES_PER_EPOCH, WARM_UP_LINES = 8, 4
CIFAR_SIDE, CIFAR_BATCH, CIFAR_LARGEST, CIFAR_IMBALANCE, CIFAR_EPOCHS = 32, 128, 500, 100, 200


def memory_stage(workload: Workload, identities: int) -> Figures:
    """Times a step of the memory stage, of a plain cosine classifier and of the network alone."""
    arguments = Namespace(
        device=workload.device.type,
        backbone=workload.backbone,
        side=workload.side,
        batch=_batch(workload),
        identities=workload.count(identities, least=50),
        precision=workload.precision,
        channels_last="on",
        compile="off",
        steps=workload.count(10),
        rounds=workload.count(4, least=2),
    )
    torch.manual_seed(0)
    figures = {figures["program"]: figures for figures in measure_stage(arguments)}["memory stage"]
    wanted = {"times_cosine": "times cosine classifier", "times_network": "times network alone"}
    wanted |= {"images_per_s": "images_per_s", "peak_gb": "peak_gb"}
    return {name: figures[key] for name, key in wanted.items() if key in figures}


def train_resident(workload: Workload, compiled: bool) -> Figures:
    """Times `facelt train` on images in the device's memory, and the bare network with the same batch."""
    trained = _trained_images_per_s(workload, write_faces(workload), compiled=compiled)
    bare = _bare_images_per_s(workload, compiled)
    return {"share": trained / bare, "images_per_s": trained, "bare_images_per_s": bare}


def loader_bound(workload: Workload) -> Figures:
    """Times the loader with a worker for each core but a few, decoding alone, and `facelt train` with that loader."""
    cores = len(os.sched_getaffinity(0))
    workers = 1 if workload.scale < 1 else max(1, cores - cores // 8)
    record = write_faces(workload)
    dataset = open_dataset(record)
    with programs(dataset, len(dataset), _batch(workload), (workers,), (workers,), workload.device) as by_name:
        speeds = reading_speeds(by_name, rounds=workload.count(2))
    loaded, decoded = speeds[f"{workers} workers"], speeds[f"decoding alone, {workers} processes"]
    return {
        "images_per_s": loaded,
        "share": loaded / decoded,
        "trained_images_per_s": _trained_images_per_s(workload, record, cached=False, workers=workers),
        "workers": f"{workers} workers on {cores} cores",
    }


def cifar_softmax(workload: Workload) -> Figures:
    """Times the recipe cifar100_lt/softmax from its start to the saved model, images in the device's memory."""
    is_present = workload.scale == 1 and (CIFAR / CIFAR_FILES[100].folder).is_dir()
    largest = workload.count(CIFAR_LARGEST, least=8)
    classes = 100 if workload.scale == 1 else 10
    imbalance = min(CIFAR_IMBALANCE, largest)
    root = CIFAR if is_present else write_cifar_records(workload.folder / "cifar", classes, imbalance, largest)
    data = {"root": root, "classes": classes, "imbalance": imbalance, "cache_on_device": True}
    epochs = workload.count(CIFAR_EPOCHS)
    options = {"device": workload.device.type, "out": workload.folder / "cifar_run", "data": data}
    options["optim"] = {"batch": workload.count(CIFAR_BATCH, least=8)}
    layers = read_layers("cifar100_lt/softmax", [f"stages.0.epochs={epochs}"], options)
    config = layers.validate(TrainConfig)
    started = time.perf_counter()
    run(config)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "data": f"{epochs} epochs on {'CIFAR-100' if is_present else 'made-up images'}"}


def write_cifar_records(folder: Path, classes: int, imbalance: float, largest: int) -> Path:
    """Writes made-up images, `largest` of the first class and fewer of the next ones; returns the folder."""
    counts_C = PROFILES["exponential"](classes, imbalance, largest)
    for name, size_C in (("train", counts_C), ("test", np.ones(classes, dtype=int))):
        write_record(folder / f"{name}.rec", CIFAR_SIDE, np.repeat(np.arange(classes), size_C).tolist())
    return folder


def write_faces(workload: Workload) -> Path:
    """Writes a record of faces for one epoch of whole batches."""
    images = _steps(workload) * _batch(workload)
    labels = np.sort(np.arange(images) % _identities(workload)).tolist()
    return write_record(workload.folder / "train.rec", workload.side, labels)


def _batch(workload: Workload) -> int:
    return workload.count(BATCH, least=4)


def _compiler(workload: Workload) -> AbstractContextManager:
    """Returns a context in which torch.compile generates code on a GPU only, since that takes minutes on a CPU."""
    return nullcontext() if workload.device.type == "cuda" else torch.compiler.set_stance("force_eager")


def _steps(workload: Workload) -> int:
    return workload.count(STEPS_PER_EPOCH, least=4)


def _identities(workload: Workload) -> int:
    return workload.count(IDENTITIES, least=8)


class _SpeedLog(NullLog):
    """Log that keeps the images per second of each line."""

    def __init__(self) -> None:
        self.speeds: list[float] = []

    def write(self, stage: str, global_step: int, figures: Mapping[str, object]) -> None:
        if "samples_per_s" in figures:
            self.speeds.append(figures["samples_per_s"])


def _trained_images_per_s(
    workload: Workload, record: Path, *, compiled: bool = False, cached: bool = True, workers: int = 0
) -> float:
    """Returns the images per second of a run of the plain model, the median of the lines that the trainer logs."""
    config = _train_config(workload, record)
    data_config = config.data.model_copy(update={"cache_on_device": cached, "workers": workers})
    log_every = max(1, _steps(workload) // LINES_PER_EPOCH)
    config = config.model_copy(update={"data": data_config, "log_every": log_every, "compile": compiled})
    log = _SpeedLog()
    with _compiler(workload), process_group(config.device, timedelta(minutes=1)) as device:
        data, method = data_config.open(config.seed), _method(config, _identities(workload))
        Trainer(config, config.stages[0], method, data, RunFolder.create(config, resume=False), log, device).fit()
    return statistics.median(log.speeds[WARM_UP_LINES:])


def _bare_images_per_s(workload: Workload, compiled: bool) -> float:
    """Returns the images per second of the network alone: forward, backward and SGD on a batch on the device."""
    config = _train_config(workload, Path("unused"))
    network = (
        _method(config, _identities(workload)).network.to(workload.device, memory_format=torch.channels_last).train()
    )
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4, fused=True)
    forward = torch.compile(network) if compiled else network
    shape = (config.optim.batch, 3, workload.side, workload.side)
    image_B3HW = torch.randn(shape, device=workload.device).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(workload.device.type, torch.bfloat16, enabled=workload.precision == "bf16"):
            loss = forward(image_B3HW).float().square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    with _compiler(workload):
        return config.optim.batch / workload.seconds(step, workload.count(20, least=2))


def _train_config(workload: Workload, record: Path) -> TrainConfig:
    """Returns a recipe of the plain model."""
    size = [workload.side, workload.side]
    return TrainConfig.model_validate(
        {
            "out": workload.folder / "run",
            "device": workload.device.type,
            "precision": workload.precision,
            "data": {"kind": "record", "train": record, "image_size": size, "validation_fraction": 0.0},
            "model": {"backbone": workload.backbone},
            "optim": {"lr": 0.01, "batch": _batch(workload)},
            "stages": [{"name": "plain", "method": {"name": "classify"}, "epochs": EPOCHS}],
        }
    )


def _method(config: TrainConfig, identities: int) -> Method:
    return build_method(config, config.stages[0], identities)
