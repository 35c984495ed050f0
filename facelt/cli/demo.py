"""`facelt demo`: the whole way, from record file to report, on faces that nobody has to download."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from facelt.errors import UserError

CHECKOUT = Path(__file__).resolve().parent.parent.parent
MARKER = ".facelt-demo"

# 112 pixels a side would show more, and take three times as long on two cores.
SIZE = 64
TRAINING_IDENTITIES, IMAGES_EACH = 500, 16.0
SELECTED_IMAGES, SELECTED_IDENTITIES = 3200, 400
PROBE_IDENTITIES, IMAGES_PER_PROBE = 24, 10
DISTRACTORS = (10, 100, 1000)


def demo(
    out: Annotated[Path, typer.Option(help="The folder for everything the demo makes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same numbers.")] = 0,
) -> None:
    """Make synthetic faces, sample a long tail, train plain and OLTR, and measure both as MegaFace does."""
    started = time.perf_counter()
    if not (CHECKOUT / "configs" / "demo.yaml").is_file():
        raise UserError(f"{CHECKOUT / 'configs' / 'demo.yaml'}: is absent; run the demo in a checkout of the project")
    _fresh(out)
    _make_faces(out, seed)
    # One thread adds in one order: the numbers are the same however many cores there are.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    for command in commands(out, seed):
        print(f"\n$ {shlex.join(command)}", flush=True)
        done = subprocess.run([sys.executable, *command[1:]], env=environment, check=False)
        if done.returncode:
            raise UserError(f"the command above failed with exit code {done.returncode}")
    print(f"\nAll faces here are synthetic drawings. {time.perf_counter() - started:.0f} s.")
    print(f"Open {out / 'report' / 'report.html'}")


def commands(out: Path, seed: int) -> list[list[str]]:
    """What a user would type, in order, once the faces are there."""
    # Relative in the checkout, as a user would type it there.
    root = Path() if Path.cwd() == CHECKOUT else CHECKOUT
    selection, run, suite = out / "long_tail", out / "run", out / "suite"
    sample = ["sample", out / "faces" / "train.rec", "--out", selection, "--pack", "--seed", seed]
    sample += ["--images", SELECTED_IMAGES, "--identities", SELECTED_IDENTITIES]
    train = ["--config", root / "configs" / "demo.yaml"]
    for setting in (f"out={run}", f"seed={seed}", f"data.train={selection / 'train.rec'}"):
        train += ["--set", setting]
    measure = ["--config", root / "configs" / "demo_megaface.yaml", "--out", out / "report"]
    measure += ["--set", f"suite.root={suite}"]
    embeds = []
    for stage in ("plain", "oltr"):
        probes = [suite / "facescrub_lst", "--root", suite / "facescrub_images"]
        distractors = [suite / "megaface_lst", "--root", suite / "megaface_images"]
        for name, images in (("train", [selection / "train.rec"]), ("probes", probes), ("distractors", distractors)):
            store = out / "stores" / stage / name
            embeds.append(["--checkpoint", run / stage, "--images", *images, "--out", store])
            measure += ["--set", f"models.{stage}.{name}={store}"]
        measure += ["--set", f"models.{stage}.training_identities={selection / 'identities.csv'}"]
    lines = [
        ["-m", "recordio_tools", *sample],
        ["-m", "facelt.train", *train],
        *(["-m", "facelt", "embed", *embed] for embed in embeds),
        [root / "eval_megaface" / "run.py", *measure],
    ]
    return [["python", *(str(word) for word in line)] for line in lines]


def _fresh(out: Path) -> None:
    """An empty folder that is the demo's own; an earlier demo's is removed, anything else refused."""
    if out.exists():
        if not (out / MARKER).is_file():
            raise UserError(f"{out}: exists and is no earlier demo's folder; choose another with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).touch()


def _make_faces(out: Path, seed: int) -> None:
    from facelt.synthetic.datasets import write_suite, write_training_record

    print("drawing synthetic faces ...", flush=True)
    training = write_training_record(
        out / "faces", identities=TRAINING_IDENTITIES, images_per_identity=IMAGES_EACH, seed=seed, size=SIZE
    )
    suite = write_suite(
        out / "suite",
        probe_identities=PROBE_IDENTITIES,
        images_per_probe=IMAGES_PER_PROBE,
        distractors=max(DISTRACTORS),
        sizes=DISTRACTORS,
        seed=seed,
        first_identity=training.next_identity,
        size=SIZE,
    )
    print(f"{training.images} training images of {training.identities} identities, {suite.probes} probes, ", end="")
    print(f"{suite.distractors} distractors: {out}", flush=True)
