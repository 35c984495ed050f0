"""Training step of ResNet-32 on CIFAR-100-LT: `facelt train` against a bare loop of the same network.

OMP_NUM_THREADS=1 python -m benchmarks.training_step [--root data/cifar] [--precision bf16] [--rounds 4] [--steps 84]

The bare loop has one batch of images in memory, and does nothing but forward pass, loss, backward pass and SGD. Both
take turns, in one process; the ratio of a round compares what was measured right after each other.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.memory_stage import timed
from facelt.config.loading import read_layers
from facelt.config.train import TrainConfig
from facelt.distributed.launch import process_group
from facelt.training.logs import NullLog
from facelt.training.run import build_initialized_method
from facelt.training.run_folder import RunFolder
from facelt.training.trainer import Trainer


def build_trainer(config: TrainConfig, device: torch.device) -> Trainer:
    """Returns the trainer of the first stage, before its first step."""
    stage, data, folder = config.stages[0], config.data.open(config.seed), RunFolder.create(config, resume=False)
    method = build_initialized_method(config, stage, data, folder)
    return Trainer(config, stage, method, data, folder, NullLog(), device)


def bare_step(config: TrainConfig, trainer: Trainer) -> Callable[[], None]:
    """Returns a step of the network alone, on images that are in memory."""
    optim, method = config.optim, trainer.method
    network = build_initialized_method(config, trainer.stage, trainer.data, trainer.folder).network
    network = network.to(memory_format=torch.channels_last).train()
    classifier = torch.nn.Linear(method.dim, trainer.data.num_classes)
    parameters = [*network.parameters(), *classifier.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    image_B3HW = torch.randn(optim.batch, 3, *config.data.image_size).contiguous(memory_format=torch.channels_last)
    label_B = torch.arange(optim.batch) % trainer.data.num_classes

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            feature_BD = network(image_B3HW)
        loss = F.cross_entropy(classifier(feature_BD.float()), label_B)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def trainer_step(trainer: Trainer) -> Callable[[], None]:
    """Returns a step of the trainer, from the images of the disk to the update; epochs follow each other."""

    def batches() -> Iterator[tuple]:
        while True:
            yield from zip(*(loader.batches(trainer.state.epoch) for loader in trainer.loaders), strict=True)
            trainer.state.epoch, trainer.state.step = trainer.state.epoch + 1, 0

    source = batches()

    def step() -> None:
        trainer.train_step(next(source))
        trainer.state.step += 1

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/cifar"))
    parser.add_argument("--precision", default="bf16", choices=("bf16", "float32"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=84, help="steps of each program in a round")
    arguments = parser.parse_args()
    options = {"device": "cpu", "precision": arguments.precision, "data": {"root": str(arguments.root)}}
    with tempfile.TemporaryDirectory() as folder:
        options["out"] = str(Path(folder) / "run")
        config = read_layers("cifar100_lt/softmax", options=options).validate(TrainConfig)
        with process_group(config.device, timedelta(minutes=1)) as device:
            trainer = build_trainer(config, device)
            programs = {"bare loop": bare_step(config, trainer), "facelt train": trainer_step(trainer)}
            for step in programs.values():
                timed(step, 5, "cpu")
            speeds: dict[str, list[float]] = {name: [] for name in programs}
            for number in range(1, arguments.rounds + 1):
                for name, step in programs.items():
                    speeds[name].append(config.optim.batch * arguments.steps / timed(step, arguments.steps, "cpu"))
                bare, trained = (values[-1] for values in speeds.values())
                print(f"round {number}: bare {bare:.0f}, trained {trained:.0f} images/s, ratio {trained / bare:.3f}")
    bare, trained = speeds.values()
    ratio = statistics.median(b / a for a, b in zip(bare, trained, strict=True))
    print(f"best: bare {max(bare):.0f}, trained {max(trained):.0f} images/s; median ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
