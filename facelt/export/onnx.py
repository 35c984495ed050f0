"""ONNX export: embedding graphs, written to one file and compared with the model.

N images, H W their size, D feature, C classes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnxscript import opset18 as op
from torch import Tensor, nn

from facelt.data.transforms import normalise_images
from facelt.errors import UserError
from facelt.export.safetensors import INPUT_FORMAT, model_origin
from facelt.inference.model import TrainedModel
from facelt.methods.base import Method
from facelt.methods.oltr import DynamicMeta
from recordio_tools.atomic_io import atomic_replace

# Face tools expect `data` to be (x - 127.5) / 127.5: mean and std in units of the full pixel range.
INPUT_MEAN = INPUT_STD = 0.5


class FlipAveragedFeature(nn.Module):
    """`data` [N,3,H,W] -> the network's feature; with `flip`, the mean over image and mirror image.

    Images and mirror images pass the network as one batch, so that the graph contains it once. A 1x1 convolution
    converts `data` to the normalization of the model; it cannot be merged with the first layer, which pads with zeros.
    """

    def __init__(self, model: TrainedModel, flip: bool) -> None:
        super().__init__()
        self.network = model.method.network
        self.flip = flip
        self.renormalize = _renormalization(model.config.data.mean, model.config.data.std)

    def forward(self, data_N3HW: Tensor) -> Tensor:
        if self.flip:
            data_N3HW = torch.cat([data_N3HW, data_N3HW.flip(-1)])
        feature_ND = self.network(data_N3HW if self.renormalize is None else self.renormalize(data_N3HW))
        return feature_ND.unflatten(0, (2, -1)).mean(dim=0) if self.flip else feature_ND


class DirectGraph(nn.Module):
    """`data` -> the `direct` embedding, of unit norm."""

    outputs = ("embedding",)

    def __init__(self, model: TrainedModel, flip: bool) -> None:
        super().__init__()
        self.feature = FlipAveragedFeature(model, flip)
        # In a tuple, the method is no submodule, and its head is not exported.
        self._method = (model.method,)

    def forward(self, data_N3HW: Tensor) -> Tensor:
        (method,) = self._method
        # DynamicMeta's own function would also compute the meta-embedding.
        embed = Method.embed_features if isinstance(method, DynamicMeta) else type(method).embed_features
        return embed(method, self.feature(data_N3HW)).by_kind["direct"]


class MetaGraph(nn.Module):
    """`data` -> the `meta` embedding and, if wanted, the reachability, with the memory in the graph.

    DynamicMetaHead.embed for one rank, in ONNX operators. The hallucinator's coefficients and the products with the
    centroids have size N x C; nothing has size N x C x D. Each of the two large matrices, C x D, is stored once.
    """

    def __init__(self, model: TrainedModel, flip: bool, reachability: bool) -> None:
        super().__init__()
        self.outputs = ("embedding", "reachability") if reachability else ("embedding",)
        self.feature = FlipAveragedFeature(model, flip)
        head = model.method.head
        self.hallucinator, self.selector = head.hallucinator, head.selector
        self.variant, self.use_reachability = head.variant, head.use_reachability
        self.min_distance = head.memory.min_distance
        centroid_CD = head.memory.centroid_CD.detach()
        half_C = 0.5 * torch.linalg.vector_norm(centroid_CD, dim=1).square()
        self.register_buffer("centroid_CD", centroid_CD)
        # The nearest centroid has the largest f.c - |c|^2 / 2; classes without images are excluded.
        self.register_buffer("offset_C", (-half_C).masked_fill(~head.memory.filled_C, -torch.inf))

    def forward(self, data_N3HW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        feature_ND = self.feature(data_N3HW)
        reachability_N = self.variant.reachability_scale / self._distance(feature_ND)
        vector_ND = feature_ND
        if self.hallucinator is not None:
            coefficient_NC = F.linear(feature_ND, self.hallucinator.weight, self.hallucinator.bias).softmax(dim=1)
            memory_ND = coefficient_NC @ self.centroid_CD
            if self.selector is not None:
                memory_ND = torch.tanh(self.selector(feature_ND)) * memory_ND
            vector_ND = feature_ND + memory_ND
        if self.use_reachability:
            vector_ND = reachability_N[:, None] * vector_ND
        embedding_ND = self.variant.squash(vector_ND)
        return (embedding_ND, reachability_N) if "reachability" in self.outputs else embedding_ND

    def _distance(self, feature_ND: Tensor) -> Tensor:
        nearest_N = F.linear(feature_ND, self.centroid_CD, self.offset_C).argmax(dim=1)
        distance_N = torch.linalg.vector_norm(feature_ND - self.centroid_CD[nearest_N], dim=1)
        return distance_N.clamp_min(self.min_distance)


def _renormalization(mean: Sequence[float], std: Sequence[float]) -> nn.Conv2d | None:
    """(INPUT_STD * data + INPUT_MEAN - mean) / std by channel; None if that is the identity."""
    if set(mean) == {INPUT_MEAN} and set(std) == {INPUT_STD}:
        return None
    convolution = nn.Conv2d(3, 3, 1, groups=3)
    with torch.no_grad():
        std_3 = torch.tensor(std)
        convolution.weight.copy_((INPUT_STD / std_3)[:, None, None, None])
        convolution.bias.copy_((INPUT_MEAN - torch.tensor(mean)) / std_3)
    return convolution


TOLERANCE = 1e-4
MIN_COSINE = 0.9999
# One image and several, to detect a batch size that the exporter fixed.
_PARITY_BATCHES = (1, 7)


class ParityReport(NamedTuple):
    """Largest difference between outputs of graph and model, and smallest cosine between their embeddings.

    A difference d from a value v is d / max(1, |v|), since a reachability can be in the thousands.
    """

    difference: float
    cosine: float


@torch.no_grad()
def reference_outputs(
    model: TrainedModel, image_NHW3: torch.Tensor, kind: str, flip: bool, reachability: bool = True
) -> dict[str, np.ndarray]:
    """The model's outputs for uint8 images, with its own normalization."""
    method, data = model.method, model.config.data
    image_N3HW = normalise_images(image_NHW3, data.mean, data.std)
    embeddings = method.embed(image_N3HW) if flip else method.embed_features(method.features(image_N3HW))
    outputs = {"embedding": embeddings.by_kind[kind].numpy()}
    if kind == "meta" and reachability:
        outputs["reachability"] = embeddings.reachability_B.numpy()
    return outputs


