"""Commands that write a folder for a long time refuse it while another command writes to it, and leave no lock."""

import pytest
import yaml

from facelt.utils.folder_lock import lock_folder


@pytest.fixture
def commands(recipe, finished_run, tiny_faces, golden, tmp_path):
    """The folder that a command writes, and the command's words; none of them gets as far as an image."""
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(recipe(tmp_path / "run")))
    (tmp_path / "scores.csv").write_text("id1,id2,score,label\na,a,0.9,1\n")
    (tmp_path / "photo.png").touch()
    features = {name: str(golden / "megaface/features" / name) for name in ("facescrub", "megaface")}
    model = {"probes": features["facescrub"], "distractors": features["megaface"], "algorithm": "golden"}
    suite = {"root": str(golden / "megaface"), "facescrub_list": "facescrub_features_list.json", "megaface_lists": "."}
    megaface = {
        "suite": suite,
        "models": {"golden": model},
        "out": str(tmp_path / "report"),
    }
    (tmp_path / "megaface.yaml").write_text(yaml.safe_dump(megaface))
    align = ("align", tmp_path / "photo.png", "--detector", "yunet:absent.onnx", "--out")
    audit = ("--scores", tmp_path / "scores.csv", "--attributes", tmp_path / "scores.csv", "--by", "x")
    embed = ("--checkpoint", finished_run, "--images", tiny_faces, "--out", tmp_path / "store")
    return {
        tmp_path / "run": ("train", "--config", tmp_path / "train.yaml", "--resume"),
        tmp_path / "store": ("embed", *embed),
        tmp_path / "report": ("megaface", "--config", tmp_path / "megaface.yaml"),
        tmp_path / "audit": ("audit", *audit, "--threshold-at", "score=0.5", "--out", tmp_path / "audit"),
        tmp_path / "crops": (*align, tmp_path / "crops"),
        tmp_path / "faces": (*align, tmp_path / "faces/train.rec"),
    }


def test_a_folder_in_use_is_refused_before_anything_is_read_or_written(refused, commands, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for folder, words in commands.items():
        with lock_folder(folder):
            message = refused(*words)
        assert message.startswith(f"error: {folder}: process "), words[0]
        assert " is writing to it; wait until it has ended" in message, words[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_lock_is_no_content_of_the_folder_and_is_removed(cli, commands, recipe, plain_stage, tmp_path):
    values = recipe(tmp_path / "run", stages=plain_stage(epochs=1))
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "run").mkdir()
    assert cli(*commands[tmp_path / "run"])[0] == 0
    code, _, error = cli(*commands[tmp_path / "store"])
    assert code == 0, error
    assert [path for path in tmp_path.rglob("*") if "lock" in path.name] == []
