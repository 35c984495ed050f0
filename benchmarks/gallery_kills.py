"""Crash test of galleries: SIGKILL at random moments loses no committed sample and restores no removed one.

python benchmarks/gallery_kills.py --kills 200

A child process enrols, replaces and removes samples, stores settings, takes snapshots, rebuilds and compacts, and
reports the begin and the end of each operation over a pipe. After each kill, a reader and then the next writer must
find all finished operations, and all or nothing of the interrupted one. Every sample must be found by its embedding,
and no file may contain an embedding or a note of a removed sample, or the name of a removed person.

N samples, D feature.
"""

import argparse
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from facelt.gallery.gallery import Gallery
from facelt.gallery.local import LocalGallery
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import Samples

DIMENSION = 32
KEYS, PEOPLE = 300, 40
LONGEST_SECONDS = 0.3
MODEL_SPEC = ModelSpec("killed", "0" * 64, "direct", DIMENSION)

# Key -> person and the number of the operation that enrolled it, from which the embedding follows.
Enrolled = dict[str, tuple[str, int]]


def embedding(key: str, number: int) -> np.ndarray:
    """Returns the unit embedding with which the operation `number` enrols a key."""
    row_D = np.random.default_rng([number, int(key[1:])]).standard_normal(DIMENSION).astype(np.float32)
    length = np.sqrt(np.einsum("d,d->", row_D, row_D, dtype=np.float64))
    return (row_D / length).astype(np.float32)


def note(key: str, number: int) -> str:
    """Returns the text in metadata and provenance with which the operation `number` enrols a key."""
    return f"note-{number:06d}-{key}."


class Operation:
    """Operation `number` of the writer, and the samples that are enrolled after it."""

    def __init__(self, seed: int, number: int) -> None:
        self.number = number
        random = np.random.default_rng([seed, number])
        kinds = ("enroll", "remove people", "remove keys", "setting", "snapshot", "rebuild", "compact")
        self.kind = random.choice(kinds, p=(0.4, 0.2, 0.2, 0.05, 0.05, 0.05, 0.05))
        self.keys = [f"k{key}" for key in random.choice(KEYS, random.integers(1, 40), replace=False)]
        self.people = [f"person-{who:03d}" for who in random.integers(0, PEOPLE, len(self.keys))]

    def after(self, enrolled: Enrolled) -> Enrolled:
        """Returns the samples that are enrolled after the operation."""
        if self.kind == "enroll":
            return enrolled | {key: (who, self.number) for key, who in zip(self.keys, self.people, strict=True)}
        if self.kind == "remove people":
            return {key: value for key, value in enrolled.items() if value[0] not in self.people[:3]}
        if self.kind == "remove keys":
            return {key: value for key, value in enrolled.items() if key not in self.keys}
        return enrolled

    def removed(self, enrolled: Enrolled) -> Enrolled:
        """Returns the samples that the operation removes, without those that it replaces."""
        after = self.after(enrolled)
        return {} if self.kind == "enroll" else {key: value for key, value in enrolled.items() if key not in after}

    def removed_people(self, enrolled: Enrolled) -> set[str]:
        """Returns the people that the operation removes by name."""
        return set(self.people[:3]) & {who for who, _ in enrolled.values()} if self.kind == "remove people" else set()

    def carry_out(self, gallery: Gallery, folder: Path) -> None:
        if self.kind == "enroll":
            rows = np.stack([embedding(key, self.number) for key in self.keys])
            notes = [{"note": note(key, self.number)} for key in self.keys]
            gallery.enroll(Samples(self.keys, self.people, rows, notes, notes))
        elif self.kind == "remove people":
            gallery.remove(people=self.people[:3])
        elif self.kind == "remove keys":
            gallery.remove(keys=self.keys)
        elif self.kind == "setting":
            gallery.backend.set_setting("number", self.number)
        elif self.kind == "snapshot":
            gallery.snapshot(folder / f"snapshot-{self.number}-{time.monotonic_ns()}")
        elif self.kind == "compact":
            gallery.backend.compact()
        else:
            gallery.backend.rebuild()


def write_until_killed(folder: Path, seed: int, first: int, pipe: int) -> None:
    """Runs one operation after another, in the child process."""
    gallery = Gallery.open(folder / "gallery", write=True)
    for number in range(first, first + 100_000):
        os.write(pipe, f"begin {number}\n".encode())
        Operation(seed, number).carry_out(gallery, folder)
        os.write(pipe, f"done {number}\n".encode())


