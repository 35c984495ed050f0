"""Values that the host reads in a training step, counted on the CPU: none of that step."""

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from facelt.distributed.class_shards import ClassRange
from facelt.training import trainer
from facelt.training.trainer import Trainer
from tests.training.test_nonfinite import spoil

# Operators that make the host wait on a GPU: they read values, or have a result whose shape depends on them.
OPERATORS = {
    *("_local_scalar_dense", "bincount", "equal", "is_nonzero", "masked_select", "nonzero", "repeat_interleave"),
    *("_coalesce", "_unique", "_unique2", "unique_consecutive", "unique_dim"),
}
CONVERSIONS = {
    getattr(torch.Tensor, name) for name in ("__bool__", "__float__", "__int__", "cpu", "item", "numpy", "tolist")
}


class CountedOperators(TorchDispatchMode):
    """Counts those operators, and indexing by a mask."""

    def __init__(self, counts: Counter) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        is_index = name in ("index", "index_put", "index_put_", "_index_put_impl_")
        is_mask = is_index and any(index is not None and index.dtype == torch.bool for index in arguments[1])
        if name in OPERATORS or is_mask:
            self.counts[name] += 1
        return function(*arguments, **options or {})


class CountedConversions(TorchFunctionMode):
    """Counts conversions of tensors to Python values, which the operators of a CPU do not show."""

    def __init__(self, counts: Counter) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function in CONVERSIONS:
            self.counts[function.__name__] += 1
        return function(*arguments, **options or {})


def test_the_counters_count():
    counts, value = Counter(), torch.arange(3.0)
    with CountedOperators(counts), CountedConversions(counts):
        _ = value[value > 0], value.sum().item(), value.tolist(), torch.bincount(value.long())
        value[value > 1] = 0.0
        (value.requires_grad_() * 2)[value > 0].sum().backward()
    masks = {"index": 2, "index_put": 1, "index_put_": 1}
    assert counts == {**masks, "_local_scalar_dense": 1, "item": 1, "tolist": 1, "bincount": 1}


STAGES = [
    {
        "name": "plain",
        "method": {"name": "classify", "head": "margin", "margin": {"name": "adaface"}},
        "epochs": 1,
    },
    {
        "name": "oltr",
        "init_from": "plain",
        "method": {"name": "dynamic_meta", "centroid_update": "tracking", "classifier_init": "class_means"},
        "attention": True,
        "epochs": 1,
    },
    {"name": "released", "init_from": "plain", "method": {"name": "dynamic_meta", "variant": "paper"}, "epochs": 1},
    {"name": "sampled", "method": {"name": "classify", "head": "cosine", "sample_rate": 0.5}, "epochs": 1},
    {"name": "transfer", "init_from": "plain", "method": {"name": "fusion_kt", "memory_start": 0.0}, "epochs": 1},
]


def test_a_step_reads_nothing(train, tmp_path, monkeypatch):
    """Forward, backward, check and update, of a logged step and of one that is not finite as well."""
    step, sync_step_info, counts_of = Trainer.train_step, trainer.sync_step_info, {}

    def counted(self, batches):
        counts = counts_of[self.stage.name, self.state.step] = Counter()
        # The numbers of images of the ranks are values of the host.
        info = sync_step_info(batches)
        monkeypatch.setattr(trainer, "sync_step_info", lambda batches: info)
        with CountedOperators(counts), CountedConversions(counts):
            step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", counted)
    # On a GPU this is an assertion on the device.
    monkeypatch.setattr(ClassRange, "check_labels", lambda *_: None)
    spoil(monkeypatch, {2})
    folder = train(tmp_path / "run", stages=STAGES, log_every=3)
    assert [stage for stage, number in counts_of if number == 3] == [stage["name"] for stage in STAGES]
    # After a step that is logged, earlier steps are read; the log has the first and the last of four.
    assert all(counts == ({"tolist": 1} if number == 1 else {}) for (_, number), counts in counts_of.items())
    assert [path.name for path in (folder / "nonfinite").iterdir()] == ["plain-0-2.json"]
