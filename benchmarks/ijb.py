"""Time and memory of `facelt ijb` at the size of IJB-C, on made-up lists and features.

python benchmarks/ijb.py --folder /tmp/ijbc [--dimension 512]

The lists have as many images, templates and pairs as those of IJB-C. The folder, about 1.2 GB with 512 values a
feature, is kept and used again.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from facelt.evaluation.face_benchmarks import ImageFeatures, evaluate_ijb
from facelt.report.face_benchmarks import print_ijb
from facelt.store.ijb import IjbFolder, IjbLists

SUBJECTS, IMAGES, TEMPLATES, PAIRS, MEDIA = 3531, 469_375, 23_124, 15_658_489, 140_000
GALLERY = 1772
LANDMARKS = "38.29 51.69 73.53 51.50 56.02 71.73 41.54 92.36 70.72 92.20"
BLOCK = 1_000_000


def write_ijb_lists(folder: Path) -> None:
    """Writes the lists: each subject has a template in a gallery, and the other templates are probes."""
    random, meta = np.random.default_rng(0), folder / "meta"
    meta.mkdir(parents=True)
    subject_T = np.concatenate([np.arange(SUBJECTS), random.integers(0, SUBJECTS, TEMPLATES - SUBJECTS)])
    template_N = np.concatenate([np.arange(TEMPLATES), random.integers(0, TEMPLATES, IMAGES - TEMPLATES)])
    names = [f"{number}.jpg" for number in range(1, IMAGES + 1)]
    scores = random.uniform(0.1, 1, IMAGES).tolist()
    rows = zip(names, template_N.tolist(), random.integers(0, MEDIA, IMAGES).tolist(), strict=True)
    (meta / "ijbc_face_tid_mid.txt").write_text("".join(f"{name} {t} {medium}\n" for name, t, medium in rows))
    lines = (f"{name} {LANDMARKS} {score:.3f}\n" for name, score in zip(names, scores, strict=True))
    (meta / "ijbc_name_5pts_score.txt").write_text("".join(lines))
    others = PAIRS - (TEMPLATES - SUBJECTS)
    left_P = np.concatenate([subject_T[SUBJECTS:], np.sort(random.integers(0, SUBJECTS, others))])
    right_P = np.concatenate([np.arange(SUBJECTS, TEMPLATES), random.integers(SUBJECTS, TEMPLATES, others)])
    same_P = (subject_T[left_P] == subject_T[right_P]).astype(int)
    with (meta / "ijbc_template_pair_label.txt").open("w") as file:
        for start in range(0, PAIRS, BLOCK):
            columns = (column_P[start : start + BLOCK].tolist() for column_P in (left_P, right_P, same_P))
            file.write("".join(map("%d %d %d\n".__mod__, zip(*columns, strict=True))))
    lists = {
        "gallery_G1": range(GALLERY),
        "gallery_G2": range(GALLERY, SUBJECTS),
        "probe_mixed": range(SUBJECTS, TEMPLATES),
    }
    for name, templates in lists.items():
        lines = (f"{template},{subject_T[template]}\n" for template in templates)
        (meta / f"ijbc_1N_{name}.csv").write_text("TEMPLATE_ID,SUBJECT_ID\n" + "".join(lines))


def write_features(path: Path, lists: IjbLists, dimension: int) -> None:
    """Writes a feature of each image: the direction of its subject and noise."""
    random = np.random.default_rng(1)
    direction_SD = random.standard_normal((SUBJECTS, dimension), dtype=np.float32)
    values = np.lib.format.open_memmap(path, "w+", np.float32, (IMAGES, dimension))
    template_N = np.empty(IMAGES, dtype=np.int64)
    template_N[lists.media.image_M] = lists.media.row_M
    for start in range(0, IMAGES, BLOCK // 20):
        template_B = template_N[start : start + BLOCK // 20]
        noise_BD = random.standard_normal((len(template_B), dimension), dtype=np.float32)
        values[start : start + len(template_B)] = 5 * noise_BD
        values[start : start + len(template_B)] += direction_SD[lists.subject_T[template_B]]


def main() -> None:
    """Writes the files unless they are there; measures the reading of the lists and the evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--dimension", type=int, default=512)
    options = parser.parse_args()
    if not (options.folder / "meta").exists():
        write_ijb_lists(options.folder)
    start = time.process_time()
    lists = IjbLists.read(IjbFolder.open(options.folder))
    read = time.process_time() - start
    path = options.folder / f"features_{options.dimension}.npy"
    if not path.exists():
        write_features(path, lists, options.dimension)
    start = time.process_time()
    report = evaluate_ijb(lists, ImageFeatures.open(path, "direct"))
    evaluated = time.process_time() - start
    print_ijb(report)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"processor time: lists {read:.1f} s, evaluation {evaluated:.1f} s; peak memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
