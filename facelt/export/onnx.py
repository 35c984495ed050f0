"""What goes into an ONNX file: a model as one function of `data`, made of operators that can be written down.

N images, H W their size, D feature, C identities.

Whether a graph's file answers as the model it was made from.

N images, H W their size, D feature.

A trained model as an ONNX file, checked and run before it is put in place.

N images, H W their size.
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

# What `data` is by agreement of face tools: (x - 127.5) / 127.5, in units of the full range.
INPUT_MEAN = INPUT_STD = 0.5


class FlipAveragedFeature(nn.Module):
    """`data` [N,3,H,W] to the network's feature, the mean of image and mirror image if `mirrored`.

    Both halves pass the network as one batch, so that the graph holds it once. A model of another normalisation begins
    with a 1x1 convolution that takes `data` to its own: it cannot go into the first layer, which pads with zeros.
    """

    def __init__(self, model: TrainedModel, mirrored: bool) -> None:
        super().__init__()
        self.network = model.method.network
        self.mirrored = mirrored
        self.own_scale = _to_own_scale(model.config.data.mean, model.config.data.std)

    def forward(self, data_N3HW: Tensor) -> Tensor:
        if self.mirrored:
            data_N3HW = torch.cat([data_N3HW, data_N3HW.flip(-1)])
        feature_ND = self.network(data_N3HW if self.own_scale is None else self.own_scale(data_N3HW))
        return feature_ND.unflatten(0, (2, -1)).mean(dim=0) if self.mirrored else feature_ND


class DirectGraph(nn.Module):
    """`data` -> the `direct` embedding, of unit length."""

    outputs = ("embedding",)

    def __init__(self, model: TrainedModel, mirrored: bool) -> None:
        super().__init__()
        self.feature = FlipAveragedFeature(model, mirrored)
        # Kept from becoming a part of this module: its head is no part of the file.
        self._method = (model.method,)

    def forward(self, data_N3HW: Tensor) -> Tensor:
        (method,) = self._method
        # A method with a memory would compute its meta-embedding as well.
        embed = Method.embed_features if isinstance(method, DynamicMeta) else type(method).embed_features
        return embed(method, self.feature(data_N3HW)).by_kind["direct"]


class MetaGraph(nn.Module):
    """`data` -> the `meta` embedding and the reachability, with the memory inside.

    DynamicMetaHead.embed on one rank, in operators that ONNX has. Of size N x C there are the hallucinator's shares and
    the products with the centroids; nothing is of size N x C x D. Both big matrices, 2 C D values, are held once.
    """

    outputs = ("embedding", "reachability")

    def __init__(self, model: TrainedModel, mirrored: bool) -> None:
        super().__init__()
        self.feature = FlipAveragedFeature(model, mirrored)
        head = model.method.head
        self.hallucinator, self.selector = head.hallucinator, head.selector
        self.variant, self.use_reachability = head.variant, head.use_reachability
        self.min_distance = head.memory.min_distance
        centroid_CD = head.memory.centroid_CD.detach()
        half_C = 0.5 * torch.linalg.vector_norm(centroid_CD, dim=1).square()
        self.register_buffer("centroid_CD", centroid_CD)
        # The nearest centroid has the largest f.c - |c|^2 / 2; one without an image is never it.
        self.register_buffer("offset_C", (-half_C).masked_fill(~head.memory.filled_C, -torch.inf))

    def forward(self, data_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        feature_ND = self.feature(data_N3HW)
        reachability_N = self.variant.reachability_scale / self._distance(feature_ND)
        vector_ND = feature_ND
        if self.hallucinator is not None:
            share_NC = F.linear(feature_ND, self.hallucinator.weight, self.hallucinator.bias).softmax(dim=1)
            memory_ND = share_NC @ self.centroid_CD
            if self.selector is not None:
                memory_ND = torch.tanh(self.selector(feature_ND)) * memory_ND
            vector_ND = feature_ND + memory_ND
        if self.use_reachability:
            vector_ND = reachability_N[:, None] * vector_ND
        return self.variant.squash(vector_ND), reachability_N

    def _distance(self, feature_ND: Tensor) -> Tensor:
        nearest_N = F.linear(feature_ND, self.centroid_CD, self.offset_C).argmax(dim=1)
        distance_N = torch.linalg.vector_norm(feature_ND - self.centroid_CD[nearest_N], dim=1)
        return distance_N.clamp_min(self.min_distance)


GRAPHS = {"direct": DirectGraph, "meta": MetaGraph}


def _to_own_scale(mean: Sequence[float], std: Sequence[float]) -> nn.Conv2d | None:
    """(STD * data + MEAN - mean) / std by channel; None where that is `data`."""
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
# One image and several: a batch size that the file has taken for granted shows.
_PARITY_BATCHES = (1, 7)


class ParityReport(NamedTuple):
    """The largest difference between a graph's outputs and torch's, and the smallest cosine of two embeddings.

    A difference d of a value v counts as d / max(1, |v|): a reachability may be in the thousands.
    """

    difference: float
    cosine: float


@torch.no_grad()
def reference_outputs(
    model: TrainedModel, image_NHW3: torch.Tensor, kind: str, mirrored: bool
) -> dict[str, np.ndarray]:
    """What the file is to answer for uint8 images, from the model itself by its own normalisation."""
    method, data = model.method, model.config.data
    image_N3HW = normalise_images(image_NHW3, data.mean, data.std)
    embeddings = method.embed(image_N3HW) if mirrored else method.embed_features(method.features(image_N3HW))
    answer = {"embedding": embeddings.by_kind[kind].numpy()}
    if kind == "meta":
        answer["reachability"] = embeddings.reachability_B.numpy()
    return answer


def onnx_outputs(session: onnxruntime.InferenceSession, image_NHW3: torch.Tensor) -> dict[str, np.ndarray]:
    """What the file answers for them, normalised outside as every tool does it."""
    data_N3HW = normalise_images(image_NHW3, (INPUT_MEAN,) * 3, (INPUT_STD,) * 3).contiguous()
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"data": data_N3HW.numpy()}), strict=True))


def compare_outputs(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> ParityReport:
    """Of the outputs for one batch; NaN where one of them is, or where an embedding has length 0."""
    if found.keys() != wanted.keys() or any(found[name].shape != wanted[name].shape for name in wanted):
        return ParityReport(np.nan, np.nan)
    difference = max(
        (np.abs(found[name] - value) / np.maximum(1, np.abs(value))).max().item() for name, value in wanted.items()
    )
    one_ND, other_ND = found["embedding"].astype(np.float64), wanted["embedding"].astype(np.float64)
    length_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ParityReport(difference, ((one_ND * other_ND).sum(axis=1) / length_N).min().item())


def check_parity(path: Path, model: TrainedModel, kind: str, mirrored: bool) -> ParityReport:
    """Runs the file beside the model on random images. Raises UserError where they differ or the model is unsound."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = torch.Generator().manual_seed(0)
    worst = ParityReport(0.0, 1.0)
    for batch in _PARITY_BATCHES:
        shape = (batch, *model.config.data.image_size, 3)
        image_NHW3 = torch.randint(256, shape, dtype=torch.uint8, generator=random)
        wanted = reference_outputs(model, image_NHW3, kind, mirrored)
        _refuse_unsound(model, kind, wanted["embedding"])
        here = compare_outputs(onnx_outputs(session, image_NHW3), wanted)
        # Written so that NaN is refused.
        if not (here.difference <= TOLERANCE and here.cosine > MIN_COSINE):
            raise UserError(
                f"{model.weights}: not exported, for the {kind} graph differs from the model at a batch of {batch}: by "
                f"{here.difference:.1e} where {TOLERANCE:.0e} is allowed, the cosine is {here.cosine:.6f} where "
                f"{MIN_COSINE} is wanted; use --format safetensors"
            )
        worst = ParityReport(max(worst.difference, here.difference), min(worst.cosine, here.cosine))
    return worst


