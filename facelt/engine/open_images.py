"""Images of classes that a model was not trained on: the data's own split of them, or any other images.

Shapes: N images.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelt.config import TrainConfig
from facelt.data.list_dataset import FileDataset
from facelt.engine.answers import Answers
from facelt.engine.class_names import folder_names
from facelt.engine.data import Split, TrainingData
from facelt.engine.images import open_images
from facelt.errors import UserError

SPLIT = "open"


@dataclass(frozen=True, eq=False)
class OpenImages:
    """`split`, and the class of each image of its dataset, a name [N], as far as their paths tell."""

    split: Split
    class_N: np.ndarray

    def unknown(self, found: Answers) -> Answers:
        """Answers to these images with the label -1, whatever labels their dataset gives them."""
        return found._replace(label_N=np.full_like(found.label_N, -1))


def find_open_images(
    data: TrainingData, config: TrainConfig, path: Path | None = None, root: Path | None = None
) -> OpenImages:
    """The images at `path` (a .rec, a folder, or a list with `root`), or the split `open` of the data.

    Classes are folders; where all images lie in one, what their names begin with, up to the first underscore. Raises
    UserError.
    """
    if path is not None:
        source = open_images(path, config, root=root)
        class_N = np.full(len(source.dataset), "", dtype=object)
        class_N[source.members] = source.identities
        return OpenImages(Split(source.dataset, source.members), class_N)
    if SPLIT not in data.evaluation:
        raise UserError("--open: the configuration of this model has no data.open; name images with --open-images")
    split = data.evaluation[SPLIT]
    return OpenImages(split, np.array(_classes(split.dataset), dtype=object))


def _classes(dataset: FileDataset) -> list[str]:
    folders = folder_names(dataset.paths)
    return folders if any(folders) else [Path(path).name.partition("_")[0] for path in dataset.paths]
