"""Many faces at once: JPEG files in the order asked for, rendered by a pool of processes."""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import cv2

from facelt.data.synthetic.difficulty import Difficulty
from facelt.data.synthetic.identity import draw_identity
from facelt.data.synthetic.nuisance import draw_nuisance
from facelt.data.synthetic.render import encode_face
from facelt.errors import UserError

CHUNK = 64  # pictures a worker renders at a time: about a quarter of a second
Picture = tuple[int, int]  # identity index, image index


def identity_name(index: int) -> str:
    """The name that says what it is: `synthetic_00012`."""
    return f"synthetic_{index:05d}"


def render_album(
    pictures: Sequence[Picture], *, seed: int, difficulty: Difficulty, size: int, workers: int | None
) -> Iterator[bytes]:
    """JPEG bytes of each picture, in order; the bytes do not depend on the number of workers.

    `workers` None takes the cores this process may use; 1 renders in this process. Raises UserError where `workers`
    is below 1 or a worker dies (usually for want of memory).
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise UserError(f"synthetic faces: workers must be a whole number from 1, not {workers!r}")
    chunks = [pictures[start : start + CHUNK] for start in range(0, len(pictures), CHUNK)]
    render = partial(_render, seed=seed, difficulty=difficulty, size=size)
    if workers == 1 or len(chunks) < 2:
        for chunk in chunks:
            yield from render(chunk)
        return
    # Forked workers start at once; a fresh interpreter would import torch through facelt.data first.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), context, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        try:
            for files in pool.map(render, chunks):
                yield from files
        except BrokenProcessPool as error:
            raise UserError("synthetic faces: a rendering process died; retry with fewer workers") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _render(pictures: Sequence[Picture], *, seed: int, difficulty: Difficulty, size: int) -> list[bytes]:
    files, last, person = [], None, None
    for identity, image in pictures:
        if identity != last:
            last, person = identity, draw_identity(seed, identity)
        files.append(encode_face(person, draw_nuisance(seed, identity, image, difficulty), size))
    return files
