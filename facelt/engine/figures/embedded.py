"""Where images lie when their features are laid out in the plane by t-SNE (OLTR, Figure 3).

N images, C classes, D feature.
"""

from dataclasses import dataclass

import numpy as np
import torch

from facelt.engine.data import Split
from facelt.engine.figures.source import Source, drawn
from facelt.errors import UserError

FEWEST = 5
PERPLEXITY = 30.0


@dataclass(frozen=True)
class Points:
    """Names; labels, int64 [N], -1 in the open set; and places, float [N,2], without a unit."""

    names: tuple[str, ...]
    label_N: np.ndarray
    place_N2: np.ndarray


def points(source: Source, split: str, *, kind: str, images: int, seed: int) -> Points:
    """t-SNE of `images` embeddings of a split and of the open set, where the data have one, each by its size.

    Equal seeds draw the same images and lay them out alike. Raises UserError: a kind that the method has not, or too
    few images.
    """
    if kind not in source.method.kinds:
        stage, kinds = source.model.card["stage"], ", ".join(source.method.kinds)
        raise UserError(f"--kind {kind}: the stage {stage} embeds no such kind; it has: {kinds}")
    splits = [source.split(split)]
    splits += [source.data.evaluation["open"]] if split != "open" and "open" in source.data.evaluation else []
    total = sum(len(one.members) for one in splits)
    random = np.random.default_rng(seed)
    chosen = [drawn(one, round(images * len(one.members) / max(total, images)), random) for one in splits]
    parts = [_embedded(source, one, kind) for one in chosen]
    names = tuple(name for names, _, _ in parts for name in names)
    if len(names) < FEWEST:
        raise UserError(f"--images: t-SNE lays out {FEWEST} images or more, and there are {len(names)}")
    feature_ND = np.concatenate([feature_ND for _, _, feature_ND in parts])
    return Points(names, np.concatenate([label_N for _, label_N, _ in parts]), plane(feature_ND, seed))


def plane(feature_ND: np.ndarray, seed: int) -> np.ndarray:
    """Places [N,2] by t-SNE, begun at the two main axes."""
    from sklearn.manifold import TSNE

    # A neighbourhood is no larger than a third of what is there.
    perplexity = min(PERPLEXITY, (len(feature_ND) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(feature_ND)


@torch.no_grad()
def _embedded(source: Source, split: Split, kind: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, labels [N] and embeddings [N,D] of the images that could be read."""
    indices = [torch.empty(0, dtype=torch.int64)]
    features = [torch.empty(0, source.method.dim)]
    for batch, image_B3HW in source.batches(split):
        features.append(source.method.embed(image_B3HW).by_kind[kind].float().cpu())
        indices.append(batch.index_B.cpu())
    index_N = torch.cat(indices).numpy()
    names = [split.dataset.names(index) for index in index_N.tolist()]
    return names, split.dataset.labels[index_N], torch.cat(features).numpy()
