"""Synthetic MegaFace suite, read back by code that knows only MegaFace's layout."""

import csv
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from facelt.errors import UserError
from facelt.synthetic.datasets import SuiteSummary, write_suite
from facelt.synthetic.identity import DEMO, draw_identity, draw_nuisance
from facelt.synthetic.render import encode_face

ARGUMENTS = {
    "probe_identities": 6, "images_per_probe": 5, "distractors": 60, "sizes": [40, 10, 60], "seed": 4,
    "first_identity": 50, "mislabelled": 2, "leaked": 7, "size": 32, "workers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> tuple[Path, SuiteSummary]:
    folder = tmp_path_factory.mktemp("made") / "suite"
    return folder, write_suite(folder, **ARGUMENTS)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_lists_name_exactly_the_files_on_disk(suite):
    folder, made = suite
    for root, name, count in (("facescrub_images", "facescrub_lst", 30), ("megaface_images", "megaface_lst", 60)):
        listed = lines(folder / name)
        on_disk = [str(path.relative_to(folder / root)) for path in (folder / root).rglob("*") if path.is_file()]
        assert len(listed) == count
        assert sorted(listed) == sorted(on_disk)
    assert (made.probes, made.distractors, made.folder) == (30, 60, folder)


def test_json_lists_hold_paths_identities_and_nested_sizes(suite):
    folder, made = suite
    probes = json.loads((folder / "facescrub_features_list.json").read_text())
    assert probes["path"] == lines(folder / "facescrub_lst")
    assert probes["id"] == [path.split("/")[0] for path in probes["path"]]
    assert tuple(dict.fromkeys(probes["id"])) == made.probe_names
    assert all(
        Path(path).stem.rsplit("_", 1)[0] == name for path, name in zip(probes["path"], probes["id"], strict=True)
    )
    for size in (10, 40, 60):
        listed = json.loads((folder / f"megaface_features_list.json_{size}_1").read_text())
        assert listed["path"] == lines(folder / "megaface_lst")[:size]


def test_identities_follow_the_training_ones_and_are_shown_as_listed(suite):
    """Every file shows an identity of the suite; noisy distractors show a probe identity."""
    folder, made = suite
    assert made.first_identity == 50
    assert all(50 <= int(name.removeprefix("synthetic_")) < made.next_identity for name in made.probe_names)
    known = {rendered(index, 0): index for index in range(50, made.next_identity)}
    noisy = set(lines(folder / "megaface_noises.txt")[1:])
    probes = [int(name.removeprefix("synthetic_")) for name in made.probe_names]
    again = {rendered(person, image) for person in probes for image in range(5, 12)}
    shown = []
    for path in lines(folder / "megaface_lst"):
        data = (folder / "megaface_images" / path).read_bytes()
        assert (data in again) == (path in noisy)
        shown += [known[data]] if path not in noisy else []
    assert len(shown) == len(set(shown)) == 53
    assert not set(shown) & set(probes)
    assert len(noisy) == 7


def test_mislabelled_probes_show_a_stranger(suite):
    folder, _ = suite
    noisy = set(lines(folder / "facescrub_noises.txt")[1:])
    assert len(noisy) == 2
    for path in lines(folder / "facescrub_lst"):
        name, file = path.split("/")
        person, image = int(name.removeprefix("synthetic_")), int(Path(file).stem.rsplit("_", 1)[1]) - 1
        truth = (folder / "facescrub_images" / path).read_bytes() == rendered(person, image)
        assert truth == (file not in noisy)


def rendered(identity: int, image: int) -> bytes:
    return encode_face(draw_identity(4, identity), draw_nuisance(4, identity, image, DEMO), 32)


def test_gender_tables_have_six_columns_and_both_halves(suite):
    folder, made = suite
    seen = {}
    for gender, table in (("male", "facescrub_actors.txt"), ("female", "facescrub_actresses.txt")):
        rows = list(csv.DictReader((folder / table).open(), delimiter="\t"))
        assert list(rows[0]) == ["name", "image_id", "face_id", "url", "bbox", "sha256"]
        for row in rows:
            name = row["name"].replace(" ", "_")
            assert draw_identity(4, int(name.removeprefix("synthetic_"))).gender == gender
            seen[name] = [*seen.get(name, []), row["sha256"]]
    assert sorted(seen) == sorted(made.probe_names)
    for name, digests in seen.items():
        files = (folder / "facescrub_images" / name).iterdir()
        assert sorted(digests) == sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    genders = [draw_identity(4, int(name.removeprefix("synthetic_"))).gender for name in made.probe_names]
    assert genders.count("male") == genders.count("female") == 3


def test_same_arguments_write_the_same_files_and_readme_says_synthetic(suite, tmp_path):
    folder, _ = suite
    write_suite(tmp_path / "again", **(ARGUMENTS | {"workers": 2}))
    first = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    second = {
        path.relative_to(tmp_path / "again"): path.read_bytes()
        for path in (tmp_path / "again").rglob("*")
        if path.is_file()
    }
    assert first == second
    assert "synthetic" in first[Path("README.txt")].decode()


def test_mean_colours_do_not_identify(tmp_path):
    """Nearest 8x8 thumbnails find the mate among 400 distractors far less often than the demo's networks must."""
    write_suite(
        tmp_path / "suite", probe_identities=10, images_per_probe=4, distractors=400, sizes=[400], seed=0,
        first_identity=0, mislabelled=0, leaked=0, size=56, workers=1,
    )  # fmt: skip
    probe_paths, other_paths = lines(tmp_path / "suite/facescrub_lst"), lines(tmp_path / "suite/megaface_lst")
    probes = thumbnails(tmp_path / "suite/facescrub_images", probe_paths)
    others = thumbnails(tmp_path / "suite/megaface_images", other_paths)
    names = np.array([path.split("/")[0] for path in probe_paths])
    mates = (names[:, None] == names) & ~np.eye(len(names), dtype=bool)
    between = ((probes[:, None] - probes) ** 2).sum(axis=2)
    nearest = ((probes[:, None] - others) ** 2).sum(axis=2).min(axis=1)
    assert (between <= nearest[:, None])[mates].mean() < 0.4


def thumbnails(root: Path, paths: list[str]) -> np.ndarray:
    faces = [cv2.resize(cv2.imread(str(root / path)), (8, 8), interpolation=cv2.INTER_AREA) for path in paths]
    return np.stack(faces).reshape(len(paths), -1).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"probe_identities": 1}, "probe_identities"),
        ({"images_per_probe": 1}, "images_per_probe"),
        ({"distractors": 0}, "distractors"),
        ({"sizes": []}, "sizes"),
        ({"sizes": [61]}, "sizes"),
        ({"mislabelled": 7}, "mislabelled"),
        ({"leaked": 60}, "leaked"),
        ({"first_identity": 2.5}, "first_identity"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_bad_arguments_are_named_and_leave_nothing(tmp_path, change, named):
    with pytest.raises(UserError, match=named) as caught:
        write_suite(tmp_path / "suite", **(ARGUMENTS | change))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
