"""Whether a graph's file answers as the model it was made from.

N images, H W their size, D feature.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch

from facelt.data.normalise import to_float
from facelt.engine.exporting.graphs import MEAN, STD
from facelt.engine.handed_on import TrainedModel
from facelt.errors import UserError

TOLERANCE = 1e-4
MIN_COSINE = 0.9999
# One image and several: a batch size that the file has taken for granted shows.
BATCHES = (1, 7)


class Agreement(NamedTuple):
    """The largest difference between a graph's outputs and torch's, and the smallest cosine of two embeddings.

    A difference d of a value v counts as d / max(1, |v|): a reachability may be in the thousands.
    """

    difference: float
    cosine: float


@torch.no_grad()
def expected(model: TrainedModel, image_NHW3: torch.Tensor, kind: str, mirrored: bool) -> dict[str, np.ndarray]:
    """What the file is to answer for uint8 images, from the model itself by its own normalisation."""
    method, data = model.method, model.config.data
    image_N3HW = to_float(image_NHW3, data.mean, data.std)
    embeddings = method.embed(image_N3HW) if mirrored else method.embed_features(method.features(image_N3HW))
    answer = {"embedding": embeddings.by_kind[kind].numpy()}
    if kind == "meta":
        answer["reachability"] = embeddings.reachability_B.numpy()
    return answer


def answered(session: onnxruntime.InferenceSession, image_NHW3: torch.Tensor) -> dict[str, np.ndarray]:
    """What the file answers for them, normalised outside as every tool does it."""
    data_N3HW = to_float(image_NHW3, (MEAN,) * 3, (STD,) * 3).contiguous()
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"data": data_N3HW.numpy()}), strict=True))


def compare(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> Agreement:
    """Of the outputs for one batch; NaN where one of them is, or where an embedding has length 0."""
    if found.keys() != wanted.keys() or any(found[name].shape != wanted[name].shape for name in wanted):
        return Agreement(np.nan, np.nan)
    difference = max(
        (np.abs(found[name] - value) / np.maximum(1, np.abs(value))).max().item() for name, value in wanted.items()
    )
    one_ND, other_ND = found["embedding"].astype(np.float64), wanted["embedding"].astype(np.float64)
    length_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Agreement(difference, ((one_ND * other_ND).sum(axis=1) / length_N).min().item())


def check_file(path: Path, model: TrainedModel, kind: str, mirrored: bool) -> Agreement:
    """Runs the file beside the model on random images. Raises UserError where they differ or the model is unsound."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = torch.Generator().manual_seed(0)
    worst = Agreement(0.0, 1.0)
    for batch in BATCHES:
        shape = (batch, *model.config.data.image_size, 3)
        image_NHW3 = torch.randint(256, shape, dtype=torch.uint8, generator=random)
        wanted = expected(model, image_NHW3, kind, mirrored)
        _refuse_unsound(model, kind, wanted["embedding"])
        here = compare(answered(session, image_NHW3), wanted)
        # Written so that NaN is refused.
        if not (here.difference <= TOLERANCE and here.cosine > MIN_COSINE):
            raise UserError(
                f"{model.weights}: not exported, for the {kind} graph differs from the model at a batch of {batch}: by "
                f"{here.difference:.1e} where {TOLERANCE:.0e} is allowed, the cosine is {here.cosine:.6f} where "
                f"{MIN_COSINE} is wanted; use --format safetensors"
            )
        worst = Agreement(max(worst.difference, here.difference), min(worst.cosine, here.cosine))
    return worst


def _refuse_unsound(model: TrainedModel, kind: str, embedding_ND: np.ndarray) -> None:
    length_N = np.linalg.norm(embedding_ND.astype(np.float64), axis=1)
    if not (np.isfinite(length_N) & (length_N > 0)).all():
        raise UserError(
            f"{model.weights}: not exported, for the model itself gives {kind} embeddings that are not finite or have "
            "length 0; use a stage whose training is sound"
        )
