"""Sets that meet in an audit must be of one model: each pair is refused, allowed with a note, or noted as unknown."""

import numpy as np
import pytest
import yaml

from facelt.audit import inputs
from facelt.audit.inputs import open_inputs
from facelt.errors import UserError


def meta(digit, flip=True):
    return {"model": {"weights_sha256": digit * 64}, "preprocessing": {"flip_averaged": flip}}


@pytest.fixture
def sets(faces):
    """The keys of a second set by role, each naming a store of another model than the audited one."""
    other = meta("b")
    worse_ND = np.roll(faces.value_ND, 1, axis=1)
    return {
        "gallery": {"gallery": {"path": str(faces.gallery("other_gallery", meta=other))}},
        "train": {"shots": {"train": str(faces.store("other_train", worse_ND, meta=other))}},
        "thresholds": {"threshold": {"fmr": 0.02, "store": str(faces.store("other_thresholds", worse_ND, meta=other))}},
    }


@pytest.mark.parametrize("role", ["gallery", "train", "thresholds"])
def test_every_second_set_is_compared_before_any_search(faces, settings, sets, role, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("searched before the models were compared")

    monkeypatch.setattr(inputs, "count_above", refuse)
    probes = {"path": str(faces.store("known", meta=meta("a")))}
    path = faces.folder / f"other_{role}"
    expected = rf"{path} \({role}\) and .*known \(embeddings\) differ in weights \(b{{12}} and a{{12}}\)"
    with pytest.raises(UserError, match=expected):
        open_inputs(settings(embeddings=probes, **sets[role]))


def test_what_is_allowed_or_unknown_is_a_note(faces, settings, sets):
    probes = {"path": str(faces.store("known", meta=meta("a")))}
    allowed = open_inputs(settings(embeddings=probes, allow_mixed_models=True, **sets["gallery"])).notes
    assert [note for note in allowed if "other_gallery (gallery) and" in note and "differ in weights" in note]
    same = {"path": str(faces.gallery("same_gallery", meta=meta("a")))}
    assert not [note for note in open_inputs(settings(embeddings=probes, gallery=same)).notes if "model" in note]
    (note,) = [
        note
        for note in open_inputs(settings(embeddings=probes, gallery={"path": str(faces.gallery())})).notes
        if "one model made all" in note
    ]
    assert "gallery (gallery) does not state preprocessing.flip_averaged, weights" in note


def test_the_other_model_needs_its_own_distractors_only(faces, settings):
    probes = {"path": str(faces.store("known", meta=meta("a")))}
    gallery = {"path": str(faces.gallery("known_gallery", meta=meta("a")))}
    against = {"path": str(faces.store("second", np.roll(faces.value_ND, 1, axis=1), meta=meta("b")))}
    named = {"embeddings": probes, "gallery": gallery, "against": against}
    with pytest.raises(UserError, match=r"\(against_gallery\) and .*second \(against\) differ in weights"):
        open_inputs(settings(**named, against_gallery=gallery))
    own = {"path": str(faces.gallery("second_gallery", meta=meta("b")))}
    assert open_inputs(settings(**named, against_gallery=own)).against is not None


def test_a_set_of_another_dimension_is_named(faces, settings):
    narrow_ND = faces.value_ND[:, :6] / np.linalg.norm(faces.value_ND[:, :6], axis=1, keepdims=True)
    narrow = str(faces.store("narrow", narrow_ND))
    for changes in ({"shots": {"train": narrow}}, {"threshold": {"store": narrow}}):
        with pytest.raises(UserError, match=r"narrow: embeddings have 6 values, those in .*probes 12"):
            open_inputs(settings(**changes))


def test_the_command_refuses_and_allows(faces, settings, sets, cli, refused):
    config = settings(embeddings={"path": str(faces.store("known", meta=meta("a", flip=False)))}, **sets["gallery"])
    path = faces.folder / "audit.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    message = refused("audit", "--config", path)
    assert "preprocessing.flip_averaged (true and false)" in message
    assert not (faces.folder / "report").exists()
    code, output, error = cli("audit", "--config", path, "--allow-mixed-models")
    assert code == 0, error
    assert "differ in weights" in " ".join(output.split())
