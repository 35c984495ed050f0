"""Benchmark of `facelt embed`: images/s of the whole, compared with its parts alone, the network and decoding.

python benchmarks/embedding.py FILE.rec [--backbone resnet10] [--images 4096] [--batch 128] [--workers 1] [--rounds 3]
    [--device cpu]

Prints one JSON object per round, then the best of each and the ratio of the whole to the slower part. The network is
random and makes the kind `direct`, flip-averaged.

- network: embeddings of one batch that is on the device.
- decoding: the loader that feeds `facelt embed`, without a network.
- embed: `embed_images`, from the record to a finished store.

B images of a batch.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from facelt.config.train import TrainConfig
from facelt.data.batch import BadImageTracker
from facelt.data.kind import Split
from facelt.inference.embed import embed_images
from facelt.inference.model import TrainedModel, build_card, build_method
from facelt.inference.predict import EvalLoaderConfig, iterate_split
from facelt.inference.sources import ImageSource, open_image_source


def untrained_model(record: Path, backbone: str, device: torch.device) -> TrainedModel:
    """Returns a face model with random weights for the images of a record."""
    stage = {"name": "plain", "method": {"name": "classify"}, "epochs": 1}
    values = {"out": "unused", "data": {"kind": "record", "train": str(record)}, "model": {"backbone": backbone}}
    config = TrainConfig.model_validate({**values, "stages": [stage]})
    method = build_method(config, config.stages[0], 1000).to(device).eval()
    return TrainedModel(method, config, build_card(config, config.stages[0], method), Path("random"), "0" * 64)


@torch.no_grad()
def run_network(model: TrainedModel, image_B3HW: torch.Tensor, batches: int) -> None:
    """Embeds one batch several times; the results reach the host, as those of `facelt embed` do."""
    for _ in range(batches):
        model.method.embed(image_B3HW).by_kind["direct"].cpu()


def run_decoding(source: ImageSource, loader: EvalLoaderConfig) -> None:
    """Reads all images."""
    for _ in iterate_split(Split(source.dataset, source.members), loader):
        pass


def run_embedding(model: TrainedModel, source: ImageSource, arguments: argparse.Namespace) -> None:
    """Embeds all images into a store."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"batch": arguments.batch, "workers": arguments.workers, "dtype": "float16"}
        embed_images(model, source, Path(folder) / "store", **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("--backbone", default="resnet10")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    model = untrained_model(arguments.record, arguments.backbone, device)
    whole = open_image_source(arguments.record, model.config)
    count = min(arguments.images, len(whole.keys)) // arguments.batch * arguments.batch
    columns = {"keys": whole.keys[:count], "identities": whole.identities[:count], "attributes": {}}
    source = replace(whole, members=whole.members[:count], **columns)
    loader = EvalLoaderConfig(arguments.batch, arguments.workers, device, BadImageTracker(0))
    first, _ = next(iterate_split(Split(source.dataset, source.members), loader))
    image_B3HW = model.config.data.preprocessing().for_evaluation(first)
    programs = {
        "network": lambda: run_network(model, image_B3HW, count // arguments.batch),
        "decoding": lambda: run_decoding(source, loader),
        "embed": lambda: run_embedding(model, source, arguments),
    }
    best: dict[str, float] = {}
    for _ in range(arguments.rounds):
        rates = {}
        for name, program in programs.items():
            started = time.perf_counter()
            program()
            rates[name] = count / (time.perf_counter() - started)
            best[name] = max(best.get(name, 0.0), rates[name])
        print(json.dumps({"images": count, "images_per_s": rates}), flush=True)
    ratio = best["embed"] / min(best["network"], best["decoding"])
    print(json.dumps({"best": best, "embed / slower part": ratio}))


if __name__ == "__main__":
    main()
