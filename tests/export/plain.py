"""A second way into graph and model: pixels normalised in plain numpy and in float64.

N images, H W their size.
"""

import numpy as np
import onnxruntime
import torch

BATCHES = (1, 7, 64)


def run(path, image_NHW3) -> list[np.ndarray]:
    """The file's outputs, for pixels normalised in numpy as face tools do it."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    data_N3HW = ((image_NHW3.numpy().astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2)
    return session.run(None, {"data": data_N3HW})


def by_hand(model, image_NHW3) -> torch.Tensor:
    """Input of the model's own normalisation, in float64 until the end."""
    mean, std = (torch.tensor(value, dtype=torch.float64) for value in (model.config.data.mean, model.config.data.std))
    return ((image_NHW3.double() / 255 - mean) / std).permute(0, 3, 1, 2).float()