def onnx_outputs(session: onnxruntime.InferenceSession, image_NHW3: torch.Tensor) -> dict[str, np.ndarray]:
    """The graph's outputs for uint8 images, which are normalized to `data` as face tools do."""
    data_N3HW = normalise_images(image_NHW3, (INPUT_MEAN,) * 3, (INPUT_STD,) * 3).contiguous()
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"data": data_N3HW.numpy()}), strict=True))


def compare_outputs(outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> ParityReport:
    """Compares the outputs for one batch; NaN for other names or shapes, NaN outputs, and embeddings of norm 0."""
    if outputs.keys() != expected.keys() or any(outputs[name].shape != expected[name].shape for name in expected):
        return ParityReport(np.nan, np.nan)
    difference = max(
        (np.abs(outputs[name] - value) / np.maximum(1, np.abs(value))).max().item() for name, value in expected.items()
    )
    first_ND, second_ND = outputs["embedding"].astype(np.float64), expected["embedding"].astype(np.float64)
    norm_N = np.linalg.norm(first_ND, axis=1) * np.linalg.norm(second_ND, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ParityReport(difference, ((first_ND * second_ND).sum(axis=1) / norm_N).min().item())


def check_parity(path: Path, model: TrainedModel, kind: str, flip: bool, reachability: bool) -> ParityReport:
    """Compares the file's outputs with the model's on random images.

    Raises UserError if they differ or the model has diverged."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = ParityReport(0.0, 1.0)
    for batch in _PARITY_BATCHES:
        shape = (batch, *model.config.data.image_size, 3)
        image_NHW3 = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        expected = reference_outputs(model, image_NHW3, kind, flip, reachability)
        _require_finite_embeddings(model, kind, expected["embedding"])
        report = compare_outputs(onnx_outputs(session, image_NHW3), expected)
        # Written so that NaN fails.
        if not (report.difference <= TOLERANCE and report.cosine > MIN_COSINE):
            raise UserError(
                f"{model.weights}: not exported, the {kind} graph differs from the model at a batch of {batch}: by "
                f"{report.difference:.1e} (allowed: {TOLERANCE:.0e}), with a cosine of {report.cosine:.6f} (required: "
                f"{MIN_COSINE}); use --format safetensors"
            )
        worst = ParityReport(max(worst.difference, report.difference), min(worst.cosine, report.cosine))
    return worst


def _require_finite_embeddings(model: TrainedModel, kind: str, embedding_ND: np.ndarray) -> None:
    norm_N = np.linalg.norm(embedding_ND.astype(np.float64), axis=1)
    if not (np.isfinite(norm_N) & (norm_N > 0)).all():
        raise UserError(
            f"{model.weights}: not exported, the model's {kind} embeddings are not finite or have norm 0; use a stage "
            "that did not diverge"
        )


ONNX_SCHEMA = "facelt.onnx/1"
CARD_PROPERTY = "facelt.card"
_OPSET = 18
# The format counts the bytes of a file in 31 bits; apart from its weights the graph is small.
_MAX_BYTES = 2**31 - 2**24


@torch.no_grad()
def export_onnx(
    model: TrainedModel, path: Path, kind: str = "direct", flip: bool = True, reachability: bool = True
) -> ParityReport:
    """Writes a graph from `data` [N,3,H,W] to embeddings of one kind, atomically; returns its parity with the model.

    The outputs are `embedding` [N,D] and, for `meta` with `reachability`, `reachability` [N]: insightface takes graphs
    of one output only. The model must be on the CPU.

    Raises UserError for a kind that the model does not make, a graph that is too large or differs from the model, and
    a full disk.
    """
    model.require_kind(kind)
    graph = DirectGraph(model, flip) if kind == "direct" else MetaGraph(model, flip, reachability)
    graph.eval()
    proto = _to_proto(graph, model.config.data.image_size)
    card = {
        "schema": ONNX_SCHEMA,
        "kind": kind,
        "mirror_averaged": flip,
        "preprocessing": {"image_size": list(model.config.data.image_size), "channels": INPUT_FORMAT},
        **model_origin(model),
    }
    onnx.helper.set_model_props(proto, {CARD_PROPERTY: json.dumps(card, sort_keys=True)})
    with atomic_replace(path, "choose another path with --out") as temporary:
        onnx.save(proto, temporary)
        try:
            onnx.checker.check_model(temporary, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise _export_error(error) from error
        return check_parity(temporary, model, kind, flip, reachability)


def is_insightface_compatible(image_size: tuple[int, int]) -> bool:
    """True if insightface 2.1 loads a graph with this input size and one output as a recognition model."""
    height, width = image_size
    return height == width != 192 and height >= 112 and height % 16 == 0


def _to_proto(graph: nn.Module, image_size: tuple[int, int]) -> onnx.ModelProto:
    size = sum(value.nbytes for value in graph.state_dict().values())
    if size > _MAX_BYTES:
        raise UserError(
            f"--kind: {size / 1e9:.1f} GB of weights, but an ONNX file holds 2 GB; choose direct, which leaves out the "
            "memory, or --format safetensors"
        )
    try:
        program = torch.onnx.export(
            graph,
            (torch.zeros(2, 3, *image_size),),
            dynamo=True,
            input_names=["data"],
            output_names=list(graph.outputs),
            dynamic_shapes=({0: torch.export.Dim("N")},),
            opset_version=_OPSET,
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attention},
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise _export_error(error.__cause__ or error) from error
    proto = program.model_proto
    _remove_source_paths(proto)
    return proto


def _export_error(error: BaseException) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(f"this network cannot be written as ONNX ({reason}); use --format safetensors")


def _attention(query_NPD, key_NPD, value_NPD, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, **_):
    """Unscaled attention over P positions, as in modulated attention; the exporter only supports multiple heads."""
    if attn_mask is not None or is_causal or scale != 1.0:
        raise NotImplementedError("attention with a mask or a scale")
    weight_NPP = op.Softmax(op.MatMul(query_NPD, op.Transpose(key_NPD, perm=[0, 2, 1])), axis=-1)
    return op.MatMul(weight_NPP, value_NPD)


def _remove_source_paths(proto: onnx.ModelProto) -> None:
    """Removes the source paths that the exporter records for each node."""
    graph = proto.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph):
        del part.metadata_props[:]
