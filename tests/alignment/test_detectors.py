"""Detectors: selection by name, weight files (never downloaded), and YuNet on drawings and photographs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from facelt.alignment.align import TEMPLATE_52, Face, align_faces
from facelt.alignment.detectors import DETECTORS, box_overlap, merge_detections, open_detector
from facelt.alignment.photographs import find_photographs, read_photograph
from facelt.errors import UserError
from facelt.synthetic.identity import draw_identity, draw_nuisance
from facelt.synthetic.render import render_face


@pytest.mark.parametrize("kind", DETECTORS)
def test_missing_weights_say_where_they_are_to_be_had(tmp_path, kind):
    with pytest.raises(UserError, match=r"absent.*: .*get .* from https://github\.com/\S+"):
        open_detector(f"{kind}:{tmp_path / 'absent'}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "yunet", "yunet:", "retina:x", ":x"])
def test_unknown_names_list_the_choices(text):
    with pytest.raises(UserError, match="expected one of yunet:PATH, insightface:PATH"):
        open_detector(text)


@pytest.mark.parametrize("kind", DETECTORS)
def test_the_users_folder_is_found(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"^{tmp_path}/absent: "):
        open_detector(f"{kind}:~/absent")


def test_a_file_that_is_no_network_is_refused(tmp_path, capfd):
    (tmp_path / "face.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match=r"face\.onnx: not a YuNet model that OpenCV .* can run"):
        open_detector(f"yunet:{tmp_path / 'face.onnx'}")
    assert capfd.readouterr() == ("", "")


def box(left, top, right, bottom) -> np.ndarray:
    return np.array([left, top, right, bottom], dtype=float)


def face(box_4, score, shift=0.0) -> Face:
    return Face(box_4, np.full((5, 2), shift), score)


def test_shares_of_boxes():
    assert box_overlap(box(0, 0, 10, 10), box(5, 0, 15, 10)) == pytest.approx((50 / 150, 0.5))
    assert box_overlap(box(2, 2, 4, 4), box(0, 0, 10, 10)) == pytest.approx((0.04, 1))
    assert box_overlap(box(0, 0, 1, 1), box(5, 5, 6, 6)) == (0, 0)
    assert box_overlap(box(1, 1, 1, 1), box(1, 1, 1, 1)) == (0, 0)


def test_findings_of_one_face_become_their_mean_where_they_can_be_trusted():
    box_4 = box(0, 0, 100, 120)
    detections = [(face(box_4, 0.9, 1.0), 100.0), (face(box_4 + 4, 0.8, 3.0), 200.0), (face(box_4, 0.95, 50.0), 20.0)]
    distant = (face(box(300, 0, 320, 30), 0.7, 9.0), 20.0)
    within = (face(box(10, 10, 50, 60), 0.85, 7.0), 80.0)
    merged, other = merge_detections([*detections, distant, within])
    assert (merged.score, merged.landmark_52[0, 0]) == (0.95, 2.0)
    assert merged.box_4.tolist() == [2, 2, 102, 122]
    assert (other.score, other.landmark_52[0, 0]) == (0.7, 9.0)
    assert merge_detections([]) == []


def test_a_face_that_none_can_be_trusted_on_keeps_its_best():
    box_4 = box(0, 0, 12, 15)
    (merged,) = merge_detections([(face(box_4, 0.8, 5.0), 12.0), (face(box_4, 0.9, 6.0), 24.0)])
    assert (merged.score, merged.landmark_52[0, 0]) == (0.9, 6.0)


@pytest.mark.parametrize("size", [64, 160, 1000])
def test_yunet_finds_drawings_of_any_size_and_the_crops_fit(yunet, size):
    detector = open_detector(yunet)
    for number in range(3):
        picture = render_face(draw_identity(0, number), draw_nuisance(0, number, 0), size)
        (aligned, *_) = align_faces(picture, detector)
        framed = np.pad(aligned.image_HW3, ((56, 56), (56, 56), (0, 0)), mode="edge")
        (again, *_) = align_faces(framed, detector)
        assert np.linalg.norm(again.face.landmark_52 - 56 - TEMPLATE_52, axis=1).mean() < 8


def test_yunet_detects_every_face_of_the_photographs(yunet, real_data):
    """Landmarks detected again in the crop lie near the template's; no real face fits them exactly."""
    detector, off = open_detector(yunet), []
    for item in find_photographs(real_data / "photos"):
        faces = align_faces(read_photograph(item.path, 10**6), detector)[0]
        framed = np.pad(faces.image_HW3, ((56, 56), (56, 56), (0, 0)), mode="edge")
        again = align_faces(framed, detector)[0]
        off.append(np.linalg.norm(again.face.landmark_52 - 56 - TEMPLATE_52, axis=1).mean())
        assert 30 < faces.quality.eye_distance < 60
    assert len(off) == 40
    assert np.mean(off) < 4


