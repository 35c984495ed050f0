"""Images that are both probe and distractor are refused, unless a noise list or the user keeps them."""

import json

import numpy as np
import pytest

from eval_megaface.config import MegafaceConfig
from eval_megaface.evaluate import evaluate_megaface
from eval_megaface.run import main
from facelt.errors import UserError
from facelt.search.search import Search


@pytest.fixture
def leak(small, write_store):
    """Models whose distractors 11 and 20 are the probes 0 and 4; and the names of these pairs."""
    small.distractor_GD[[11, 20]] = small.probe_PD[[0, 4]]
    write_store(small.root / "leaking", small.distractors, {"direct": small.distractor_GD})
    models = small.config()["models"]
    models["plain"]["distractors"] = str(small.root / "leaking")
    return models, [(small.probes[0], small.distractors[11]), (small.probes[4], small.distractors[20])]


def notes_of(report):
    return [note for note in report["notes"] if "bit for bit" in note]


def test_leaked_images_are_refused_before_any_search(small, leak, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("searched before the images were compared")

    monkeypatch.setattr(Search, "top_k", refuse)
    monkeypatch.setattr(Search, "count_above", refuse)
    models, ((probe, distractor), _) = leak
    expected = rf"2 images of .*probes have the embedding of a distractor of .*leaking, .* '{probe}' and '{distractor}'"
    with pytest.raises(UserError, match=expected) as caught:
        small.run(models=models)
    assert "suite.facescrub_noises, suite.megaface_noises" in str(caught.value)


def test_leaked_images_are_kept_if_allowed(small, leak):
    models, pairs = leak
    (note,) = notes_of(small.run("allow_duplicates=true", models=models))
    assert note.startswith("plain, direct: 2 images of ")
    assert all(repr(name) in note for pair in pairs for name in pair)
    assert note.endswith("0 of them are on a noise list.")
    with pytest.raises(SystemExit) as caught:
        main(["--config", str(small.write_config(models=models)), "--allow-duplicates"])
    assert not caught.value.code
    assert notes_of(json.loads((small.root / "out/report.json").read_text())) == [note]


@pytest.mark.parametrize("side", ["facescrub", "megaface"])
def test_a_noise_list_covers_them(small, leak, side):
    models, pairs = leak
    names = [probe.split("/")[1] if side == "facescrub" else distractor for probe, distractor in pairs]
    path = small.root / f"{side}_noises.txt"
    with path.open("a") as file:
        file.write(f"{names[0]}\n")
    with pytest.raises(UserError, match=rf"1 images of .*'{pairs[1][0]}'"):
        small.run(models=models)
    with path.open("a") as file:
        file.write(f"{names[1]}\n")
    assert notes_of(small.run(models=models)) == []
    (note,) = notes_of(small.run("noise.mode=raw", models=models))
    assert note.endswith("2 of them are on a noise list.")


def test_replaced_probes_are_no_duplicates(small, leak):
    models, pairs = leak
    with (small.root / "facescrub_noises.txt").open("a") as file:
        file.writelines(f"{probe.split('/')[1]}\n" for probe, _ in pairs)
    assert notes_of(small.run("noise.mode=insightface", models=models)) == []


def test_one_kind_suffices_and_excluded_images_do_not_count(small, second, write_store):
    models, arrays = second
    distractors = {kind: value_ND.copy() for kind, value_ND in arrays["distractors"].items()}
    distractors["meta"][25] = arrays["probes"]["meta"][1]
    write_store(small.root / "leaking", small.distractors, distractors)
    models["second"]["distractors"] = str(small.root / "leaking")
    with pytest.raises(UserError, match=rf"1 images of .*'{small.probes[1]}' and '{small.distractors[25]}'"):
        small.run(models=models)
    (note,) = notes_of(small.run("allow_duplicates=true", models=models))
    assert note.startswith("second, meta: ")
    # An image that is unusable for the other model is excluded for both.
    array = np.load(small.root / "probes/direct.npy", mmap_mode="r+")
    array[np.flatnonzero((array == small.probe_PD[1]).all(axis=1))] = 0
    array.flush()
    assert notes_of(small.run("allow_missing=1", models=models)) == []


def test_real_faces_leak_as_their_noise_list_says(real_config, real_data):
    arrays = np.load(real_data / "faces/embeddings.npz")
    distractors = {row.tobytes() for row in arrays["megaface"]}
    copies = sum(row.tobytes() in distractors for row in arrays["facescrub"])
    suite = real_config["suite"] | {"sizes": [6757], "megaface_noises": None}
    del real_config["models"]["mobile"]["train"]
    config = real_config | {"suite": suite, "noise": {"mode": "raw"}}
    with pytest.raises(UserError, match=rf"^{copies} images of .*facescrub have the embedding of a distractor"):
        evaluate_megaface(MegafaceConfig.model_validate(config))
