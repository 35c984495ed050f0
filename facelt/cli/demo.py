"""`facelt demo`: the whole pipeline on synthetic faces, from a record file to two reports."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from facelt.errors import UserError

_MARKER = ".facelt-demo"

# Images of 112 pixels would take three times as long on two cores.
_SIZE = 64
TRAINING_SET = MappingProxyType({"identities": 500, "images_per_identity": 16.0, "size": _SIZE})
"""Arguments of `write_training_record`."""
SELECTION = MappingProxyType({"images": 3200, "identities": 400})
"""Options of `recordio-tools sample`."""
_PROBE_IDENTITIES, _IMAGES_PER_PROBE = 120, 5
_DISTRACTORS = (10, 100, 1000)


def demo(
    out: Annotated[Path, typer.Option(help="Output folder for everything.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Random seed; it determines all results.")] = 0,
) -> None:
    """Draw synthetic faces, sample a long-tailed set, train a plain model and OLTR, and evaluate both on unseen people
    (MegaFace) and on known people.
    """
    started = time.perf_counter()
    _clear(out)
    _write_faces(out, seed)
    # With one thread sums have one order, so results do not depend on the number of cores.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    for command in commands(out, seed):
        print(f"\n$ {shlex.join(command)}", flush=True)
        result = subprocess.run([sys.executable, *command[1:]], env=environment, check=False)
        if result.returncode:
            raise UserError(f"the command above failed with exit code {result.returncode}")
    print(f"\nAll faces here are synthetic drawings. {time.perf_counter() - started:.0f} s.")
    print(f"Open {out / 'report' / 'report.html'} and {out / 'known_people' / 'report.html'}")


def commands(out: Path, seed: int) -> list[list[str]]:
    """Returns the commands that a user would type after the faces are written, in order."""
    selection, run, suite = out / "long_tail", out / "run", out / "suite"
    sample = ["sample", out / "faces" / "train.rec", "--out", selection, "--pack", "--seed", seed]
    sample += [word for name, value in SELECTION.items() for word in (f"--{name}", value)]
    train = ["demo"]
    for setting in (f"out={run}", f"seed={seed}", f"data.train={selection / 'train.rec'}"):
        train += ["--set", setting]
    measure = ["demo_megaface", "--out", out / "report"]
    measure += ["--set", f"suite.root={suite}"]
    probes = [suite / "facescrub_lst", "--root", suite / "facescrub_images"]
    distractors = [suite / "megaface_lst", "--root", suite / "megaface_images"]
    embeds, known = [], []
    for stage in ("plain_long", "oltr"):
        sources = {"probes": probes, "distractors": distractors}
        if stage == "plain_long":  # the reference of the shots
            sources["train"] = [selection / "train.rec"]
        for name, images in sources.items():
            store = out / "stores" / stage / name
            embeds.append(["--checkpoint", run / stage, "--images", *images, "--out", store])
            measure += ["--set", f"models.{stage}.{name}={store}"]
        measure += ["--set", f"models.{stage}.training_identities={selection / 'identities.csv'}"]
        known += ["--checkpoint", run / stage]
    known += ["--open-images", distractors[0], "--open-root", distractors[2], "--out", out / "known_people"]
    lines = [
        ["-m", "recordio_tools", *sample],
        ["-m", "facelt", "train", *train],
        *(["-m", "facelt", "embed", *embed] for embed in embeds),
        ["-m", "facelt", "megaface", *measure],
        ["-m", "facelt", "evaluate", *known],
    ]
    return [["python", *(str(word) for word in line)] for line in lines]


def _clear(out: Path) -> None:
    """Makes an empty folder; removes that of an earlier demo, refuses any other."""
    if out.exists():
        if not (out / _MARKER).is_file():
            raise UserError(f"{out}: exists and was not made by the demo; choose another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / _MARKER).touch()


def _write_faces(out: Path, seed: int) -> None:
    from facelt.synthetic.datasets import write_suite, write_training_record

    print("drawing synthetic faces ...", flush=True)
    training = write_training_record(out / "faces", **TRAINING_SET, seed=seed)
    suite = write_suite(
        out / "suite",
        probe_identities=_PROBE_IDENTITIES,
        images_per_probe=_IMAGES_PER_PROBE,
        distractors=max(_DISTRACTORS),
        sizes=_DISTRACTORS,
        seed=seed,
        first_identity=training.next_identity,
        size=_SIZE,
    )
    print(f"{training.images} training images of {training.identities} identities, {suite.probes} probes, ", end="")
    print(f"{suite.distractors} distractors: {out}", flush=True)
