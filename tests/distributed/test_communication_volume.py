"""Bytes that one step passes to torch.distributed: as documented, for any number of identities."""

import pytest
import torch
import torch.distributed as dist

from facelt.config.registry import METHODS
from facelt.distributed.class_shards import sharded_entries
from facelt.distributed.comm import rank, world_size
from facelt.methods.base import StepContext, TrainBatch
from facelt.methods.classify import ClassifySettings
from tests.distributed.ranks import run_ranks
from tests.distributed.test_sharded_training import BATCH, DIM, TinyNetwork
from tests.distributed.test_sharded_training import RECIPES as EXACT

COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "all_gather_object",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_single",
    "gather_object",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "reduce_scatter_single",
    "scatter",
    "send",
    "isend",
)
RECIPES = {**EXACT, "sampled": ClassifySettings(name="classify", head="cosine", sample_rate=0.3)}
COUNTED = ("cosine", "arcface", "adaface", "mv_softmax", "sampled", "released", "tracking", "paper")


class Counter:
    """Counts the bytes of everything that is gathered or reduced."""

    def __init__(self) -> None:
        self.bytes = 0
        for name in (name for name in COLLECTIVES if hasattr(dist, name)):
            setattr(dist, name, self._counted(getattr(dist, name), name))

    def _counted(self, collective, name):
        def call(*arguments, **options):
            tensors = [value for value in (*arguments, *options.values()) if isinstance(value, torch.Tensor)]
            assert tensors, f"{name} moves something that cannot be counted"
            self.bytes += max(value.numel() * value.element_size() for value in tensors)
            return collective(*arguments, **options)

        return call

    def take(self) -> int:
        taken, self.bytes = self.bytes, 0
        return taken


def count(counter: Counter, recipe: str, identities: int) -> tuple[int, int, set[int]]:
    """Bytes of one step, (forward and after the optimiser, backward), and the rows of all tensors sharded by class."""
    torch.manual_seed(0)
    method = METHODS[RECIPES[recipe].name](RECIPES[recipe], TinyNetwork(), identities)
    own = slice(BATCH * rank() // world_size(), BATCH * (rank() + 1) // world_size())
    inputs = TrainBatch(torch.randn(BATCH, 3, 2, 2)[own], torch.randint(identities, (BATCH,))[own])
    if method.needs_dataset_pass:
        with torch.no_grad():
            method.observe(inputs)
        method.end_dataset_pass()
    counter.take()
    output = method.step([inputs], StepContext(0, 1, 0, 1))
    forward = counter.take()
    output.loss.backward()
    backward = counter.take()
    output.after(torch.tensor(True))
    state = method.state_dict()
    return forward + counter.take(), backward, {len(state[name]) for name in sharded_entries(method)}


def count_all(sizes: tuple[int, ...]) -> dict[tuple[str, int], tuple[int, int, set[int]]]:
    counter = Counter()
    return {(recipe, identities): count(counter, recipe, identities) for recipe in COUNTED for identities in sizes}


def documented(recipe: str, ranks: int) -> tuple[int, int]:
    """The formulas of Classify and DynamicMeta, for an unequal number of images per rank."""
    most = max(BATCH * (r + 1) // ranks - BATCH * r // ranks for r in range(ranks))
    padded = ranks * most
    if recipe in ("cosine", "arcface", "adaface", "mv_softmax"):
        numbers = 4 if recipe == "mv_softmax" else 3
        return 4 * padded * DIM + 8 * padded + 4 * numbers * BATCH + 8 * ranks, 4 * padded * DIM
    if recipe == "sampled":
        return 4 * padded * DIM + 16 * padded + 12 * BATCH + 8 * ranks, 4 * padded * DIM
    labels = 4 if recipe == "tracking" else 3
    forward = 16 * padded * DIM + 8 * labels * padded + 12 * ranks * BATCH + 24 * BATCH + 8 * ranks + 4 * DIM + 16
    return forward, 12 * padded * DIM + 4 * BATCH + 4 * DIM * (DIM + 1)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_step_moves_the_documented_bytes_for_any_number_of_identities(ranks, tmp_path):
    for counted in run_ranks(count_all, ranks, tmp_path, (11, 110)):
        for (recipe, identities), (*result, _) in counted.items():
            assert tuple(result) == documented(recipe, ranks), f"{recipe}, {identities} identities"


def test_eight_ranks_move_the_documented_bytes_and_hold_an_eighth_of_the_rows(tmp_path):
    for counted in run_ranks(count_all, 8, tmp_path, (800,)):
        for (recipe, _), (*result, rows) in counted.items():
            assert tuple(result) == documented(recipe, 8), recipe
            assert rows == {100}, recipe
