"""Exported graphs in onnxruntime: file sizes, latencies relative to the plain graph, and parity with torch.

python benchmarks/export.py [--backbone iresnet50] [--identities 74500] [--rounds 7] [--folder FOLDER]

Prints one JSON object per line. Network and centroids are random. Graphs are timed in turn, and a ratio compares their
best rounds. Needs 4 GB of memory with the default numbers.

N images, C classes.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch

from facelt.config.train import TrainConfig
from facelt.export.onnx import compare_outputs, export_onnx, onnx_outputs, reference_outputs
from facelt.inference.model import TrainedModel, build_card, build_method

VARIANTS = {"direct": ("direct", True), "direct, no mirror": ("direct", False), "meta": ("meta", True)}
BATCHES = (1, 7, 64)


@torch.no_grad()
def random_model(backbone: str, identities: int) -> TrainedModel:
    """Returns a face model with memory and attention, and batch-norm statistics of a few batches."""
    stage = {"name": "oltr", "method": {"name": "dynamic_meta"}, "epochs": 1, "attention": True}
    values = {"out": "unused", "data": {"kind": "record", "train": "unused.rec"}, "model": {"backbone": backbone}}
    config = TrainConfig.model_validate({**values, "stages": [stage]})
    method = build_method(config, config.stages[0], identities)
    for _ in range(3):
        method.network(torch.rand(8, 3, *config.data.image_size) * 2 - 1)
    method.memory.centroid_CD.normal_()
    method.memory.filled_C.fill_(True)
    return TrainedModel(method.eval(), config, build_card(config, config.stages[0], method), Path("random"), "0" * 64)


def latencies(sessions: dict[str, onnxruntime.InferenceSession], batch: int, rounds: int) -> dict[str, float]:
    """Returns the best milliseconds per image of each graph, timed in turn."""
    best = dict.fromkeys(sessions, float("inf"))
    shape = sessions["direct"].get_inputs()[0].shape
    data_N3HW = torch.rand(batch, *shape[1:]).mul(2).sub(1).numpy()
    for _ in range(rounds + 1):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {"data": data_N3HW})
            best[name] = min(best[name], (time.perf_counter() - started) / batch * 1000)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="iresnet50")
    parser.add_argument("--identities", type=int, default=74_500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="Where the graphs stay.")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    model = random_model(arguments.backbone, arguments.identities)
    facts = {"threads": arguments.threads, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    print(json.dumps({**vars(arguments), **facts}, default=str), flush=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        sessions = {}
        for name, (kind, flip) in VARIANTS.items():
            path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.onnx"
            started = time.perf_counter()
            export_onnx(model, path, kind, flip)
            taken = time.perf_counter() - started
            size = path.stat().st_size / 1e6
            print(json.dumps({"graph": name, "megabytes": size, "export_and_check_s": taken}), flush=True)
            sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for batch in BATCHES:
            image_NHW3 = torch.randint(256, (batch, *model.config.data.image_size, 3), dtype=torch.uint8)
            for name, (kind, flip) in VARIANTS.items():
                parity = compare_outputs(
                    onnx_outputs(sessions[name], image_NHW3), reference_outputs(model, image_NHW3, kind, flip)
                )
                print(json.dumps({"graph": name, "batch": batch, **parity._asdict()}), flush=True)
        for batch in (1, 64):
            best = latencies(sessions, batch, arguments.rounds)
            ratios = {name: value / best["direct"] for name, value in best.items()}
            print(json.dumps({"batch": batch, "ms_an_image": best, "ratio_to_direct": ratios}), flush=True)


if __name__ == "__main__":
    main()
