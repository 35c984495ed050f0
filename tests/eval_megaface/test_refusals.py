"""Invalid input: refused before the search, naming the file, the key or the images."""

import numpy as np
import pytest

from facelt.errors import UserError


def test_insightface_mode_needs_a_clean_probe(small):
    (small.root / "facescrub_noises.txt").write_text("".join(f"Bob_Ray_{number}.png\n" for number in range(3)))
    with pytest.raises(UserError, match="all probes of 'Bob_Ray' are on the noise list"):
        small.run("noise.mode=insightface")


def test_reference_must_be_known(small, second):
    models, _ = second
    with pytest.raises(UserError, match="'third' is neither a model"):
        small.run(models=models, shots={"reference": "third"})
    with pytest.raises(UserError, match="'second' has no train store"):
        small.run(models=models, shots={"reference": "second"})


def test_overlap_is_refused_with_the_names(small):
    (small.root / "identities.csv").write_text("label,name\n0,ann lee\n1,Someone Else\n2,Cy_Doe_Jr\n")
    models = small.config()["models"]
    models["plain"]["training_identities"] = str(small.root / "identities.csv")
    with pytest.raises(UserError, match=r"2 of 4 probe identities are in the training set: Ann_Lee, Cy_Doe_Jr"):
        small.run(models=models)
    report = small.run("allow_overlap=true", models=models)
    assert any("Ann_Lee, Cy_Doe_Jr." in note and "not those of unseen" in note for note in report["notes"])


@pytest.mark.parametrize("name", ["probes", "distractors", "train"])
def test_nan_in_a_store_is_named(small, name):
    array = np.lib.format.open_memmap(small.root / name / "direct.npy", mode="r+")
    array[1, 3] = np.nan
    array.flush()
    key = (small.root / name / "items.csv").read_text().splitlines()[2].split(",")[0]
    expected = rf"{name}: direct of 1 of \d+ listed images cannot be used \(1 not finite: '{key}'\)"
    if name == "train":
        expected = rf"train: direct of '{key}' holds a value that is not finite"
    with pytest.raises(UserError, match=expected):
        small.run("noise.mode=raw")


def test_a_zero_row_is_named(small):
    array = np.lib.format.open_memmap(small.root / "distractors/direct.npy", mode="r+")
    array[0] = 0
    array.flush()
    with pytest.raises(UserError, match=r"distractors: .* \(1 of length zero: '002/album_29/29.jpg'\)"):
        small.run()


def test_other_mistakes_are_named(small, write_list):
    write_list(small.root / "lists/megaface_features_list.json_40_1", [*small.distractors, "x/y.jpg"])
    with pytest.raises(UserError, match="lists 31 distractors, but its name gives 40"):
        small.run()
    write_list(small.root / "lists/megaface_features_list.json_31_1", [*small.distractors, "x/y.jpg"])
    (small.root / "lists/megaface_features_list.json_40_1").unlink()
    with pytest.raises(UserError, match=r"distractors: direct of 1 of 29 listed images .*1 missing: 'x/y.jpg'"):
        small.run()
    (small.root / "actors.txt").unlink()
    with pytest.raises(UserError, match=r"actors.txt: cannot be read"):
        small.run()


def test_stores_of_two_models_do_not_mix(small, write_store):
    write_store(small.root / "wide", small.distractors, {"direct": small.unit(np.ones((30, 9)))})
    models = small.config()["models"]
    models["plain"]["distractors"] = str(small.root / "wide")
    with pytest.raises(UserError, match=r"wide: embeddings have 9 values, those in .*probes have 6"):
        small.run(models=models)
