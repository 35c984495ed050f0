"""`facelt export` on the command line."""

import json
import shutil

import onnxruntime
import pytest

from recordio_tools.atomic_io import sha256_of


@pytest.fixture
def export(cli):
    """export(*words) -> (exit code, stdout, stderr)."""
    return lambda *words: cli("export", *words)


def test_a_run_becomes_a_graph_and_the_words_say_how_far_it_is_from_the_model(export, finished_run, tmp_path):
    path = tmp_path / "face.onnx"
    code, out, error = export("--checkpoint", finished_run, "--format", "onnx", "--kind", "meta", "--out", path)
    assert code == 0
    assert "note: insightface takes graphs of one output only; for it add --no-reachability\n" in error
    assert out.startswith(f"exported: {path} (meta, ")
    assert out.count("\n") == 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["facelt.card"])
    assert card["model_sha256"] == sha256_of(finished_run / "oltr/model.safetensors")
    assert (card["stage"], card["mirror_averaged"]) == ("oltr", True)


def test_meta_has_the_one_output_that_insightface_takes_if_reachability_is_left_out(export, finished_run, tmp_path):
    words = ("--checkpoint", finished_run, "--format", "onnx", "--kind", "meta", "--out", tmp_path / "meta.onnx")
    code, _, error = export(*words, "--no-reachability")
    assert code == 0, error
    session = onnxruntime.InferenceSession(str(tmp_path / "meta.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["embedding"]
    assert "one output only" not in error


def test_sizes_that_insightface_does_not_take_are_noted(export, finished_run, tmp_path):
    words = ("--checkpoint", finished_run / "plain", "--format", "onnx", "--no-flip", "--out", tmp_path / "a.onnx")
    code, _, error = export(*words)
    assert code == 0
    assert error.endswith("note: insightface does not load recognition models of 32x32; it expects 112x112\n")


def test_weights_lie_in_the_stages_folder_where_no_place_is_named(export, finished_run, tmp_path):
    stage = shutil.copytree(finished_run / "oltr", tmp_path / "oltr")
    code, out, _ = export("--checkpoint", stage, "--format", "safetensors")
    path = stage / "export/network.safetensors"
    assert code == 0
    assert out == f"exported: {path} ({path.stat().st_size / 1e6:.1f} MB) and network.json\n"
    assert path.with_suffix(".json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "onnx", "--out", "face.safetensors"), "--out face.safetensors: must end in .onnx"),
        (("--format", "safetensors", "--out", "face.onnx"), "--out face.onnx: must end in .safetensors"),
        (("--format", "safetensors", "--kind", "meta"), "only apply to ONNX"),
        (("--format", "safetensors", "--no-flip"), "only apply to ONNX"),
        (("--format", "onnx", "--no-reachability"), "--no-reachability: only applies to --kind meta"),
        (("--format", "onnx", "--checkpoint", "absent"), "absent: neither a run nor a stage's folder"),
    ],
)
def test_mistakes_are_one_line(words, message, export, finished_run):
    code, out, error = export("--checkpoint", finished_run, *words)
    assert (code, out) == (1, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
