"""A small suite in a separate checkout: two recipes of a second each, on a small CIFAR-10."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from facelt.benchmarking.records import read_published
from facelt.config.registry import BACKBONES, METHODS
from tests.data.cifar_folder import write_cifar
from tests.training.thin import THIN

PUBLISHED = {
    "figures": [
        {"suite": "tiny", "method": "CE", "recipe": "softmax", "source": "R", "accuracy": {"4": 38.3, "2": 50}},
        {"suite": "tiny", "method": "Other", "source": "M", "selection": "best on test", "accuracy": {"4": 41.25}},
    ]
}


@pytest.fixture(scope="session")
def tiny_cifar(tmp_path_factory):
    """A folder of CIFAR-10 with 12 training and 3 test images per class."""
    root = tmp_path_factory.mktemp("cifar")
    write_cifar(root, 10, per_class=12, test_per_class=3)
    return root


@pytest.fixture
def interrupted_training(monkeypatch):
    """interrupted_training() -> a context in which the tenth step of `classify` is interrupted as by Ctrl-C."""

    @contextmanager
    def interrupted() -> Iterator[None]:
        original, steps = METHODS["classify"].step, iter(range(1000))

        def breaks(self, batches, progress):
            if next(steps) == 9:
                raise KeyboardInterrupt
            return original(self, batches, progress)

        with monkeypatch.context() as patch:
            patch.setattr(METHODS["classify"], "step", breaks)
            yield

    return interrupted


@pytest.fixture
def checkout(tiny_cifar, tmp_path, monkeypatch):
    """A project folder with configs/tiny and docs, which `facelt bench` uses."""
    suite = tmp_path / "checkout" / "configs" / "tiny"
    suite.mkdir(parents=True)
    stage = {"name": "plain", "method": {"name": "classify"}, "embedding": "none", "epochs": 4, "keep": "last"}
    stage["schedule"] = {"name": "multistep", "warmup_epochs": 1}
    base = {
        "out": "runs/tiny",
        "data": {"kind": "cifar", "root": str(tiny_cifar), "classes": 10, "imbalance": 4},
        "model": {"backbone": "resnet10"},
        "optim": {"lr": 0.05, "batch": 16},
        "stages": [stage],
    }
    (suite / "base.yaml").write_text(yaml.safe_dump(base))
    (suite / "softmax.yaml").write_text("base: base.yaml\n")
    (suite / "slow.yaml").write_text("base: base.yaml\noptim: {lr: 0.001}\n")
    (tmp_path / "checkout" / "configs" / "alone.yaml").write_text("base: tiny/base.yaml\n")
    docs = tmp_path / "checkout" / "docs"
    docs.mkdir()
    (tmp_path / "published.yaml").write_text(yaml.safe_dump(PUBLISHED))
    monkeypatch.setattr(read_published, "__defaults__", (tmp_path / "published.yaml",))
    monkeypatch.setattr("facelt.cli.bench.CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr("facelt.cli.bench.RECIPES_FOLDER", tmp_path / "checkout" / "configs")
    monkeypatch.setitem(BACKBONES, "resnet10", THIN["resnet10"])
    return tmp_path / "checkout"