def run_killed_writer(folder: Path, seed: int, first: int, seconds: float) -> list[str]:
    """Runs a writer in a child process, kills it after `seconds`, and returns the lines it reported."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            write_until_killed(folder, seed, first, writing)
        except BaseException as error:
            os.write(writing, f"failed {error!r}\n".encode())
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return pipe.read().splitlines()


def stored_samples(gallery: LocalGallery) -> dict[str, tuple[str, bytes]]:
    """Returns person and embedding of each key in a gallery."""
    stored: dict[str, tuple[str, bytes]] = {}
    for samples in gallery.samples():
        for key, who, row_D in zip(samples.keys, samples.people, samples.embedding_ND, strict=True):
            stored[key] = (who, row_D.tobytes())
    return stored


def expected_samples(enrolled: Enrolled) -> dict[str, tuple[str, bytes]]:
    """Returns person and embedding that a gallery must store for each key."""
    return {key: (who, embedding(key, number).tobytes()) for key, (who, number) in enrolled.items()}


def check_searches(gallery: LocalGallery, enrolled: Enrolled, absent: Enrolled) -> None:
    """Raises AssertionError unless each sample is found by its embedding, and none by a removed one."""
    if enrolled:
        rows = np.stack([embedding(key, number) for key, (_, number) in enrolled.items()])
        for key, candidates in zip(enrolled, gallery.search(rows, 1).candidates, strict=True):
            assert candidates[0].key == key, f"{key} is lost"
            assert candidates[0].score > 0.9999, f"{key} is lost"
    if absent:
        rows = np.stack([embedding(key, number) for key, (_, number) in absent.items()])
        for key, candidates in zip(absent, gallery.search(rows, 1).candidates, strict=True):
            assert not candidates or candidates[0].score < 0.9999, f"{key} came back"


def check_bytes(folder: Path, absent: Enrolled, removed_people: set[str]) -> None:
    """Raises AssertionError if a file of gallery or snapshots contains an embedding, note or name that was removed."""
    needles = {
        f"the embedding of {key} by {number}": embedding(key, number).tobytes() for key, (_, number) in absent.items()
    }
    needles |= {
        text: text.encode() for text in (*(note(key, number) for key, (_, number) in absent.items()), *removed_people)
    }
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for what, needle in needles.items():
                assert needle not in content, f"{path} still contains {what}"


def run_kills(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Kills `kills` writers of a new gallery in `folder`; returns counts. Raises AssertionError if a check fails."""
    Gallery.create(folder / "gallery", MODEL_SPEC).close()
    random = np.random.default_rng(seed)
    enrolled: Enrolled = {}
    removed: Enrolled = {}
    removed_people: set[str] = set()
    number = 0
    counts = dict.fromkeys(("kills", "kills within an operation", "of these committed"), 0)
    for _ in range(kills):
        lines = run_killed_writer(folder, seed, number, random.uniform(0, LONGEST_SECONDS))
        assert not [line for line in lines if line.startswith("failed")], lines
        done = sum(line.startswith("done") for line in lines)
        for step in range(number, number + done):
            operation = Operation(seed, step)
            removed |= operation.removed(enrolled)
            removed_people |= operation.removed_people(enrolled)
            enrolled = operation.after(enrolled)
            removed_people -= {who for who, _ in enrolled.values()}
        number += done
        is_open = bool(lines) and lines[-1].startswith("begin")
        reader = LocalGallery(folder / "gallery")
        stored = stored_samples(reader)
        if is_open:
            operation = Operation(seed, number)
            after = operation.after(enrolled)
            is_committed = stored == expected_samples(after) and after != enrolled
            if is_committed:
                removed |= operation.removed(enrolled)
                removed_people |= operation.removed_people(enrolled)
                enrolled = after
            counts["kills within an operation"] += 1
            counts["of these committed"] += is_committed
        removed_people -= {who for who, _ in enrolled.values()}
        assert stored == expected_samples(enrolled), f"operation {number}: the gallery differs from what was committed"
        absent = {key: value for key, value in removed.items() if enrolled.get(key) != value}
        check_searches(reader, enrolled, absent)
        reader.close()
        # The next writer completes or undoes the interrupted operation.
        writer = LocalGallery(folder / "gallery", write=True)
        assert not writer.check_integrity(), writer.check_integrity()
        check_searches(writer, enrolled, absent)
        writer.close()
        check_bytes(folder, absent, removed_people)
        # An interrupted operation is not repeated under the same number: its embeddings may be enrolled.
        number += is_open
        for snapshot in folder.glob("snapshot-*"):
            if not (snapshot / "gallery.sqlite").exists() or random.random() < 0.3:
                shutil.rmtree(snapshot)
        counts["kills"] += 1
    counts |= {"operations": number, "removed samples": len(removed), "samples at the end": len(enrolled)}
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run_kills(Path(folder), arguments.kills, arguments.seed)))


if __name__ == "__main__":
    main()