def _refuse_unsound(model: TrainedModel, kind: str, embedding_ND: np.ndarray) -> None:
    length_N = np.linalg.norm(embedding_ND.astype(np.float64), axis=1)
    if not (np.isfinite(length_N) & (length_N > 0)).all():
        raise UserError(
            f"{model.weights}: not exported, for the model itself gives {kind} embeddings that are not finite or have "
            "length 0; use a stage whose training is sound"
        )


ONNX_SCHEMA = "facelt.onnx/1"
CARD_PROPERTY = "facelt.card"
_OPSET = 18
# One file holds no more: its format counts bytes in 31 bits. The graph itself is small beside its weights.
_MAX_BYTES = 2**31 - 2**24


@torch.no_grad()
def export_onnx(model: TrainedModel, path: Path, kind: str = "direct", mirrored: bool = True) -> ParityReport:
    """Writes the model's embeddings of that kind as a graph from `data` [N,3,H,W], whole or not at all.

    The outputs are `embedding` [N,D] and with `meta` also `reachability` [N]. The model is on the CPU, in evaluation
    mode. Returns how far the file's answers are from the model's.

    Raises UserError: a kind the model does not make, a graph that is too large or answers otherwise, a full disk.
    """
    model.require_kind(kind)
    graph = GRAPHS[kind](model, mirrored).eval()
    proto = _written_down(graph, model.config.data.image_size)
    card = {
        "schema": ONNX_SCHEMA,
        "kind": kind,
        "mirror_averaged": mirrored,
        "preprocessing": {"image_size": list(model.config.data.image_size), "channels": INPUT_FORMAT},
        **model_origin(model),
    }
    onnx.helper.set_model_props(proto, {CARD_PROPERTY: json.dumps(card, sort_keys=True)})
    with atomic_replace(path, "choose another place with --out") as temporary:
        onnx.save(proto, temporary)
        try:
            onnx.checker.check_model(temporary, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise _unwritable(error) from error
        return check_parity(temporary, model, kind, mirrored)


def is_insightface_compatible(image_size: tuple[int, int]) -> bool:
    """Whether insightface 2.1 takes a graph for such images, with one output, for a recognition model."""
    height, width = image_size
    return height == width != 192 and height >= 112 and height % 16 == 0


def _written_down(graph: nn.Module, image_size: tuple[int, int]) -> onnx.ModelProto:
    size = sum(value.nbytes for value in graph.state_dict().values())
    if size > _MAX_BYTES:
        raise UserError(
            f"--kind: {size / 1e9:.1f} GB of weights, and an ONNX file holds 2 GB; choose direct, which leaves the "
            "memory out, or --format safetensors"
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
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attended},
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise _unwritable(error.__cause__ or error) from error
    proto = program.model_proto
    _forget_places(proto)
    return proto


def _unwritable(error: BaseException) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(f"this network cannot be written as ONNX ({reason}); use --format safetensors")


def _attended(query_NPD, key_NPD, value_NPD, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, **_):
    """Modulated attention's own over P positions, unscaled: the exporter knows only attention of several heads."""
    if attn_mask is not None or is_causal or scale != 1.0:
        raise NotImplementedError("attention with a mask or a scale")
    share_NPP = op.Softmax(op.MatMul(query_NPD, op.Transpose(key_NPD, perm=[0, 2, 1])), axis=-1)
    return op.MatMul(share_NPP, value_NPD)


def _forget_places(proto: onnx.ModelProto) -> None:
    """The exporter notes for each node where in whose folders the source lay."""
    graph = proto.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph):
        del part.metadata_props[:]
