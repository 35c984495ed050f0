"""A trained model as an ONNX file, checked and run before it is put in place.

N images, H W their size.
"""

import json
from pathlib import Path

import onnx
import torch
from onnxscript import opset18 as op
from torch import nn

from facelt.engine.exporting.agreement import Agreement, check_file
from facelt.engine.exporting.card import INPUT, origin
from facelt.engine.exporting.graphs import GRAPHS
from facelt.engine.handed_on import TrainedModel
from facelt.errors import UserError
from facelt.whole_files import replacing

SCHEMA = "facelt.onnx/1"
CARD = "facelt.card"
OPSET = 18
# One file holds no more: its format counts bytes in 31 bits. The graph itself is small beside its weights.
MAX_BYTES = 2**31 - 2**24


@torch.no_grad()
def export_onnx(model: TrainedModel, path: Path, kind: str = "direct", mirrored: bool = True) -> Agreement:
    """Writes the model's embeddings of that kind as a graph from `data` [N,3,H,W], whole or not at all.

    The outputs are `embedding` [N,D] and with `meta` also `reachability` [N]. The model is on the CPU, in evaluation
    mode. Returns how far the file's answers are from the model's.

    Raises UserError: a kind the model does not make, a graph that is too large or answers otherwise, a full disk.
    """
    if kind not in model.method.kinds:
        made = ", ".join(found for found in model.method.kinds if found in GRAPHS)
        raise UserError(f"--kind {kind}: stage {model.card['stage']} makes none; choose {made}")
    graph = GRAPHS[kind](model, mirrored).eval()
    proto = _written_down(graph, model.config.data.image_size)
    card = {
        "schema": SCHEMA,
        "kind": kind,
        "mirror_averaged": mirrored,
        "preprocessing": {"image_size": list(model.config.data.image_size), "channels": INPUT},
        **origin(model),
    }
    onnx.helper.set_model_props(proto, {CARD: json.dumps(card, sort_keys=True)})
    with replacing(path, "choose another place with --out") as temporary:
        onnx.save(proto, temporary)
        try:
            onnx.checker.check_model(temporary, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise _unwritable(error) from error
        return check_file(temporary, model, kind, mirrored)


def insightface_takes(image_size: tuple[int, int]) -> bool:
    """Whether insightface 2.1 takes a graph for such images, with one output, for a recognition model."""
    height, width = image_size
    return height == width != 192 and height >= 112 and height % 16 == 0


def _written_down(graph: nn.Module, image_size: tuple[int, int]) -> onnx.ModelProto:
    size = sum(value.nbytes for value in graph.state_dict().values())
    if size > MAX_BYTES:
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
            opset_version=OPSET,
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