def test_a_picture_without_faces_and_odd_shapes(yunet):
    detector = open_detector(yunet, 0.9)
    assert detector.min_score == 0.9
    assert detector.name.startswith("yunet:yunet_n_dynamic.onnx sha256:104ee26c71d5")
    for shape in ((1, 1, 3), (1, 700, 3), (333, 2, 3), (200, 300, 3)):
        assert detector.detect(np.full(shape, 90, np.uint8)) == []


def test_aligning_needs_no_torch(root):
    modules = ", ".join(f"facelt.alignment.{path.stem}" for path in (root / "facelt/alignment").glob("[a-z]*.py"))
    listed = "[n for n in ('torch', 'insightface') if n in sys.modules]"
    program = f"import sys\nimport {modules}, facelt.cli.align\nprint({listed})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "[]\n"


def planted(path: Path) -> None:
    """Detector in the format of InsightFace's packs, 640 x 640: one face if an image has more red than blue.

    Anchor 2 x 5 of stride 32 at (160, 64): the box reaches 32, 64, 96 and 128 pixels left, up, right and down.
    """
    onnx = pytest.importorskip("onnx")
    helper, numbers = onnx.helper, onnx.numpy_helper
    nodes, constants, outputs = [], [], []
    nodes.append(helper.make_node("Slice", ["data", "zero", "one", "axis"], ["red"]))
    nodes.append(helper.make_node("Slice", ["data", "two", "three", "axis"], ["blue"]))
    nodes.append(helper.make_node("Sub", ["red", "blue"], ["difference"]))
    nodes.append(helper.make_node("ReduceMean", ["difference"], ["mean"], keepdims=0))
    for name, value in (("zero", 0), ("one", 1), ("two", 2), ("three", 3), ("axis", 1)):
        constants.append(numbers.from_array(np.array([value]), name))
    for kind, width in (("score", 1), ("box", 4), ("points", 10)):
        for stride in (8, 16, 32):
            name = f"{kind}{stride}"
            value = np.zeros(((640 // stride) ** 2 * 2, width), np.float32)
            if stride == 32:
                row = {"score": [0.9], "box": [1, 2, 3, 4], "points": [-1, -1, 1, -1, 0, 0, -1, 1, 1, 1]}[kind]
                value[(2 * 20 + 5) * 2] = row
            constants.append(numbers.from_array(value, f"{name}_planted"))
            if kind == "score":
                nodes.append(helper.make_node("Mul", [f"{name}_planted", "mean"], [name]))
            else:
                nodes.append(helper.make_node("Identity", [f"{name}_planted"], [name]))
            outputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(value.shape)))
    data = helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(nodes, "planted", [data], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


@pytest.mark.filterwarnings("ignore")
def test_insightface_runs_the_detector_of_a_pack(tmp_path):
    pytest.importorskip("insightface", reason="insightface is not installed")
    planted(tmp_path / "models/pack/det_planted.onnx")
    detector = open_detector(f"insightface:{tmp_path}", 0.6)
    red_HW3 = np.zeros((1280, 1280, 3), np.uint8)  # looked at in half its size
    red_HW3[:, :, 0] = 200
    (face,) = detector.detect(red_HW3)
    assert face.box_4 == pytest.approx([2 * 128, 0, 2 * 256, 2 * 192])
    assert face.landmark_52 == pytest.approx(
        2 * np.array([[128, 32], [192, 32], [160, 64], [128, 96], [192, 96]], dtype=float)
    )
    assert face.score == pytest.approx(0.9 * 200 / 128, rel=1e-4)
    assert detector.name.startswith("insightface:det_planted.onnx sha256:")
    assert open_detector(f"insightface:{tmp_path}", 0.999 * 0.9 * 200 / 128).detect(red_HW3)
    assert not open_detector(f"insightface:{tmp_path}", 1.001 * 0.9 * 200 / 128).detect(red_HW3)
    assert not detector.detect(red_HW3[:, :, ::-1])
    for shape in ((9000, 3), (3, 9000), (1, 1000), (128, 1), (640, 1)):
        assert detector.detect(np.full((*shape, 3), 90, np.uint8)) == []


@pytest.mark.filterwarnings("ignore")
def test_insightface_names_what_is_no_detector(tmp_path):
    pytest.importorskip("insightface", reason="insightface is not installed")
    (tmp_path / "det_torn.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match=r"det_torn\.onnx: cannot be loaded"):
        open_detector(f"insightface:{tmp_path}")


def test_one_of_several_detectors_must_be_chosen(tmp_path):
    for name in ("models/a/det_10g.onnx", "models/b/det_500m.onnx", "models/b/w600k.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"several detectors; pass one of .*a/det_10g\.onnx, .*b/det_500m\.onnx$"):
        open_detector(f"insightface:{tmp_path}")
