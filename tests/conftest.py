"""Fixtures shared by all tests: reference outputs, real data, small record files, and the command line."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_folder() -> Path:
    """The folder of reference outputs and real data: FACELT_SHARED, by default ../shared."""
    return Path(os.environ.get("FACELT_SHARED", ROOT.parent / "shared")).resolve()


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def golden() -> Path:
    """Reference outputs of the authors' code and of MXNet."""
    folder = shared_folder() / "golden"
    if not folder.is_dir():
        pytest.skip(f"reference outputs are absent: {folder} (set FACELT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real faces and lists, for tests only."""
    folder = shared_folder() / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is absent: {folder} (set FACELT_SHARED)")
    return folder


TINY_COUNTS = (14, 12, 9, 6, 1, 0)


@pytest.fixture(scope="session")
def tiny_faces(tmp_path_factory) -> Path:
    """A .rec of 42 images, 32 x 32, of 5 distinct identities; one has a single image and a sixth has none."""
    import cv2
    import numpy as np

    from recordio_tools.writer import FaceRecordWriter

    path = tmp_path_factory.mktemp("tiny_faces") / "train.rec"
    random = np.random.default_rng(0)
    base_C443 = random.integers(40, 216, (len(TINY_COUNTS), 4, 4, 3))
    with FaceRecordWriter(path, image_size=(32, 32), num_identities=len(TINY_COUNTS)) as writer:
        for label in np.repeat(np.arange(len(TINY_COUNTS)), TINY_COUNTS).tolist():
            small_443 = (base_C443[label] + random.integers(-30, 31, (4, 4, 3))).astype(np.uint8)
            image = cv2.resize(small_443, (32, 32), interpolation=cv2.INTER_LINEAR)
            writer.write(label, cv2.imencode(".png", image)[1].tobytes())
    return path


@pytest.fixture(scope="session")
def tiny_pairs(tiny_faces, tmp_path_factory) -> Path:
    """A verification set of 20 pairs of those images, 10 of them mated; some images occur in several pairs."""
    import pickle

    from recordio_tools.face_set import FaceRecord

    with FaceRecord(tiny_faces) as record:
        payloads = [bytes(record.read(key).payload) for key in record.image_keys.tolist()]
    # Indices of the first image of four identities.
    places = [(0, i, True) for i in (1, 2, 3, 4)] + [(14, 15, True), (15, 16, True), (26, 28, True), (26, 29, True)]
    places += [(35, 36, True), (36, 37, True)] + [(i, 14 + i, False) for i in range(6)]
    places += [(i, 35, False) for i in (5, 20, 27, 31)]
    order = [places[i * 7 % 20] for i in range(20)]
    images = [payloads[index] for left, right, _ in order for index in (left, right)]
    path = tmp_path_factory.mktemp("tiny_pairs") / "tiny.bin"
    path.write_bytes(pickle.dumps((images, [same for *_, same in order]), protocol=2))
    return path


@pytest.fixture(scope="session")
def recipe(tiny_faces) -> Callable[..., dict[str, Any]]:
    """recipe(out, **changes) -> the configuration of a short training run of two stages, plain and oltr."""

    def values(out: Path, **changes: Any) -> dict[str, Any]:
        plain = {"name": "plain", "method": {"name": "classify"}, "epochs": 2}
        oltr = {
            "name": "oltr",
            "method": {"name": "dynamic_meta"},
            "init_from": "plain",
            "epochs": 2,
            "attention": True,
        }
        return {
            "out": str(out),
            "data": {
                "kind": "record",
                "train": str(tiny_faces),
                "image_size": [32, 32],
                "validation_fraction": 0.2,
                "workers": 0,
            },
            "model": {"backbone": "resnet10", "dim": 16},
            "optim": {"lr": 0.05, "batch": 8},
            "stages": [plain, {**oltr, "lr_mult": {"network": 0.1, "memory": 0.1}}],
            "log_every": 1,
            **changes,
        }

    return values


@pytest.fixture(scope="session")
def finished_run(recipe, tmp_path_factory) -> Path:
    """The folder of a finished run of the recipe; read only."""
    from facelt.config.train import TrainConfig
    from facelt.training.run import run

    return run(TrainConfig.model_validate(recipe(tmp_path_factory.mktemp("finished") / "run")))


@pytest.fixture
def cli(capsys) -> Callable[..., tuple[int, str, str]]:
    """cli(*words) -> (exit code, stdout, stderr) of the command line."""
    from facelt.cli.main import app
    from facelt.utils.cli import run_app

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_app(app, [str(word) for word in words])
        return (end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def refused(cli) -> Callable[..., str]:
    """refused(*words) -> the one-line error message; stdout is empty and the exit code 1.

    Lines that name the models in use may precede the message.
    """

    def run(*words: object) -> str:
        code, out, error = cli(*words)
        assert (code, out) == (1, "")
        error = "".join(line for line in error.splitlines(keepends=True) if not line.startswith("model: "))
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return run
