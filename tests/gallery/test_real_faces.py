"""Gallery of real faces: 7 of 14 celebrities enrolled among 6,757 other people; the others calibrate the threshold."""

import numpy as np
import pytest

from facelt.gallery.gallery import Gallery
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import Samples

# Some distractors are images of the enrolled people; at a low rate they would set the threshold.
RATE = 0.2
# Rows are rounded to float32.
ROUNDED = 1e-6


@pytest.fixture(scope="module")
def faces(real_data):
    with np.load(real_data / "faces" / "embeddings.npz") as file:
        arrays = {name: file[name] for name in ("facescrub", "facescrub_paths", "megaface")}
    return arrays, np.array([str(path).split("/")[-2] for path in arrays["facescrub_paths"]])


def unit(row_ND):
    row_ND = row_ND.astype(np.float64)
    return row_ND / np.linalg.norm(row_ND, axis=1, keepdims=True)


@pytest.mark.parametrize("templates", [False, True])
def test_who_is_known_is_who_a_plain_search_knows(faces, templates, tmp_path):
    arrays, identity_N = faces
    names = sorted(set(identity_N.tolist()))
    is_enrolled_N = np.isin(identity_N, names[::2])
    # The first five images of each enrolled person; the others are probes.
    place_N = np.array([np.count_nonzero(identity_N[:row] == who) for row, who in enumerate(identity_N)])
    first_N, mated_N = is_enrolled_N & (place_N < 5), is_enrolled_N & (place_N >= 5)
    distractor_GD = arrays["megaface"]
    people = [*identity_N[first_N], *(f"distractor {row}" for row in range(len(distractor_GD)))]
    row_GD = np.concatenate([arrays["facescrub"][first_N], distractor_GD])
    model_spec = ModelSpec("mobilefacenet", "0" * 64, "direct", row_GD.shape[1])
    with Gallery.create(tmp_path / "gallery", model_spec) as gallery:
        gallery.enroll(Samples([f"s{row}" for row in range(len(row_GD))], people, row_GD))
        nonmated = arrays["facescrub"][~is_enrolled_N], identity_N[~is_enrolled_N].tolist()
        made = gallery.calibrate(*nonmated, RATE, templates=templates)
        result = gallery.identify(arrays["facescrub"][mated_N], top=1, templates=templates)

    rows, owners = unit(row_GD), np.array(people)
    if templates:
        owners, code_G = np.unique(owners, return_inverse=True)
        mean_CD = np.zeros((len(owners), rows.shape[1]))
        np.add.at(mean_CD, code_G, rows)
        rows = unit(mean_CD)
    stranger_N = (unit(nonmated[0]) @ rows.T).max(axis=1)
    allowed = int(RATE * len(stranger_N))
    assert (stranger_N >= made.threshold + ROUNDED).sum() <= allowed <= (stranger_N >= made.threshold - ROUNDED).sum()
    score_PG = unit(arrays["facescrub"][mated_N]) @ rows.T
    expected = [
        str(owners[best]) if score >= made.threshold else None
        for best, score in zip(score_PG.argmax(axis=1), score_PG.max(axis=1), strict=True)
    ]
    answers = [answer.candidates[0].person if answer.is_known else None for answer in result.probes]
    assert answers == expected
    right = np.mean([name == who for name, who in zip(answers, identity_N[mated_N], strict=True)])
    assert right > 0.3
