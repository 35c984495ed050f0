"""A network of one linear layer and batch norm on images of 2 x 2 pixels, and images that show their class.

N images, D feature.
"""

import torch
from torch import nn

from facelt.methods.base import StepContext, TrainBatch
from facelt.models.network import Network

CLASSES, DIM = 6, 8
FIRST = StepContext(epoch=0, epochs=1, step=0, steps=2)
# The last class has no images.
COUNTS = (9, 7, 5, 3, 2, 0)


class _Feature(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(12, dim)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, image_N322: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(image_N322.flatten(1)))


def small_network(dim: int = DIM) -> Network:
    """A network with random weights and non-trivial running statistics."""
    torch.manual_seed(0)
    network = Network(nn.Identity(), None, _Feature(dim))
    network(torch.randn(32, 3, 2, 2))
    return network


def training_set(counts: tuple[int, ...] = COUNTS) -> TrainBatch:
    """Returns images around one point per class, some of them nearer to another class's point."""
    random = torch.Generator().manual_seed(1)
    centre_C12 = 0.8 * torch.randn(len(counts), 12, generator=random)
    label_N = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    image_N = centre_C12[label_N] + torch.randn(len(label_N), 12, generator=random)
    return TrainBatch(image_N.view(-1, 3, 2, 2), label_N)


def linear_head(dim: int = DIM, classes: int = CLASSES) -> dict[str, torch.Tensor]:
    """State of an earlier stage's linear head."""
    random = torch.Generator().manual_seed(2)
    weight_CD = torch.randn(classes, dim, generator=random)
    return {"head.weight": weight_CD, "head.bias": torch.randn(classes, generator=random)}


def run_dataset_passes(method, data: TrainBatch, batch: int = 7) -> None:
    """Runs the dataset passes that the method needs, batch by batch, as the trainer does."""
    with torch.no_grad():
        while method.needs_dataset_pass:
            method.eval()
            for image, label in zip(data.image_B3HW.split(batch), data.label_B.split(batch), strict=True):
                method.observe(TrainBatch(image, label))
            method.end_dataset_pass()
    method.train()


def reloaded(method, build):
    """Returns a new method without counts, loaded from the state of `method`, in evaluation mode."""
    copy = build()
    copy.load_state_dict({name: value.clone() for name, value in method.state_dict().items()})
    return copy.eval()
