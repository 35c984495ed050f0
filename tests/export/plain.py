"""Reference inputs of graph and model: pixels normalized in numpy and in float64.

N images, H W their size.
"""

import numpy as np
import onnxruntime
import torch

BATCHES = (1, 7, 64)


def run(path, image_NHW3) -> list[np.ndarray]:
    """Outputs of the file for pixels normalized in numpy as face tools do."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    data_N3HW = ((image_NHW3.numpy().astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2)
    return session.run(None, {"data": data_N3HW})


def by_hand(model, image_NHW3) -> torch.Tensor:
    """Input with the model's normalization, computed in float64."""
    mean, std = (torch.tensor(value, dtype=torch.float64) for value in (model.config.data.mean, model.config.data.std))
    return ((image_NHW3.double() / 255 - mean) / std).permute(0, 3, 1, 2).float()
