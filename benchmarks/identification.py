"""Open-set identification with a gallery, by kind of embedding and kind of threshold.

python benchmarks/identification.py STORES --noises facescrub_noises.txt --gallery-noises megaface_noises.txt

STORES/facescrub and STORES/megaface are embedding stores of the two halves of a suite in MegaFace's layout. The gallery
has five images of each person of FaceScrub and all images of a third of the people of MegaFace; the second third sets
the threshold, and the last one measures its FPIR. FNIR is measured on the other FaceScrub images: those whose best
candidate is not the right person. Prints a Markdown table with 95% intervals over people; `--seed` draws other thirds.
"""

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval_megaface.suite import noisy_probes, read_noise_list
from facelt.gallery.gallery import Gallery, Identification
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import Samples
from facelt.stats.intervals import ClusteredCounts, rate_intervals
from facelt.store.store import EmbeddingStore

ENROLLED_IMAGES = 5


class Images(NamedTuple):
    """Keys, people, embeddings [N,D] and, if the model has a memory, reachability [N]."""

    key_N: np.ndarray
    person_N: np.ndarray
    embedding_ND: np.ndarray
    reachability_N: np.ndarray | None

    @classmethod
    def of(cls, store: EmbeddingStore, kind: str) -> "Images":
        reachability_N = None if store.reachability is None else np.asarray(store.reachability)
        return cls(np.array(store.keys), np.array(store.identities), np.asarray(store.embedding(kind)), reachability_N)

    def only(self, is_kept_N: np.ndarray) -> "Images":
        return Images(*(None if column is None else column[is_kept_N] for column in self))

    def samples(self) -> Samples:
        return Samples(self.key_N.tolist(), self.person_N.tolist(), self.embedding_ND)


class Parts(NamedTuple):
    """Enrolled images, mated searches, and non-mated searches for calibration and for measuring."""

    enrolled: tuple[Images, Images]
    mated: Images
    calibration: Images
    held_out: Images

    @classmethod
    def sample(cls, people: Images, strangers: Images, seed: int) -> "Parts":
        _, code_N = np.unique(people.person_N, return_inverse=True)
        order_N = np.argsort(code_N, kind="stable")
        start_I = np.searchsorted(code_N[order_N], np.arange(code_N.max() + 1))
        is_first_N = np.empty(len(code_N), dtype=bool)
        is_first_N[order_N] = np.arange(len(code_N)) - start_I[code_N[order_N]] < ENROLLED_IMAGES
        names, code_N = np.unique(strangers.person_N, return_inverse=True)
        third_N = (np.random.default_rng(seed).permutation(len(names)) % 3)[code_N]
        thirds = [strangers.only(third_N == third) for third in range(3)]
        return cls((people.only(is_first_N), thirds[0]), people.only(~is_first_N), thirds[1], thirds[2])


def open_set_row(parts: Parts, model_spec: ModelSpec, by: str, fpir: float) -> tuple[str, str, str]:
    """Returns threshold, FNIR and FPIR of one kind of embedding and threshold, as table cells."""

    def compared_reachability(images: Images) -> np.ndarray | None:
        return images.reachability_N if by == "reachability" else None

    def identify(images: Images) -> Identification:
        return gallery.identify(images.embedding_ND, top=1, reachability_P=compared_reachability(images))

    with tempfile.TemporaryDirectory() as folder, Gallery.create(Path(folder) / "gallery", model_spec) as gallery:
        for images in parts.enrolled:
            gallery.enroll(images.samples())
        searches = parts.calibration
        people = searches.person_N.tolist()
        calibration = gallery.calibrate(
            searches.embedding_ND, people, fpir, reachability_P=compared_reachability(searches)
        )
        mated, nonmated = identify(parts.mated), identify(parts.held_out)
    is_missed_N = np.array(
        [
            not answer.is_known or answer.candidates[0].person != person
            for answer, person in zip(mated.probes, parts.mated.person_N, strict=True)
        ]
    )
    is_named_N = np.array([answer.is_known for answer in nonmated.probes])
    return (
        f"{calibration.threshold:.3f}",
        rate(is_missed_N, parts.mated.person_N),
        rate(is_named_N, parts.held_out.person_N),
    )


def rate(is_error_N: np.ndarray, person_N: np.ndarray) -> str:
    """Returns a rate and its confidence interval, in %."""
    _, code_N = np.unique(person_N, return_inverse=True)
    limits = rate_intervals(
        ClusteredCounts.by_identity(np.bincount(code_N, is_error_N), np.bincount(code_N)), level=0.95
    )
    return f"{100 * is_error_N.mean():.1f} ({100 * limits.low_F[0]:.1f} to {100 * limits.high_F[0]:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path)
    parser.add_argument("--noises", type=Path, required=True)
    parser.add_argument("--gallery-noises", type=Path, required=True)
    parser.add_argument("--fpir", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    stores = [EmbeddingStore.open(arguments.stores / name) for name in ("facescrub", "megaface")]
    noisy = (
        noisy_probes(stores[0].keys, read_noise_list(arguments.noises, stems=True)),
        np.isin(stores[1].keys, list(read_noise_list(arguments.gallery_noises, stems=False))),
    )
    print("| kind | threshold of | threshold | FNIR in % | FPIR of held-out strangers in % |\n|---|---|---|---|---|")
    for kind in stores[0].kinds:
        halves = (Images.of(store, kind).only(~is_noise_N) for store, is_noise_N in zip(stores, noisy, strict=True))
        parts = Parts.sample(*halves, arguments.seed)
        model_spec = ModelSpec.of_store(stores[0], kind)
        # The reachability of a probe does not depend on the kind of embedding.
        for by in ("similarity", "reachability") if kind == "meta" else ("similarity",):
            print(f"| {kind} | {by} | {' | '.join(open_set_row(parts, model_spec, by, arguments.fpir))} |", flush=True)
    sizes = [len(images.key_N) for images in (*parts.enrolled, *parts[1:])]
    print(f"{sum(sizes[:2]):,} enrolled, {sizes[2]:,} mated, {sizes[3]:,} and {sizes[4]:,} non-mated searches")


if __name__ == "__main__":
    main()
