"""An exported graph in onnxruntime on the device, against torch: parity and time."""

import onnxruntime
import torch

from benchmarks.export import latencies, random_model
from benchmarks.gpu_parts.parts import Unavailable
from benchmarks.gpu_parts.workload import Figures, Workload
from facelt.data.transforms import normalise_images
from facelt.export.onnx import INPUT_MEAN, INPUT_STD, compare_outputs, export_onnx, onnx_outputs, reference_outputs

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
BATCH, IDENTITIES = 64, 10_000


def onnx_direct(workload: Workload) -> Figures:
    """Exports the direct embedding with mirror images, and runs the graph and the model on the same images."""
    provider = PROVIDERS[workload.device.type]
    if provider not in onnxruntime.get_available_providers():
        raise Unavailable("onnxruntime has no CUDA; install onnxruntime-gpu in its place")
    torch.manual_seed(0)
    model = random_model("iresnet50" if workload.scale == 1 else "resnet10", workload.count(IDENTITIES, least=50))
    path = workload.folder / "direct.onnx"
    export_onnx(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=[provider])
    if provider not in session.get_providers():
        raise Unavailable("onnxruntime cannot load CUDA; install the versions of CUDA and cuDNN that it names")
    shape = (workload.count(BATCH, least=2), *model.config.data.image_size, 3)
    image_NHW3 = torch.randint(256, shape, dtype=torch.uint8)
    parity = compare_outputs(
        onnx_outputs(session, image_NHW3), reference_outputs(model, image_NHW3, "direct", flip=True)
    )
    rounds = workload.count(20, least=2)
    graph_ms = latencies({"direct": session}, len(image_NHW3), rounds)["direct"]
    method = model.method.to(workload.device)
    image_N3HW = normalise_images(image_NHW3, (INPUT_MEAN,) * 3, (INPUT_STD,) * 3)

    @torch.no_grad()
    def embed() -> torch.Tensor:
        return method.embed(image_N3HW.to(workload.device)).by_kind["direct"].cpu()

    torch_ms = workload.seconds(embed, 1, rounds) / len(image_NHW3) * 1000
    return {
        "difference": parity.difference,
        "cosine": parity.cosine,
        "ms_per_image": graph_ms,
        "times_torch": graph_ms / torch_ms,
    }
