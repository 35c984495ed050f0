"""Made-up files in the formats of IJB and TinyFace, and features of their images."""

from pathlib import Path

import cv2
import numpy as np
from scipy.io import savemat

from facelt.alignment.align import TEMPLATE_52

SUBJECTS, DIMENSION = 12, 8


class IjbFiles:
    """A folder of IJB-C or IJB-B: each subject has a template in one of two galleries and three probes.

    `rows` are (image, template, medium), `subject_of` the subject of a template, `feature_ND` features of the images.
    """

    def __init__(
        self, root: Path, seed: int = 0, name: str = "ijbc", galleries: tuple[str, str] = ("G1", "G2")
    ) -> None:
        self.root, self.name, self.galleries = root, name, galleries
        random = np.random.default_rng(seed)
        self.rows, self.subject_of, subjects = [], {}, []
        self.gallery, self.probes = ([], []), []
        # Templates and media have gaps between their numbers, and are not in order.
        numbers = (random.permutation(4 * SUBJECTS) * 7 + 3).tolist()
        for subject in range(SUBJECTS):
            for part in range(4):
                template = numbers.pop()
                self.subject_of[template] = subject
                (self.probes if part else self.gallery[subject % 2]).append(template)
                for _ in range(random.integers(1, 7)):
                    self.rows.append([f"{len(self.rows) + 1}.jpg", template, int(random.integers(1, 4)) * 11])
                    subjects.append(subject)
        order = random.permutation(len(self.rows)).tolist()
        self.rows = [self.rows[row] for row in order]
        direction_SD = random.standard_normal((SUBJECTS, DIMENSION))
        noise_ND = random.standard_normal((len(order), DIMENSION))
        self.feature_ND = (direction_SD[np.array(subjects)[order]] + 1.3 * noise_ND).astype(np.float32)
        self.score_N = random.uniform(0.1, 1, len(order)).round(3)
        self.pairs = [
            [left, right, int(self.subject_of[left] == self.subject_of[right])]
            for left in (*self.gallery[0], *self.gallery[1])
            for right in self.probes
        ]
        self.write()

    def path(self, ending: str) -> Path:
        """Path of a list by the end of its name."""
        return self.root / "meta" / f"{self.name}_{ending}"

    def write(self) -> None:
        """Writes all lists."""
        (self.root / "meta").mkdir(parents=True, exist_ok=True)
        landmarks = " ".join(f"{value:.3f}" for value in TEMPLATE_52.ravel())
        lines = [f"{row[0]} {landmarks} {score}" for row, score in zip(self.rows, self.score_N, strict=True)]
        self.path("name_5pts_score.txt").write_text("\n".join(lines) + "\n")
        for ending, rows in (("face_tid_mid.txt", self.rows), ("template_pair_label.txt", self.pairs)):
            self.path(ending).write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
        lists = zip(self.galleries, self.gallery, strict=True)
        for name, templates in (*((f"gallery_{name}", part) for name, part in lists), ("probe_mixed", self.probes)):
            text = "TEMPLATE_ID,SUBJECT_ID,FILENAME,FACE_X\n"
            for template in templates:
                files = [row[0] for row in self.rows if row[1] == template]
                text += "".join(f"{template},{self.subject_of[template]},img/{file},3\n" for file in files)
            self.path(f"1N_{name}.csv").write_text(text)

    def draw(self, side: int = 48) -> None:
        """Writes the images: a few colours by subject in a photograph of `side` pixels."""
        random = np.random.default_rng(1)
        base = random.integers(40, 216, (SUBJECTS, 4, 4, 3))
        (self.root / "loose_crop").mkdir(exist_ok=True)
        for name, template, _ in self.rows:
            small = (base[self.subject_of[template]] + random.integers(-30, 31, (4, 4, 3))).astype(np.uint8)
            cv2.imwrite(str(self.root / "loose_crop" / name), cv2.resize(small, (side, side)))


class TinyfaceFiles:
    """A folder with TinyFace's Testing_Set: probes, matches of the gallery, distractors, and their features."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.folder = root / "Testing_Set"
        self.folder.mkdir(parents=True)
        self.probe_ids = random.permutation(np.repeat(np.arange(1, 31), 2))
        self.match_ids = random.permutation(np.repeat(np.arange(1, 31), random.integers(1, 4, 30)))
        self.distractors = 70
        self.names = {
            "Probe": [f"{identity}_{number}.jpg" for number, identity in enumerate(self.probe_ids)],
            "Gallery_Match": [f"{identity}_{100 + number}.jpg" for number, identity in enumerate(self.match_ids)],
            "Gallery_Distractor": [f"{number:03}.jpg" for number in range(self.distractors)],
        }
        direction = random.standard_normal((31, DIMENSION))
        identities = np.concatenate([self.probe_ids, self.match_ids])
        known_ND = direction[identities] + 0.9 * random.standard_normal((len(identities), DIMENSION))
        self.feature_ND = np.concatenate([known_ND, random.standard_normal((70, DIMENSION))]).astype(np.float32)
        self.write()

    def write(self, **changes: object) -> None:
        """Writes both lists; `changes` replace variables of either."""
        for file, folder, ids in (
            ("probe", "Probe", self.probe_ids),
            ("gallery_match", "Gallery_Match", self.match_ids),
        ):
            key = file.partition("_")[0]
            names = np.empty((len(self.names[folder]), 1), dtype=object)
            names[:, 0] = self.names[folder]
            values = {f"{key}_set": names, f"{key}_ids": ids[:, None].astype(np.float64)}
            values |= {name: value for name, value in changes.items() if name in values}
            values = {name: value for name, value in values.items() if value is not None}
            savemat(self.folder / f"{file}_img_ID_pairs.mat", values, do_compression=True)

    def draw(self, side: int = 32) -> None:
        """Writes the images."""
        random = np.random.default_rng(1)
        for folder, names in self.names.items():
            (self.folder / folder).mkdir()
            for name in names:
                small = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
                cv2.imwrite(str(self.folder / folder / name), cv2.resize(small, (side, side)))
